import pytest

from kleiber.config.stages import Budget, quantity

MODEL = {"batch_tokens": 1000, "active_params": 50_000, "flops_per_token": 2e5, "epoch_steps": 250}


@pytest.mark.parametrize(
    ("text", "value"), [("20M", 20e6), ("1.5B", 1.5e9), ("2e7", 2e7), ("1_000", 1000.0), (7, 7.0), ("3k", 3000.0)]
)
def test_quantities_are_read_as_people_write_them(text, value):
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "20 M", "M", "-3", "0", "1e999", 10**400, "20Q", "nan"])
def test_what_is_not_a_positive_number_is_refused(text):
    with pytest.raises(ValueError, match=r"must be a (positive )?number"):
        quantity(text)


def test_five_budgets_of_equal_length_give_the_same_steps():
    tokens = 1_000_000
    ways = [
        Budget(tokens=tokens),
        Budget(flops=tokens * MODEL["flops_per_token"]),
        Budget(ratio=tokens / MODEL["active_params"]),
        Budget(steps=tokens / MODEL["batch_tokens"]),
        Budget(epochs=tokens / MODEL["batch_tokens"] / MODEL["epoch_steps"]),
        Budget(),  # 20 tokens per active parameter are a million here
    ]
    assert {way.num_steps(**MODEL) for way in ways} == {1000}


def test_the_epochs_of_an_objective_count_where_no_budget_is_set():
    assert Budget(stop_at_loss=1.0).num_steps(**MODEL, default_epochs=3.0) == 750
    assert Budget(steps=7).num_steps(**MODEL, default_epochs=3.0) == 7
    assert Budget(epochs=0.5).num_steps(**MODEL, default_epochs=3.0) == 125


def test_two_budgets_are_refused_and_both_named():
    with pytest.raises(ValueError, match=r"budget.tokens=1M and budget.steps=5"):
        Budget(tokens="1M", steps=5)


def test_a_budget_smaller_than_a_step_is_one_step():
    assert Budget(tokens=1).num_steps(**MODEL) == 1
