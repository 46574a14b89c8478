"""The scaling study on a ladder with a known law: goals, suspects, and runs that are left out."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.law_report import suspects_table
from kleiber.studies.scaling import Scaling, held_out_errors
from kleiber.studies.study import content

from . import ladders
from .trunk_runs import SIZES, trees


@pytest.fixture
def ladder(tmp_path):
    trees(tmp_path / "l", SIZES, [2e6, 4e6, 8e6, 16e6], 2)
    return tmp_path / "l"


@pytest.mark.slow
def test_a_ladder_says_whether_its_goals_are_met(ladder):
    runs = read_runs(ladder)
    findings = Scaling(bootstrap=60).analyze(runs)
    rows = {row["held out"]: row for row in findings.tables["Held-out errors"]}
    assert (
        rows["largest size"]["met"]
        and rows["largest size"]["beats naive"]
        and set(rows) >= {"top 4x of compute", "two largest sizes"}
    )
    assert {exponent["approach"][0] for exponent in findings.law["approaches"]} >= {"2", "3"}
    ladders.write_tree(ladder / "gone", 0, 1_000_000, 6e6, {2e6: 1.0}, status="failed")
    assert content(findings, "l", read_runs(ladder))["missing"] == ["gone (failed)"]


@pytest.mark.parametrize(
    ("mare", "naive", "coverage", "met", "beats", "held"),
    [
        (0.01, True, 0.75, True, True, False),
        (0.01, False, 1.0, True, False, True),
        (0.02, True, 1.0, False, True, True),
    ],
)
def test_a_goal_is_met_by_its_number_alone(mare, naive, coverage, met, beats, held):
    entry = {"name": "largest size", "n_train": 20, "n_test": 4, "mare": mare, "bias": mare, "coverage": coverage}
    row = held_out_errors(
        ladders.law_record(holdouts=[{**entry, "naive": {"line": 0.015}, "beats_naive": naive}], level=0.95)
    )[0]
    assert (row["met"], row["beats naive"], row["coverage met"]) == (met, beats, held)
    assert row["in the 95% prediction interval"] == f"{round(4 * coverage)} of 4"


@pytest.mark.slow
def test_tokens_rounded_to_whole_steps_count_and_too_few_rows_are_not_fitted(tmp_path):
    trees(tmp_path / "l", SIZES[:3], [1.984e6, 4e6, 8e6], 1)
    runs = read_runs(tmp_path / "l")
    assert Scaling(bootstrap=0, min_tokens="2M").law_of(runs)["n"] == 9
    law = Scaling(bootstrap=0, min_tokens="4M").law_of(runs)
    assert law["n"] == 6
    assert [fit["min_tokens"] for fit in law["from_least_tokens"]] == [1.984e6, 4e6]  # three rows have 8M


@pytest.mark.slow
def test_a_study_keeps_its_suspects_unless_asked(tmp_path):
    """One of 20 runs trained badly: in the law by default, and left out by study.exclude=suspects."""
    trees(tmp_path / "l", SIZES, [2e6, 4e6, 8e6, 16e6], 1, lambda N, **_: 0.2 if SIZES[2] == N else 0.0)
    runs = read_runs(tmp_path / "l")
    kept, left = (Scaling(bootstrap=0, exclude=exclude).law_of(runs) for exclude in ("none", "suspects"))
    assert kept["n"] == 20 and kept["suspects"] and not kept["excluded"]
    assert left["n"] == 20 - len(left["suspects"]) and left["excluded"] == left["suspects"]
    assert {row["suspects"]: row["points"] for row in suspects_table(kept)} == {"with": 20, "without": left["n"]}
    with pytest.raises(ValueError, match=r"study\.exclude=some"):
        Scaling(exclude="some")


def test_runs_that_logged_too_few_steps_for_a_curve_have_no_figure_of_curves(tmp_path):
    pytest.importorskip("altair")
    for name, logged in (("few", 3), ("many", 40)):
        rows = [{"step": n, "train/tokens": 1e3 * n, "train/loss": 5.0 / n} for n in range(1, logged + 1)]
        fake_run(tmp_path / name, [{"params": 1000, "tokens": 1000 * logged}], rows=rows)
    study = Scaling()
    assert study.envelope(read_runs(tmp_path / "few")) == {} and [*study.envelope(read_runs(tmp_path / "many"))] == [
        "envelope"
    ]
