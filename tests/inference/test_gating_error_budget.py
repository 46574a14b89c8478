"""The error budget of a stream: what all tests spend sums to it, and is never refilled."""

import pytest

from kleiber.inference.gating import ErrorBudget


@pytest.mark.parametrize("horizon", [1, 50, 200, 10_000])
def test_however_many_tests_a_stream_has_their_errors_sum_to_less_than_its_budget(horizon):
    budget, spent = ErrorBudget("stream", 0.1, horizon), 0.0
    for _ in range(5 * horizon):
        spent += budget.next_error
        before, budget = budget.left, budget.after(kept=False)
        assert budget.left < before
    assert spent <= 0.1 + 1e-12
    assert budget.spent == pytest.approx(spent)


def test_discoveries_multiply_the_error_of_later_tests_under_keep_alone():
    keep, stream = (ErrorBudget(kind, 0.1, 200) for kind in ("keep", "stream"))
    assert keep.next_error == stream.next_error
    assert keep.after(True).next_error == pytest.approx(2 * keep.after(False).next_error)
    assert stream.after(True).next_error == stream.after(False).next_error


def test_the_expected_share_of_false_discoveries_is_bounded_with_many_true_ones():
    """LOND: each test's error over the discoveries that it would join sums to less than the budget."""
    budget, bound = ErrorBudget("keep", 0.1, 100), 0.0
    for at in range(300):
        bound += budget.next_error / (budget.kept + 1)
        budget = budget.after(kept=at % 3 == 0)
    assert bound <= 0.1 + 1e-12


@pytest.mark.parametrize("change", [{"kind": "both"}, {"error": 0.0}, {"error": 1.0}, {"horizon": 0}])
def test_a_budget_that_bounds_nothing_is_refused(change):
    with pytest.raises(ValueError, match="must be"):
        ErrorBudget(**{"kind": "keep", "error": 0.1, "horizon": 10, **change})
