"""Frontiers of forgetting against target loss, and differences at equal target loss."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.records.catalog import read_runs
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


def compared(rows, reference="none", equal="reference"):
    return frontier.EqualTarget(rows, reference, equal, 0.02)


@pytest.mark.slow
def test_what_the_runs_of_a_seed_share_changes_no_difference_between_methods(study):
    rows = outcomes.outcomes(read_runs(study))
    moved = shifted(rows, {0: 0.0, 1: 0.3, 2: -0.2})
    gaps = [[compared(table).differences("F", arm, "none") for arm in ("replay", "wise")] for table in (rows, moved)]
    for before, after in zip(*gaps, strict=True):
        assert before.to_numpy() == pytest.approx(after.to_numpy(), abs=1e-9)
    by_name = {row["method"]: row for row in compared(moved).levels(0.9)}["replay"]
    # Student's t of two degrees of freedom, 2.92, times the bases' sd over the root of three, twice
    assert by_name["hi"] - by_name["lo"] == pytest.approx(2 * 2.92 * 0.2517 / 3**0.5, rel=0.05), (
        "known no better than by three bases"
    )


def test_a_difference_is_minus_that_of_the_arms_exchanged(study):
    target = compared(outcomes.outcomes(read_runs(study)), equal="pair")
    for measure, matched in (("F", True), ("F", False), ("target", False)):
        ours, theirs = (
            target.differences(measure, *arms, matched) for arms in (("replay", "none"), ("none", "replay"))
        )
        assert (ours + theirs).abs().max() < 1e-12 and len(ours) == 3


def test_where_arms_are_compared(study):
    """At the best loss of the reference, of the arm that learns least, or of the weaker of the pair."""
    rows = outcomes.outcomes(read_runs(study))
    worse = rows["method"].map({"none": 0.0, "replay": 0.1, "l2sp": 0.2})
    rows = rows.assign(target=rows["target"] + worse).dropna(subset="target")
    best = {arm: part.groupby(["setting", "lr"])["target"].mean().min() for arm, part in rows.groupby("method")}
    assert best["l2sp"] > best["replay"] > best["none"]
    for equal, weaker in (("reference", "none"), ("pair", "replay"), ("weakest", "l2sp")):
        assert compared(rows, equal=equal).loss("replay", "none") == pytest.approx(1.02 * best[weaker])


def test_the_best_setting_has_the_most_seeds():
    """A better mean of fewer seeds is no comparison, and of scores the highest is the best."""
    rows = pd.DataFrame(
        [("a", 0.1, 1.0), ("a", 0.1, 1.2), ("a", 0.2, 0.3), ("a", 0.3, 2.0), ("a", 0.3, 2.0), ("b", 0.9, 5.0)],
        columns=["arm", "lr", "loss"],
    )
    lowest, highest = (frontier.best_settings(rows, ["arm"], ["lr"], "loss", higher) for higher in (False, True))
    assert lowest.to_dict("records") == [{"arm": "a", "lr": 0.1}, {"arm": "b", "lr": 0.9}]
    assert highest.to_dict("records") == [{"arm": "a", "lr": 0.3}, {"arm": "b", "lr": 0.9}]


def setting(method, lr, F, target, seeds=(0, 1, 2), shift=0.0):
    """Rows of one setting; `shift` is added to the target loss of each further seed."""
    return [
        {"method": method, "setting": "", "lr": lr, "tokens": 1e3, "seed": seed, "F": F + 0.001 * seed, "peak": F,
         "target": target + shift * seed, "relative": F, "target_tokens": 1e3, "seconds": 1.0, "memory": 1.0,
         "steps": 10, "tuned": 1, "N": 100, "run": f"{method}{lr}{seed}", "start": 2.0}
        for seed in seeds
    ]  # fmt: skip


def test_a_setting_at_which_seeds_diverged_decides_nothing_and_is_named():
    """Its survivors forget least, at the least target loss."""
    plain = [*setting("none", 0.01, 0.08, 1.95), *setting("none", 0.1, 0.12, 1.90)]
    ewc = setting("ewc", 0.01, 0.10, 1.93)
    diverging = setting("ewc", 0.3, 0.01, 1.92, seeds=(0, 1))
    without, target = (compared(pd.DataFrame([*plain, *ewc, *rows])) for rows in ([], diverging))
    assert target.left_out() == {"ewc": ["lr=0.3 (2 of 3 runs)"]} and without.left_out() == {}
    for measure, matched in (("F", True), ("F", False), ("target", False)):
        gaps = [each.differences(measure, "ewc", "none", matched) for each in (target, without)]
        assert gaps[0].equals(gaps[1])
    points = frontier.averaged(target.rows)
    assert [*target.chosen(points)["lr"]] == [*without.chosen(frontier.averaged(without.rows))["lr"]] == [0.01, 0.1]
    assert points[points["lr"] == 0.3]["best"].tolist() == [False]
    (verdict,) = (entry for entry in Forgetting().complaints(target) if entry["code"] == "left_out")
    assert "EWC" in verdict["text"] and "lr=0.3 (2 of 3 runs)" in verdict["text"]


def test_f_is_a_bound_where_the_frontier_of_one_seed_ends_before_the_target():
    """The mean frontier of replay ends at 1.94, that of its last seed at 1.88, and the arms are compared at 1.92."""
    rows = [*setting("none", 0.01, 0.10, 2.10, shift=-0.06), *setting("none", 0.1, 0.30, 1.94, shift=-0.06)]
    rows += [*setting("replay", 0.01, 0.06, 2.00, shift=-0.06), *setting("replay", 0.1, 0.12, 1.95, shift=-0.06)]
    target = compared(pd.DataFrame(rows))
    loss = target.loss("replay", "none")
    assert loss == pytest.approx(1.02 * 1.88)
    ends = {seed: float(x[-1]) for seed, (x, _) in target.by_seed["replay"].items()}
    assert ends == pytest.approx({0: 2.00, 1: 1.94, 2: 1.88}) and ends[2] < loss < ends[1]
    assert target.bounds("replay", "none") == (True, False) and target.bounded() == {"replay": (loss, 1)}
    assert target.is_bound("replay", loss, {2}) and not target.is_bound("replay", loss, {0, 1})
    levels = {row["method"]: row for row in target.levels(0.9)}
    assert (levels["replay"]["bound"], levels["replay"]["reference_bound"]) == ("at most", "")


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
    with pytest.raises(ValueError, match=r"none.*seed 0.*1\.8000.*2\.0000.*design\.base"):
        Forgetting().compare(read_runs(tmp_path / "s"))


@pytest.mark.slow
def test_a_frontier_that_ends_before_the_target_bounds_f(study):
    rows = outcomes.outcomes(read_runs(study))
    assert Forgetting().compare(read_runs(study))["complaints"] == []
    fast = rows[rows["lr"] > 0.02]
    slow = rows[(rows["lr"] < 0.02) & (rows["method"] == "none")].assign(F=9.0)  # beaten by every faster run
    for part in (fast, pd.concat([fast, slow])):
        target = compared(part)
        assert "none" in target.bounded() and target.bounds("l2sp", "none")[1]
        levels = {row["method"]: row for row in target.levels(0.9)}
        assert levels["none"]["bound"] == levels["l2sp"]["reference_bound"] == "at most"
        assert {row["bound"] for name, row in levels.items() if name not in target.bounded()} <= {""}
        complaints = Forgetting().complaints(target)
        assert "bound" in {verdict["code"] for verdict in complaints}


def test_a_method_that_reaches_the_loss_from_the_easiest_base_alone_is_not_first(study):
    """Its mean F is the least because that base forgets least; within the seed it gains less than replay does."""
    rows = shifted(outcomes.outcomes(read_runs(study)), {0: -0.4, 1: 0.0, 2: 0.4})
    rows = rows[(rows["method"] != "l2sp") | (rows["seed"] == 0)]
    target = compared(rows[rows["method"] != "wise"])
    levels = {row["method"]: row for row in target.levels(0.9)}
    gap = {arm: float(target.differences("F", arm, "none").mean()) for arm in ("replay", "l2sp")}
    assert levels["l2sp"]["F"] < levels["replay"]["F"] and gap["l2sp"] > gap["replay"]
    assert list(levels) == ["replay", "l2sp", "none"]
