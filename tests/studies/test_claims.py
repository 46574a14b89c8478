"""Claims: the grammar of the config, differences of differences, and one error rate for all claims of a study."""

import math

import numpy as np
import pytest

from kleiber.studies.claims import Claim, Question, decide_together, expand, overall, read_claims
from kleiber.studies.decision import Decision, estimate_around, mean_interval
from kleiber.studies.statements import statement

LEVELS = {"arm": ["plain", "a", "b"], "size": [10, 40, 20]}


def ask(values, direction="lower", **keys):
    problem = keys.pop("problem", "")
    claim = Claim(of={"arm": "a"}, against={"arm": "plain"}, direction=direction, **keys)
    return Question(claim=claim, text="", values=values, problem=problem)


def test_short_forms_and_each_make_claims():
    (claim,) = expand({"arm": "a", "against": "b", "margin": 0.1}, LEVELS)
    assert (claim.of, claim.against, claim.margin) == ({"arm": "a"}, {"arm": "b"}, 0.1)
    node = {"of": {"size": "largest"}, "each": {"arm": {"not": ["plain"]}}, "against": {"arm": "plain"}}
    assert [claim.of for claim in expand(node, LEVELS)] == [{"size": 40, "arm": "a"}, {"size": 40, "arm": "b"}]
    every = expand({"of": {}, "each": {"arm": "all", "size": [10, 20]}}, LEVELS)
    assert len(every) == 6 and all(claim.against is None for claim in every)


@pytest.mark.parametrize(
    "node",
    [
        {"against": "b"}, {"arm": "a", "of": {"arm": "a"}}, {"arm": "a", "colour": 1}, {"arm": "a", "direction": "up"},
        {"of": "a"}, {"arm": "a", "than": {"size": 1}}, {"arm": "a", "against": "b", "margin": -1.0},
        {"of": {}, "each": {"depth": "all"}}, {"of": {}, "each": {"arm": "some"}}, {"arm": "a", "equal": "luck"},
        {"of": {"arm": "largest"}}, {"arm": "a", "less": math.nan}, {"arm": "a", "against": "b", "direction": "within"},
    ],
)  # fmt: skip
def test_another_form_is_refused_with_its_place(node):
    with pytest.raises(ValueError, match=r"study\.claims\[0\]"):
        read_claims([node], "study.claims", {}, LEVELS)


def test_than_subtracts_the_difference_at_other_values_and_less_a_number():
    values = {("a", 1): 5.0, ("p", 1): 2.0, ("a", 2): 4.0, ("p", 2): 3.5}
    claim = Claim(of={"arm": "a", "size": 1}, against={"arm": "p"}, than={"size": 2}, less=0.5)
    result = claim.contrast(lambda side: {"seed": values[side["arm"], side["size"]]})
    assert result == [pytest.approx((5.0 - 2.0) - (4.0 - 3.5) - 0.5)]
    assert [sign for sign, _ in claim.sides] == [1, -1, -1, 1]


@pytest.mark.parametrize(("value", "decision"), [(0.3, "supported"), (-0.3, "contradicted"), (0.05, "undecided")])
def test_the_opposite_of_a_claim_is_decided_the_other_way(value, decision):
    noise = [-0.06, 0.0, 0.06]
    higher, lower = (
        decide_together([ask([sign * value + each for each in noise], direction)], 0.9)[0].decision
        for sign, direction in ((1, "higher"), (-1, "lower"))
    )
    assert higher == lower == decision


def test_all_claims_and_looks_share_the_error_rate():
    values = [0.14, 0.16, 0.15]
    asked = [ask(values, "higher"), ask([]), ask(values), ask(values, "within", margin=1.0)]
    results = decide_together(asked, 0.9, looks=2)
    decisions = ["supported", "not tested", "contradicted", "supported"]
    assert [result.decision for result in results] == decisions and overall(results) == Decision.CONTRADICTED
    ends = mean_interval(values, 1 - 3 / 4 * 0.1 / 2)  # three claims about one difference, of four claims
    for tested in (each for each in results if each.estimate):
        assert (tested.estimate.lo, tested.estimate.hi) == pytest.approx(ends)
    assert overall([]) is None and overall(results[:2]) == Decision.NOT_TESTED


