"""The scaling study recovers a known law, and says which runs and lines it left out."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.scaling import Scaling, beside, goals, headline, within_budgets
from kleiber.studies.study import content

from .ladders import write_tree
from .trunk_runs import SIZES, trees


@pytest.fixture
def ladder(tmp_path):
    trees(tmp_path / "l", SIZES, [2e6, 4e6, 8e6, 16e6], 2)
    return tmp_path / "l"


def test_a_ladder_says_whether_its_goals_are_met(ladder):
    runs = read_runs(ladder)
    found = Scaling(bootstrap=60).analyse(runs)
    rows = {row["held out"]: row for row in found.tables["Held-out errors"]}
    assert (
        rows["largest size"]["met"]
        and rows["largest size"]["beats naive"]
        and set(rows) >= {"top 4x of compute", "two largest sizes"}
    )
    assert {one["approach"][0] for one in found.law["approaches"]} >= {"2", "3"}
    write_tree(ladder / "gone", 0, 1_000_000, 6e6, {2e6: 1.0}, status="failed")
    assert content(found, "l", read_runs(ladder))["missing"] == ["gone (failed)"]


def law_record(**changes):
    """What a headline reads of laws.json."""
    one = {"value": 1.0, "lo": 0.5, "hi": 1.5, "identified": True}
    test = {"along": "C", "cut": 1e13, "n_test": 4, "mare": 0.0179, "bias": 0.01, "naive": {"line": 0.03}}
    found = {
        "law": "chinchilla", "formula": "L = E", "n": 16, "level": 0.9, "residual_rms": 0.003, "verdicts": [],
        "params": {name: dict(one) for name in ("E", "A", "B", "alpha", "beta")}, "derived": {}, "backtests": [test],
        "domain": {"N": [1e5, 4e5], "D": [1e6, 8e6], "C": [1e12, 2e13]},
    }  # fmt: skip
    return found | changes


def test_a_headline_says_first_what_is_not_identified_and_what_would_identify_it():
    loose = {"value": 1.0, "lo": None, "hi": None, "identified": False}
    found = law_record()
    assert headline(found).startswith("Fitted below 1e+13 FLOPs") and "up to 2 times that" in headline(found)
    found["params"] |= {"A": loose, "alpha": loose}
    told = headline(found)
    assert told.startswith("A and alpha of chinchilla are not identified by these 16 points")
    assert "N (now 0.6 decades)" in told and "D (now" not in told and told.index("1.79%") > told.index("identified")
    found["params"] |= {"E": loose}
    assert "D (now 0.9 decades)" in headline(found)
    refused = law_record(verdicts=[{"code": "no_law", "level": "refuse", "text": "the line does better"}])
    assert "the line does better" in headline(refused) and "1.79%" not in headline(refused)


def test_an_exponent_is_of_its_budgets_alone_where_the_law_is_refused():
    told = "By parabolas at 4 budgets, N_opt ~ C^0.525"
    assert within_budgets(told, law_record()) == f"{told}, from 1e+12 to 2e+13 FLOPs."
    refused = law_record(verdicts=[{"code": "pre_asymptotic", "level": "refuse", "text": "still steepening"}])
    said = within_budgets(told, refused)
    assert said.index("refused") < said.index("still steepening") < said.index("0.525")


@pytest.mark.parametrize(
    ("mare", "naive", "coverage", "met", "beats", "held"),
    [
        (0.01, True, 0.75, True, True, False),
        (0.01, False, 1.0, True, False, True),
        (0.02, True, 1.0, False, True, True),
    ],
)
def test_a_goal_is_met_by_its_number_alone(mare, naive, coverage, met, beats, held):
    one = {"name": "largest size", "n_train": 20, "n_test": 4, "mare": mare, "bias": mare, "coverage": coverage}
    row = goals(law_record(holdouts=[{**one, "naive": {"line": 0.015}, "beats_naive": naive}], level=0.95))[0]
    assert (row["met"], row["beats naive"], row["band holds"]) == (met, beats, held)
    assert row["in the 95% band"] == f"{round(4 * coverage)} of 4"


def test_a_study_keeps_its_suspects_unless_asked(tmp_path):
    """One of 20 runs trained badly: in the law by default, and left out by study.exclude=suspects."""
    trees(tmp_path / "l", SIZES, [2e6, 4e6, 8e6, 16e6], 1, lambda N, **_: 0.2 if SIZES[2] == N else 0.0)
    runs = read_runs(tmp_path / "l")
    kept, left = (Scaling(bootstrap=0, exclude=exclude).law_of(runs) for exclude in ("none", "suspects"))
    assert kept["n"] == 20 and kept["suspects"] and not kept["excluded"]
    assert left["n"] == 20 - len(left["suspects"]) and left["excluded"] == left["suspects"]
    assert {row["suspects"]: row["points"] for row in beside(kept)} == {"with": 20, "without": left["n"]}
    with pytest.raises(ValueError, match=r"study\.exclude=some"):
        Scaling(exclude="some")
