"""A comparison with known forgetting: read, matched, judged and reported, with what is missing said."""

import json

import numpy as np
import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.studies import forgetting
from kleiber.studies.compare import frontier
from kleiber.studies.compare import rows as outcomes
from kleiber.studies.forgetting import Forgetting

from .comparisons import truth, write_arm, write_base, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "forgetting"
    write_study(home)
    return home


@pytest.fixture(scope="module")
def record(study):
    return Forgetting().compare(read_runs(study))


def test_runs_are_read_as_forgetting_and_target_loss(study):
    rows = outcomes.outcomes(read_runs(study))
    one = rows[(rows["method"] == "replay") & (rows["replayed"] == 0.05) & (rows["lr"] == 0.01)].iloc[0]
    F, target = truth("replay", 0.05, 0.01)
    assert (one["F"], one["target"]) == pytest.approx((F, target), abs=0.02)
    assert one["peak"] == pytest.approx(1.3 * one["F"]), "the trajectory peaks before its end"
    assert one["relative"] == pytest.approx(one["F"] / (5.0 - 2.0)), "a share of what the base had learned"
    assert one["setting"] == "fraction=0.05" and one["target_tokens"] == pytest.approx(0.95e6)
    assert one["pretrained"] == 4e6
    line = rows[(rows["method"] == "wise") & (rows["run"] == "none-0.01-0")]
    assert list(line["setting"]) == ["a=0", "a=0.5", "a=1"] and line["F"].iloc[0] == pytest.approx(0)
    assert not any(rows["run"].str.startswith("base")), "a base had nothing to forget"


def test_frontiers_hold_no_point_that_another_beats():
    x, y = np.array([1.0, 2.0, 3.0, 2.5]), np.array([3.0, 1.0, 0.5, 2.0])
    assert frontier.nondominated(x, y).tolist() == [0, 1, 2]
    assert frontier.read_off(x, y, 1.5) == pytest.approx(2.0)
    assert np.isnan(frontier.read_off(x, y, 0.9)) and frontier.read_off(x, y, 9.0) == 0.5


def test_methods_are_compared_where_they_learned_equally_much(record):
    best = truth("none", 0, 0.03)[1]
    assert record["matched_target"] == pytest.approx(1.02 * best, abs=0.01)
    order = [one["method"] for one in record["matched"]]
    assert order[0] == "replay"
    found = {one["method"]: one for one in record["matched"]}
    assert found["replay"]["hi"] < found["none"]["lo"] and found["replay"]["reached"] == 3
    exact = frontier.read_off(
        *map(np.array, zip(*[truth("none", 0, lr)[::-1] for lr in (0.003, 0.01, 0.03)], strict=True)),
        record["matched_target"],
    )
    assert found["none"]["lo"] < exact < found["none"]["hi"]
    assert record["seed_noise"]["F"] == pytest.approx(0.004, rel=0.3)


def shifted(rows, by):
    """The same rows with all of a seed's forgetting moved, as a base run of its own would."""
    return rows.assign(F=rows["F"] + rows["seed"].map(by))


