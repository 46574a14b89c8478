"""Frontiers of forgetting against target loss, and differences at equal target loss."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies import forgetting
from kleiber.studies.compare import frontier
from kleiber.studies.compare import rows as outcomes
from kleiber.studies.forgetting import Forgetting

from ..comparisons import write_arm, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "forgetting"
    write_study(home)
    return home


def test_frontiers_hold_no_point_that_another_beats():
    x, y = np.array([1.0, 2.0, 3.0, 2.5]), np.array([3.0, 1.0, 0.5, 2.0])
    assert frontier.nondominated(x, y).tolist() == [0, 1, 2]
    assert frontier.read_off(x, y, 1.5) == pytest.approx(2.0)
    assert np.isnan(frontier.read_off(x, y, 0.9)) and frontier.read_off(x, y, 9.0) == 0.5


def shifted(rows, by):
    """The same rows with all of a seed's forgetting moved, as a base run of its own would."""
    return rows.assign(F=rows["F"] + rows["seed"].map(by))


def test_what_the_runs_of_a_seed_share_widens_no_difference_between_methods(study):
    rows = outcomes.outcomes(read_runs(study))
    at = frontier.reference(rows, 0.02)
    plain, moved = (frontier.matched(row, at, 0.9) for row in (rows, shifted(rows, {0: 0.0, 1: 0.3, 2: -0.2})))
    for before, after in zip(plain, moved, strict=True):
        assert (after.less, after.half) == pytest.approx((before.less, before.half), abs=1e-9)
    by_name = {row.method: row for row in moved}["replay"]
    # Student's t of two degrees of freedom, 2.92, times the bases' sd over the root of three, twice
    assert by_name.hi - by_name.lo == pytest.approx(2 * 2.92 * 0.2517 / 3**0.5, rel=0.05), (
        "known no better than by three bases"
    )


def test_noise_is_that_of_runs_and_not_of_points_between_them(study):
    rows = outcomes.outcomes(read_runs(study))
    runs = rows[rows["method"] != "wise"]
    assert frontier.seed_noise(rows, "F") == frontier.seed_noise(runs, "F")
    left = frontier.within_seeds(rows, "F")
    assert left.df == (3 - 1) * (18 - 1) and left.sd == pytest.approx(0.004, rel=0.3)
    part = rows[~((rows["seed"] == 2) & (rows["method"] == "replay"))]
    assert frontier.within_seeds(part, "F").df == left.df - 9, "a missing run is a missing degree of freedom"


def test_many_methods_widen_each_comparison(study):
    rows = outcomes.outcomes(read_runs(study))
    at = frontier.reference(rows, 0.02)
    few = rows[rows["method"].isin(["none", "replay"])]
    (row,) = (m for m in frontier.matched(few.assign(F=few["F"]), at, 0.9) if m.method == "replay")
    table = frontier.at_target(few, at)
    noise = frontier.blocked(table)
    assert noise.df == 2 and row.half == pytest.approx(noise.half_width(0.9, 2 / 3))
    (longer,) = (m for m in frontier.matched(rows, at, 0.9) if m.method == "replay")
    models = frontier.at_target(rows, at)[["none", "replay", "l2sp"]].dropna(axis=1, how="all")
    assert longer.half == pytest.approx(frontier.blocked(models).half_width(1 - 0.1 / (len(models.columns)), 2 / 3))


def test_several_bases_of_one_seed_are_refused(tmp_path):
    """Their runs would pass for replicates of one setting."""
    write_study(tmp_path / "s", seeds=2)
    for seed in range(2):
        for lr in (0.003, 0.03):
            larger = tmp_path / "s" / f"larger-{lr}-{seed}"
            write_arm(larger, "none", 0.0, lr, seed, params=80_000, base=tmp_path / "s" / "other")
            content = json.loads((larger / "summary.json").read_text())
            content["stages"][0]["start_metrics"]["val/docs/loss"] = 1.8
            (larger / "summary.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"none with seed 0 starts from several bases.*1\.8000 to 2\.0000.*design.base"
    ):
        Forgetting().compare(read_runs(tmp_path / "s"))


def test_a_frontier_that_ends_before_the_target_is_said_to_bound_f(study):
    rows = outcomes.outcomes(read_runs(study))
    assert Forgetting().compare(read_runs(study))["complaints"] == []
    fast = frontier.averaged(rows[rows["lr"] > 0.02])
    slow = rows[(rows["lr"] < 0.02) & (rows["method"] == "none")].assign(F=9.0)  # beaten by every faster run
    points = frontier.averaged(pd.concat([rows[rows["lr"] > 0.02], slow]))
    assert "none" in frontier.bounded(fast, 2.04) and "none" in frontier.bounded(points, 2.04)
    (claim,) = forgetting.complaints(points, 2.04)
    assert claim["code"] == "bound" and "what others gain on plain fine-tuning" in claim["text"]


def test_a_method_that_reaches_the_loss_from_the_easiest_base_alone_is_not_first(study):
    """Its mean F is the least because that base forgets least; within the seed it gains less than replay does."""
    rows = shifted(outcomes.outcomes(read_runs(study)), {0: -0.4, 1: 0.0, 2: 0.4})
    at = frontier.reference(rows, 0.02)
    rows = rows[(rows["method"] != "l2sp") | (rows["seed"] == 0)]
    result = [method for method in frontier.matched(rows, at, 0.9) if method.method != "wise"]
    by_name = {method.method: method for method in result}
    assert by_name["l2sp"].F < by_name["replay"].F and by_name["l2sp"].less < by_name["replay"].less
    assert [method.method for method in result] == ["replay", "l2sp", "none"]
