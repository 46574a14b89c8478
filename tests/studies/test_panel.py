"""Panels find what was planted, guard their claims, refuse what they cannot read, and cover as often as they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kleiber.config.errors import ConfigError
from kleiber.config.targets import build
from kleiber.records.catalog import read_runs
from kleiber.studies.claims import decide_together
from kleiber.studies.compare.arms import Unready
from kleiber.studies.panel import Panel
from kleiber.studies.panel_declaration import Key, Measure
from kleiber.studies.panel_table import RESERVED, SAME
from kleiber.studies.panel_view import View
from kleiber.studies.study import PlannedPoint

from .ablation_runs import copied
from .panels import LOSS, decisions, plant

NOISE = [0.0, 0.2, -0.1]
ARMS = ("plain", "new")
BASE = {
    "keys": {"arm": "study.arm", "size": "model.width"}, "measures": {"loss": LOSS}, "equal": "learning_rate",
    "samples": ["seed"],
}  # fmt: skip


def loss(arm, size, seed):
    """The new arm is better by 0.1, and by another 0.1 at the larger size; seeds share their noise."""
    return 3.0 - 0.1 * (arm == "new") * (1 + (size == 64)) + NOISE[seed] + 0.001 * seed * (arm == "new")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    for arm in ARMS:
        for size in (32, 64):
            for seed in range(3):
                design = {"arms": {name: {} for name in ARMS}}
                plant(folder, f"{arm}{size}", {LOSS: loss(arm, size, seed)}, seed, arm=arm, model={"width": size},
                      design=design)  # fmt: skip
    return read_runs(folder)


def panel(*claims, **options):
    return Panel(**{**BASE, "claims": claims, **options})


def results(runs, *claims, **options):
    return panel(*claims, **options).analyze(runs).claims


def test_a_planted_difference_and_interaction_are_found(runs):
    difference = {"of": {"arm": "new"}, "against": {"arm": "plain"}}
    interaction = {"of": {"arm": "new", "size": 64}, "against": {"arm": "plain"}, "than": {"size": 32}}
    first, second = results(runs, difference, interaction)
    assert first.decision == second.decision == "supported"
    assert first.estimate.value == pytest.approx(-0.149) and first.estimate.n == 3
    assert second.estimate.value == pytest.approx(-0.1) and second.estimate.hi < -0.09


def test_sides_are_paired_over_keys_that_a_claim_leaves_open(runs):
    lacking = [run for run in runs if not run.name.startswith("new64")]
    (result,) = results(lacking, {"of": {"arm": "new"}, "against": {"arm": "plain"}})
    assert result.estimate.value == pytest.approx(-0.099), "the larger size has no counterpart, so it is left out"
    (both,) = results(runs, {"of": {"arm": "new"}, "against": {"arm": "plain"}}, samples=["size", "seed"])
    assert both.estimate.n == 6


def test_a_level_is_claimed_relative_to_a_number(runs):
    level = {"of": {"arm": "new", "size": 64}, "less": 2.0, "direction": "higher"}
    (result,) = results(runs, level)
    assert result.decision == "supported" and result.claim.equal is None, "one side has nothing to be equal to"
    assert result.estimate.value == pytest.approx(0.8 + sum(NOISE) / 3 + 0.001)


def test_each_and_not_make_a_claim_for_every_value(runs):
    each = {"of": {}, "each": {"arm": {"not": ["plain"]}, "size": "all"}, "against": {"arm": "plain"}}
    found = results(runs, each)
    assert [result.claim.of for result in found] == [{"arm": "new", "size": size} for size in (32, 64)]
    assert found[0].level == pytest.approx(0.9**0.5), "two claims without a group in common share the error rate of 0.1"
    sizes = {"of": {"arm": "new", "size": "largest"}, "against": {"size": "smallest"}}
    (extreme,) = results(runs, sizes, samples=["size", "seed"])
    assert extreme.estimate.n == 3, "a key that a claim states makes no samples"
    assert extreme.claim.of["size"] == 64 and extreme.claim.against == {"size": 32}


def test_lists_of_values_are_averaged(runs):
    (result,) = results(runs, {"of": {"size": [32, 64]}, "against": {"arm": "plain"}, "each": {"arm": ["new"]}})
    assert result.estimate.value == pytest.approx(-0.149)


def with_stage(runs, arm, **stage):
    """The runs, of which those of an arm have other values of their stage."""
    changed = []
    for run in runs:
        copy = copied(run, run.name)
        if run.config["study"]["arm"] == arm:
            stages = [{**run.summary["stages"][0], **stage}]
            copy = type(copy)(copy.folder, copy.status, {**run.summary, "stages": stages}, copy.archived)
        changed.append(copy)
    return changed


@pytest.mark.parametrize("stage", [{"lr": 0.05}, {"tokens": 2_000_000}])
def test_arms_of_unequal_rates_or_tokens_are_not_tested(runs, stage):
    difference = {"of": {"arm": "new"}, "against": {"arm": "plain"}}
    (equal,) = results(runs, difference)
    (result,) = results(with_stage(runs, "new", **stage), difference)
    assert (str(equal.decision), str(result.decision)) == ("supported", "not tested")
    assert equal.question.tuned is False and result.estimate.value == equal.estimate.value


def test_arms_that_are_tuned_for_another_quantity_need_five_rates(runs):
    (result,) = results(runs, {"of": {"arm": "new"}, "against": {"arm": "plain"}}, equal="flops")
    assert result.decision == "not tested" and "learning rate" in result.why


def test_measures_of_the_same_runs_and_runs_after_their_start_need_nothing_equal(tmp_path):
    for seed in range(3):
        plant(tmp_path, "base", {"a/x": 1.0, "a/y": 2.0 + NOISE[seed] / 9}, seed, arm="base")
        start = {"path": str(tmp_path / f"base-{seed}" / "main")}
        plant(tmp_path, "tuned", {"a/x": 1.5, "a/y": 2.0}, seed, arm="tuned", init=start, stage={"lr": 0.9})
    options = {"keys": {"arm": "study.arm"}, "measures": {"m": "a/{kind}"}}
    kinds = {"of": {"kind": "y"}, "against": {"kind": "x"}, "direction": "higher", "each": {"arm": ["base"]}}
    tuned = {"of": {"arm": "tuned", "kind": "x"}, "against": {"arm": "base"}, "direction": "higher"}
    found = Panel(**options, claims=[kinds, tuned]).analyze(read_runs(tmp_path)).claims
    assert [str(result.decision) for result in found] == ["supported", "supported"]
    assert [result.claim.equal for result in found] == [None, None]


def test_runs_that_are_not_finished_decide_nothing(runs):
    waiting = [*runs, copied(runs[0], "later", seed=7)]
    waiting[-1] = type(waiting[-1])(waiting[-1].folder, "failed", {**runs[0].summary, "status": "failed"},
                                    waiting[-1].archived)  # fmt: skip
    findings = panel({"of": {"arm": "new"}, "against": {"arm": "plain"}}).analyze(waiting)
    assert decisions(findings) == ["not tested"] and "1 of 13" in findings.claims[0].why


def test_two_runs_of_one_place_are_refused_in_the_plan_and_when_they_are_read(runs):
    twin = copied(runs[0], "twin", optimizer={"lr": 0.5})
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        panel().analyze([*runs, twin])
    points = [PlannedPoint(run.folder, run.config, 1e5, 1e6) for run in (*runs, twin)]
    assert panel().check_plan(points[:-1]) == []
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        panel().check_plan(points)


def test_sizes_of_a_plan_are_told_apart_by_a_key_of_the_stage(runs):
    points = [
        PlannedPoint(run.folder, {**run.config, "study": {"arm": "a"}}, N, 1e6)
        for run, N in zip(runs[:2], (1e5, 2e5), strict=True)
    ]
    points = [PlannedPoint(p.folder, {**p.config, "seed": 0, "data": {"x": p.N}}, p.N, p.D) for p in points]
    sized = panel(keys={"arm": "study.arm", "size": "stage.params.total"})
    assert sized.check_plan(points) == []
    with pytest.raises(ValueError, match=r"data\.x"):
        panel(keys={"arm": "study.arm"}).check_plan(points)


WRONG = {
    "keys": ({"arm": {"sourc": "study.arm"}}, "study.keys.arm.sourc"),
    "measures": ({"loss": {"source": LOSS, "bettr": "lower"}}, "study.measures.loss.bettr"),
    "samples": (["sed"], "study.samples"),
    "equal": ("everything", "study.equal"),
    "means": ([{"title": "Means", "by": ["arms"]}], r"study\.means\[0\]\.by"),
    "where": ([{"title": "Means", "where": {"arm": {"nott": ["new"]}}}], r"study\.means\[0\]: arm"),
    "title": ([{"title": "Means"}, {"title": "Means"}], r"study\.means\[1\]\.title"),
    "contrasts": ([{"title": "Gaps", "of": {}, "against": {"amr": "plain"}}], r"study\.contrasts\[0\]"),
    "claims": ([{"of": {"arm": "new"}, "against": {"amr": "plain"}}], r"study\.claims\[0\]"),
    "figures": ([{"name": "a", "title": "A", "form": "pie"}], r"study\.figures\[0\]\.form=pie"),
    "answer": ({"text": "{gap}", "values": {}}, r"study\.answer"),
}


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_declaration_is_refused_before_any_run_with_its_key(option):
    value, key = WRONG[option]
    with pytest.raises(ValueError, match=key):
        Panel(**{**BASE, {"where": "means", "title": "means"}.get(option, option): value})
    with pytest.raises(ValueError, match=r"study\.measures"):
        Panel()


def test_a_claim_about_another_measure_or_about_no_group_is_refused():
    with pytest.raises(ValueError, match=r"study\.claims\[0\]\.measure"):
        panel({"of": {"arm": "new"}, "measure": "lss"})
    with pytest.raises(ValueError, match=r"study\.claims\[0\]\.equal"):
        panel({"of": {"arm": "new"}, "against": {"arm": "plain"}, "equal": "target_loss"})
    with pytest.raises(ValueError, match=r"study\.claims\[1\]: .*of="):
        panel({"of": {"arm": "new"}}, {"against": {"arm": "new"}})


def test_sources_and_values_that_no_planned_run_has_are_told_before_training():
    def points(arms):
        configs = [{"study": {"arm": arm}, "model": {"width": 32}, "seed": 0} for arm in arms]
        return [PlannedPoint(Path(str(at)), config, 1e5, 1e6) for at, config in enumerate(configs)]

    claim = {"of": {"arm": "new"}, "against": {"arm": "plain"}}
    assert panel(claim).check_plan(points(ARMS)) == []
    (warning,) = panel(claim, {**claim, "against": {"arm": "plane"}}).check_plan(points(ARMS))
    assert "study.claims[1]" in warning and "arm=plane" in warning
    with pytest.raises(ValueError, match=r"study\.keys\.size: .*model\.wdth.* Did you mean 'model\.width'"):
        panel(keys={"arm": "study.arm", "size": "model.wdth"}).check_plan(points(ARMS))


@pytest.mark.slow
def test_a_wrong_declaration_ends_a_command_with_exit_code_2(tmp_path, capsys):
    from kleiber.launch.main import main

    command = ["study=panel", "study.measures={loss: loss}", "study.keys={arm: study.arm}", f"root={tmp_path}"]
    assert (
        main(
            [
                *command,
                "design.arms={a: {}, b: {seed: 9}}",
                "design.lrs=[0.01]",
                "study.claims=[{of: {amr: a}}]",
                "dry_run=true",
            ]
        )
        == 2
    )
    assert "study.claims[0]" in capsys.readouterr().err


def test_the_config_of_a_panel_is_checked_key_by_key():
    from kleiber.config.check import check_node

    node = {"_target_": "kleiber.studies.Panel", **BASE}
    check_node("study", node)
    assert build(node).equal == "learning_rate"
    with pytest.raises(ConfigError, match=r"study\.measure\b"):
        check_node("study", {**node, "measure": "loss"})


def simulated(rng, effects):
    """A view of simulated runs: four arms with effects, six seeds with common and own noise."""
    common = rng.normal(size=6)
    table = pd.DataFrame(
        {"run": f"{arm}-{seed}", "seed": seed, "base": "", "measure": "loss", "metric": "loss", "arm": arm,
         "value": effect + common[seed] + 0.3 * rng.normal()}
        for arm, effect in effects.items() for seed in range(6)
    )  # fmt: skip
    assert {*RESERVED} <= {*table.columns}
    table = table.assign(**{f"{SAME}learning_rate": 0.01, f"{SAME}tokens": 1e6})
    measures = {"loss": Measure("loss", ["loss"], "loss", "nats", "lower")}
    return View(
        table=table, keys=[Key("arm", ["study.arm"])], measures=measures, tables={}, arms=[*effects], samples=["seed"],
        level=0.9, equal="learning_rate",
    )  # fmt: skip


@pytest.mark.slow
def test_all_intervals_of_a_study_hold_together_as_often_as_its_level_says():
    rng, effects = np.random.default_rng(0), {"a": 0.0, "b": 0.2, "c": -0.1, "d": 0.0}
    nodes = [{"of": {}, "each": {"arm": ["b", "c", "d"]}, "against": {"arm": "a"}}]
    covered = 0
    for _ in range(400):
        results = decide_together(simulated(rng, effects).questions(nodes, Unready()), 0.9)
        estimates = {str(result.claim.of["arm"]): result.estimate for result in results}
        covered += all(estimate.lo <= effects[arm] <= estimate.hi for arm, estimate in estimates.items())
    assert 0.88 <= covered / 400 <= 0.97