def test_what_the_runs_of_a_seed_share_widens_no_difference_between_methods(study):
    rows = outcomes.outcomes(read_runs(study))
    at = frontier.reference(rows, 0.02)
    plain, moved = (frontier.matched(one, at, 0.9) for one in (rows, shifted(rows, {0: 0.0, 1: 0.3, 2: -0.2})))
    for before, after in zip(plain, moved, strict=True):
        assert (after.less, after.half) == pytest.approx((before.less, before.half), abs=1e-9)
    told = {one.method: one for one in moved}["replay"]
    # Student's t of two degrees of freedom, 2.92, times the bases' sd over the root of three, twice
    assert told.hi - told.lo == pytest.approx(2 * 2.92 * 0.2517 / 3**0.5, rel=0.05), (
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
    (one,) = (m for m in frontier.matched(few.assign(F=few["F"]), at, 0.9) if m.method == "replay")
    table = frontier.at_target(few, at)
    noise = frontier.blocked(table)
    assert noise.df == 2 and one.half == pytest.approx(noise.half_width(0.9, 2 / 3))
    (more,) = (m for m in frontier.matched(rows, at, 0.9) if m.method == "replay")
    models = frontier.at_target(rows, at)[["none", "replay", "l2sp"]].dropna(axis=1, how="all")
    assert more.half == pytest.approx(frontier.blocked(models).half_width(1 - 0.1 / (len(models.columns)), 2 / 3))


def test_text_that_the_model_wrote_is_a_method_of_its_own():
    node = {"_target_": "x", "fraction": 0.2, "source": "generated"}
    assert outcomes.described({"retention": {"replay": node}}) == ("generated", "fraction=0.2 source=generated")
    assert outcomes.described({"retention": {"replay": {**node, "source": "real"}}}) == ("replay", "fraction=0.2")


def test_what_is_frozen_tells_arms_apart():
    node = {"_target_": "kleiber.adapters.Freeze", "train": None}
    found = [outcomes.described({"adapter": {**node, "freeze": parts}}) for parts in (["router"], ["mlp", "norms"])]
    assert found == [("freeze", "freeze=router"), ("freeze", "freeze=mlp+norms")]


def test_several_bases_of_one_seed_are_refused(tmp_path):
    """Their runs would pass for replicates of one setting."""
    write_study(tmp_path / "s", seeds=2)
    for seed in range(2):
        for lr in (0.003, 0.03):
            larger = tmp_path / "s" / f"larger-{lr}-{seed}"
            write_arm(larger, "none", 0.0, lr, seed, params=80_000, base=tmp_path / "s" / "other")
            told = json.loads((larger / "summary.json").read_text())
            told["stages"][0]["start_metrics"]["val/docs/loss"] = 1.8
            (larger / "summary.json").write_text(json.dumps(told))
    with pytest.raises(
        ValueError, match=r"none with seed 0 goes on from several bases.*1\.8000 to 2\.0000.*design.base"
    ):
        Forgetting().compare(read_runs(tmp_path / "s"))


def test_a_frontier_that_ends_before_the_target_is_said_to_bound_f(study):
    rows = outcomes.outcomes(read_runs(study))
    assert Forgetting().compare(read_runs(study))["complaints"] == []
    fast = frontier.averaged(rows[rows["lr"] > 0.02])
    slow = rows[(rows["lr"] < 0.02) & (rows["method"] == "none")].assign(F=9.0)  # beaten by every faster run
    points = frontier.averaged(pd.concat([rows[rows["lr"] > 0.02], slow]))
    assert "none" in frontier.bounded(fast, 2.04) and "none" in frontier.bounded(points, 2.04)
    (told,) = forgetting.complaints(points, 2.04)
    assert told["code"] == "bound" and "what others gain on plain fine-tuning" in told["text"]


def test_claims_are_judged_with_intervals(record):
    told = {claim["code"]: claim for claim in record["claims"]}
    assert told["replay_monotone"]["holds"] is True and told["fast_forgets"]["holds"] is True
    assert told["replay_cheap"]["holds"] is True and told["replay_cheap"]["value"] == pytest.approx(0.0025, abs=0.004)
    assert told["averaging_F"]["value"] == pytest.approx(
        0.25 * np.mean([truth("none", 0, lr)[0] for lr in (0.003, 0.01, 0.03)]), abs=0.01
    )
    assert told["matched_replay"]["holds"] is True
    assert all(claim["text"].split(":")[0] in ("holds", "does not hold", "undecided") for claim in told.values())


def test_a_method_that_learns_less_is_not_ranked_by_what_it_forgets(tmp_path):
    write_study(tmp_path / "s", seeds=2)
    for seed in range(2):
        write_arm(tmp_path / "s" / f"strong{seed}", "l2sp", 5.0, 0.003, seed)
    for path in (tmp_path / "s").glob("l2sp*"):
        (path / "summary.json").unlink()
    found = Forgetting().compare(read_runs(tmp_path / "s"))["matched"]
    assert found[-1]["method"] == "l2sp" and found[-1]["reached"] == 0


def test_a_method_that_reaches_the_loss_from_the_easiest_base_alone_is_not_first(study):
    """Its mean F is the least because that base forgets least; within the seed it gains less than replay does."""
    rows = shifted(outcomes.outcomes(read_runs(study)), {0: -0.4, 1: 0.0, 2: 0.4})
    at = frontier.reference(rows, 0.02)
    rows = rows[(rows["method"] != "l2sp") | (rows["seed"] == 0)]
    found = [one for one in frontier.matched(rows, at, 0.9) if one.method != "wise"]
    told = {one.method: one for one in found}
    assert told["l2sp"].F < told["replay"].F and told["l2sp"].less < told["replay"].less
    assert [one.method for one in found] == ["replay", "l2sp", "none"]


def test_one_seed_gives_no_interval_and_no_verdict(tmp_path):
    write_study(tmp_path / "s", seeds=1)
    found = Forgetting().analyse(read_runs(tmp_path / "s"))
    rows = found.tables["At equal target loss"]
    assert {row["90%"] for row in rows if isinstance(row["F at equal target"], float)} == {"no interval"}
    assert {claim["holds"] for claim in found.verdicts} == {None}
    assert "without replicates" in found.headline


def test_the_report_has_figures_tables_and_what_is_missing(tmp_path, capsys):
    write_study(tmp_path / "s", seeds=2)
    write_arm(tmp_path / "s" / "unlucky", "l2sp", 0.7, 0.01, 0, status="failed")
    assert main(["report", str(tmp_path / "s")]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "s" / "findings.json").read_text())
    assert found["headline"] in said and "replay (F " in found["headline"] and "more than noise" in found["headline"]
    assert found["missing"] == ["unlucky (failed)"] and "unlucky (failed)" in said
    for name in ("pareto", "matched", "trajectory", "matrix"):
        assert (tmp_path / "s" / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "s" / "report.html").read_text()
    assert "fraction=0.05" in page and "at equal tokens" in page and 'src="http' not in page


def test_without_anything_to_compare_it_says_so(tmp_path):
    write_base(tmp_path / "s" / "base0", 0)
    with pytest.raises(ValueError, match="nothing could be forgotten"):
        Forgetting().compare(read_runs(tmp_path / "s"))
    write_arm(tmp_path / "s" / "one", "replay", 0.1, 0.01, 0)
    with pytest.raises(ValueError, match="plain fine-tuning"):
        Forgetting().compare(read_runs(tmp_path / "s"))


@pytest.mark.parametrize("options", [{"tolerance": -0.1}, {"level": 1.0}, {"max_cells": 0}, {"seeds": 0}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="study"):
        Forgetting(**options)