def test_a_problem_and_a_single_sample_decide_nothing_but_keep_the_estimate():
    (named,) = decide_together([ask([-5.0, -5.1, -4.9], problem="unfinished")], 0.9)
    assert named.decision == "not tested" and named.why == "unfinished" and named.estimate.value == pytest.approx(-5)
    (single,) = decide_together([ask([-5.0])], 0.9)
    assert single.decision == "not tested" and single.estimate.lo is None


@pytest.mark.parametrize(
    ("value", "direction", "margin", "open_ends", "decision"),
    [
        (-1.0, "lower", 0.0, (True, False), "supported"), (-1.0, "lower", 0.0, (False, True), "undecided"),
        (1.0, "lower", 0.0, (False, True), "contradicted"), (1.0, "lower", 0.0, (True, False), "undecided"),
        (0.0, "within", 0.5, (True, False), "undecided"), (-1.0, "within", 0.5, (True, False), "contradicted"),
        (-1.0, "lower", 0.0, (True, True), "undecided"),
    ],
)  # fmt: skip
def test_a_side_that_is_only_a_bound_decides_no_claim_that_it_could_turn(value, direction, margin, open_ends, decision):
    claim = Claim(of={}, against={}, direction=direction, margin=margin)
    asked = Question(claim=claim, text="", at=lambda level: estimate_around(value, 0.1, 3, "nats"), open_ends=open_ends)
    (result,) = decide_together([asked], 0.9)
    assert result.decision == decision and result.estimate.lo == pytest.approx(value - 0.1)


@pytest.mark.parametrize(("direction", "decision"), [("within", "not tested"), ("lower", "undecided")])
def test_samples_without_any_noise_support_no_equality(direction, decision):
    (result,) = decide_together([ask([0.0, 0.0, 0.0], direction, margin=0.1 * (direction == "within"))], 0.9)
    assert result.decision == decision


@pytest.mark.slow
def test_equal_arms_are_told_apart_in_at_most_a_tenth_of_studies():
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        results = decide_together([ask(draw.normal(size=3).tolist()) for _ in range(4)], 0.9)
        wrong += any(result.decision != "undecided" for result in results)
    assert wrong / 400 <= 0.1 + 2 * math.sqrt(0.09 / 400)


def test_the_entry_of_a_claim_has_the_fields_of_the_schema():
    (result,) = decide_together([ask([0.1, 0.2], equal="tokens")], 0.9)
    entry = result.to_json()
    fields = {"text", "decision", "why", "measure", "of", "against", "than", "equal", "value", "lo", "hi", "n", "unit"}
    assert entry.keys() >= fields | {"better", "method", "prior", "more_seeds_needed", "direction", "margin", "less"}
    assert entry["tuned"] is None and entry["prior"] is None
    assert (entry["of"], entry["against"], entry["than"]) == ({"arm": "a"}, {"arm": "plain"}, None)


def test_claims_about_one_measure_share_their_variance_unless_it_is_separate():
    rng = np.random.default_rng(0)
    asked = [
        Question(claim=Claim(of={"arm": name}, against={"arm": "plain"}), text=name, values=rng.normal(size=3).tolist())
        for name in "abcdefgh"
    ]
    shared, own = (decide_together(asked, 0.9, variance=variance) for variance in ("moderated", "separate"))
    widths = [np.median([each.estimate.hi - each.estimate.value for each in results]) for results in (shared, own)]
    assert widths[0] < 0.7 * widths[1]
    prior = shared[0].to_json()["prior"]
    assert prior["cells"] == 8 and prior["sd"] > 0 and all(each.to_json()["prior"] == prior for each in shared)
    assert shared[0].to_json()["method"] == "moderated t over seeds, paired"
    assert own[0].to_json()["prior"] is None and own[0].to_json()["method"] == "Student's t over seeds, paired"
    assert [each.estimate.value for each in shared] == [each.estimate.value for each in own]
    assert own[0].level == pytest.approx(1 - 0.1 / 8) and shared[0].level < own[0].level


def test_a_statement_names_what_differs_and_what_is_equal():
    claim = Claim(of={"arm": "a", "size": 1}, against={"arm": "p"}, equal="flops", direction="not_higher", margin=0.02)
    text = statement(claim, "loss", "nats", lambda key, value: f"{key}:{value}")
    assert [text.count(name) for name in ("arm:a", "arm:p", "size:1")] == [1, 1, 1]
    assert text.endswith("at equal training FLOPs")
    written = Claim(of={"arm": "a"}, text="{arm} wins")
    assert statement(written, "loss", "", lambda key, value: f"<{value}>") == "<a> wins"
