"""The continual study computes every metric of R as by hand, and compares methods paired by seed and order."""

import json

import pytest
import yaml

from kleiber.launch.main import main as launch
from kleiber.records.catalog import read_runs
from kleiber.studies import sequence_metrics
from kleiber.studies.continual import Continual
from kleiber.studies.study import PlannedPoint

from .ablation_runs import copied
from .sequence_runs import TASKS, study, write_sequence, write_study  # noqa: F401  (study is a fixture)


def decisions(record):
    """The decision of each claim about EWC, by its metric."""
    return {result.claim.measure: str(result.decision) for result in record["claims"]}


@pytest.mark.slow
def test_methods_are_compared_within_order_and_seed(study):  # noqa: F811
    record = Continual().compare(read_runs(study))
    gaps = {(gap["method"], gap["metric"]): gap for gap in record["gaps"]}
    gap = gaps["ewc", "forgetting"]
    assert gap["value"] == pytest.approx(-0.325) and gap["n"] == 4
    assert gap["hi"] - gap["lo"] < 1e-9, "what seeds and orders share is gone"
    assert decisions(record) == {
        "ACC": "supported",
        "LA": "undecided",
        "forgetting": "supported",
        "savings": "undecided",
    }
    assert {result.claim.equal for result in record["claims"]} == {"learning_rate"}
    findings = Continual().analyze(read_runs(study))
    assert "3 tasks in 2 orders with 2 seeds: EWC ends at a mean " in findings.answer and "supported" in findings.answer


def test_each_method_stands_at_its_best_setting(tmp_path):
    write_study(tmp_path / "s")
    folder = write_sequence(tmp_path / "s", "ewc", TASKS, 9, kept=0.9)
    content = json.loads((folder / "summary.json").read_text())
    content["stages"] = [{**stage, "lr": 0.5} for stage in content["stages"]]
    (folder / "summary.json").write_text(json.dumps(content))
    best = Continual().compare(read_runs(tmp_path / "s"))["best"]
    assert set(best[best["method"] == "ewc"]["lr"]) == {0.01}, "one run of a better setting is no comparison"


def test_tasks_of_the_start_are_upstream_and_not_averaged(tmp_path):
    write_sequence(tmp_path / "s", extra=(1.3,), start="base")
    row = sequence_metrics.sequence_rows(read_runs(tmp_path / "s"), 0.02).iloc[0]
    assert row["upstream"] == pytest.approx(0.3) and row["ACC"] == pytest.approx(-4.9 / 3)
    table = Continual().analyze(read_runs(tmp_path / "s")).tables["Forgetting by task"]
    assert {by_name["task"]: by_name["value"] for by_name in table} == pytest.approx(
        {"a": 1.0, "b": 0.3, "up (upstream)": 0.3}
    )


@pytest.mark.slow
def test_a_part_of_the_runs_is_told_as_such(tmp_path):
    write_sequence(tmp_path / "s", again=False)
    findings = Continual().analyze(read_runs(tmp_path / "s"))
    assert "plain fine-tuning ends at a mean loss of 1.633 nats, no comparison" in findings.answer
    assert {caveat["code"] for caveat in findings.caveats} == {"untuned", "alone", "regained", "unbalanced"}
    write_sequence(tmp_path / "s", "ewc", kept=0.5)
    findings = Continual().analyze(read_runs(tmp_path / "s"))
    assert "no interval: 1 seed" in findings.answer
    write_sequence(tmp_path / "s", "ewc", ["c", "a", "b"], kept=0.5)
    findings = Continual().analyze(read_runs(tmp_path / "s"))
    assert "partial" in {caveat["code"] for caveat in findings.caveats}
    with pytest.raises(ValueError, match="no finished run over a sequence"):
        Continual().compare([])


@pytest.mark.slow
@pytest.mark.long
def test_it_trains_every_method_over_a_sequence_small_and_continues(tmp_path, cache_dir, capsys):
    small = ["trainer=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=1024"]
    plan = ["eval.watch_tokens=1024", "batch.tokens=512", "design.seeds=1", "design.orders=1", "eval.every_steps=10"]
    command = ["study=continual", *small, *plan, f"root={tmp_path}"]
    assert launch(command) == 3, "one seed leaves every claim untested"
    runs = read_runs(tmp_path / "continual")
    assert len(runs) == 2 + 6 and {run.status for run in runs} == {"finished"}
    rows = Continual().compare(runs)["rows"]
    assert set(rows["method"]) == {"none", "replay", "l2sp", "ewc", "lwf", "agem"}
    assert rows["intransigence"].notna().all() and rows["BWT"].notna().all()
    capsys.readouterr()
    assert launch(command) == 3
    assert "8 of 8 cells are finished already" in capsys.readouterr().out


def test_an_order_for_each_place_of_each_task_is_balanced(tmp_path):
    for order in (TASKS, ["c", "a", "b"], ["b", "c", "a"]):
        write_sequence(tmp_path / "s", order=order)
    assert "unbalanced" not in {caveat["code"] for caveat in Continual().analyze(read_runs(tmp_path / "s")).caveats}


def test_who_does_not_regain_the_task_has_no_faster_savings(tmp_path):
    """Savings of those that did are no verdict on a method."""
    for seed in range(3):
        write_sequence(tmp_path / "s", "none", seed=seed)
        folder = write_sequence(tmp_path / "s", "ewc", seed=seed, kept=0.5)
        content = json.loads((folder / "summary.json").read_text())
        for place, row in enumerate(content["stages"][-1]["curve"]):  # back at once, or never
            row["val/a/loss"] = 9.0 if seed == 0 else 1.0 if place else 2.0
        (folder / "summary.json").write_text(json.dumps(content))
    record = Continual().compare(read_runs(tmp_path / "s"))
    (gap,) = (entry for entry in record["gaps"] if entry["metric"] == "savings")
    assert gap["n"] == 2 and gap["lost"] == 1
    assert decisions(record)["savings"] == "not tested" and decisions(record)["ACC"] == "supported"


@pytest.mark.slow
def test_sequences_over_other_tasks_are_left_out_by_name(study, tmp_path):  # noqa: F811
    write_study(tmp_path / "s", methods=(("none", 0.0), ("ewc", 0.5)))
    folder = write_sequence(tmp_path / "s", "ewc", TASKS, 7, kept=0.9)
    content = json.loads((folder / "summary.json").read_text())
    content["stages"] = content["stages"][:2]
    content["R"] |= {"stages": ["a", "b"], "matrix": content["R"]["matrix"][:2]}
    (folder / "summary.json").write_text(json.dumps(content))
    findings = Continual().analyze(read_runs(tmp_path / "s"))
    (caveat,) = (entry for entry in findings.caveats if entry["code"] == "other_tasks")
    assert caveat["text"].endswith(folder.name) and findings.answer == Continual().analyze(read_runs(study)).answer


@pytest.mark.slow
def test_a_rate_of_a_task_does_not_part_the_orders(tmp_path):
    write_study(tmp_path / "s")
    for folder in (tmp_path / "s").glob("scratch-*-*-?"):
        content, config = (json.loads((folder / "summary.json").read_text()), folder / "config.yaml")
        for stage in content["stages"]:
            stage["lr"] = {"a": 0.1}.get(stage["tasks"][0], 0.01)
        (folder / "summary.json").write_text(json.dumps(content))
        config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "optimizer": {"lr": 0.01}}))
    assert Continual().compare(read_runs(tmp_path / "s"))["best"]["order"].nunique() == 2


def test_claims_compare_any_two_methods_by_any_metric(tmp_path):
    write_study(tmp_path / "s", methods=(("none", 0.0), ("ewc", 0.5), ("replay", 0.9)))
    sides = {"of": {"method": "replay"}, "against": {"method": "ewc"}}
    absent = {**sides, "against": {"method": "lwf"}}
    asked = Continual(
        claims=[{"measure": "forgetting", **sides}, {"measure": "ACC", **sides}, {"measure": "LA", **absent}]
    )
    record = asked.compare(read_runs(tmp_path / "s"))
    forgetting, score, gone = record["claims"]
    gaps = {(gap["method"], gap["metric"]): gap["value"] for gap in record["gaps"]}
    assert [str(result.decision) for result in record["claims"]] == ["supported", "supported", "not tested"]
    assert forgetting.estimate.value == pytest.approx(gaps["replay", "forgetting"] - gaps["ewc", "forgetting"])
    assert score.estimate.value == pytest.approx(gaps["replay", "ACC"] - gaps["ewc", "ACC"])
    assert forgetting.claim.of == {"method": "replay", "start": "scratch"} and "LwF" in gone.why


@pytest.mark.parametrize(
    "wrong", [{"measure": "loss"}, {"measure": "ACC", "equal": "tokens"}, {"measure": "ACC", "against": None}]
)
def test_a_claim_that_compares_no_two_methods_is_refused(wrong):
    with pytest.raises(ValueError, match=r"study\.claims\[0\]"):
        Continual(claims=[{"of": {"method": "ewc"}, "against": {"method": "none"}, **wrong}])


def test_sequences_that_differ_in_a_key_without_a_setting_are_refused_when_read_and_in_the_plan(study):  # noqa: F811
    runs = read_runs(study)
    chain = next(run for run in runs if len(run.stages) > 1)
    twin = copied(chain, "twin", model={"width": 64})
    with pytest.raises(ValueError, match=r"model\.width"):
        Continual().analyze([*runs, twin])
    planned = {
        "optimizer": {"lr": 0.01}, "schedule": {"decay": 0.1}, "stages": {"chain": {"a": {}, "b": {}, "again": {}}},
    }  # fmt: skip
    points = [
        PlannedPoint(run.folder.with_name(name), {**run.config, **planned, **further}, 1e5, 1e6)
        for run, name, further in (
            (chain, "a", {}), (twin, "b", {}), (chain, "c", {"schedule": {"decay": 0.2}}), (chain, "d", {"seed": 7})
        )
    ]  # fmt: skip
    assert Continual().check_plan([points[0], *points[2:]]) == []
    with pytest.raises(ValueError, match=r"order a > b, seed 0\), a and b; they differ in model\.width"):
        Continual().check_plan(points)
