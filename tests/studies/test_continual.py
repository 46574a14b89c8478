"""Sequences with a known R: every metric by hand, methods paired within order and seed, what is missing named."""

import json
from pathlib import Path

import pytest
import yaml
from fake_run import fake_run

from kleiber.launch.main import main as launch
from kleiber.records.catalog import read_runs
from kleiber.studies.compare import sequence_rows
from kleiber.studies.continual import Continual, matrices

# R of plain training over a > b > c, in nats, and before any training.
R = [[1.0, 3.0, 4.0], [1.6, 1.2, 3.5], [2.0, 1.5, 1.4]]
BASELINE = [5.0, 5.0, 5.0]
ALONE = {"a": 0.9, "b": 1.1, "c": 1.0}
TASKS = ["a", "b", "c"]


def config_of(start: str, retention=None) -> dict:
    return {"study": {"_target_": "kleiber.studies.Continual", "start": start}, "retention": retention, "seed": 0}


def stage(name: str, row=None, curve=(), lr=0.01, objective="clm", kind="loss") -> dict:
    metrics = {f"val/{task}/{kind}": value for task, value in zip(TASKS, row or (), strict=False)}
    task = "a" if name == "again" else name
    return {"name": name, "tasks": [task], "objective": objective, "lr": lr, "metrics": metrics, "curve": list(curve)}


def write_sequence(home: Path, method="none", order=TASKS, seed=0, kept=0.0, again=True, start="scratch", extra=()):
    """`kept` is the share of what plain training forgets that the method keeps; tasks are renamed by the order."""
    retention = None if method == "none" else {method: {"_target_": "x", "strength": 1.0}}
    folder = home / f"{start}-{method}-{'-'.join(order)}-{seed}"
    noise = 0.01 * seed
    rows = [[R[i][j] - (kept * (R[i][j] - R[j][j]) if i > j else 0) + noise for j in range(3)] for i in range(3)]
    place = [order.index(task) for task in TASKS]
    rows = [[row[j] for j in place] for row in rows]
    key = f"val/{order[0]}/loss"
    first = [{"step": step, key: value} for step, value in ((0, 5.0), (50, 2.0), (100, 1.0 + noise))]
    stages = [stage(name, rows[i], first if i == 0 else ()) for i, name in enumerate(order)]
    if again:
        relearned = [{"step": step, key: value} for step, value in ((0, 2.0 + noise), (20, 1.5), (40, 1.0 + noise))]
        stages.append({**stage("again", rows[-1], relearned), "tasks": [order[0]]})
    matrix = [[*row, *extra] for row in rows]
    told = {
        "tasks": [*TASKS, *(["up"] if extra else [])], "stages": [one["name"] for one in stages],
        "metric": {task: f"val/{task}/loss" for task in TASKS} | ({"up": "val/up/loss"} if extra else {}),
        "higher_is_better": dict.fromkeys([*TASKS, "up"], False),
        "matrix": [*matrix, *([matrix[-1]] if again else [])], "baseline": [*BASELINE, *([1.0] if extra else [])],
    }  # fmt: skip
    return fake_run(folder, stages, config=config_of(start, retention), seed=seed, seconds=60.0, R=told)


def write_alone(home: Path, task: str, seed=0, lr=0.01, worse=0.0, start="scratch") -> None:
    one = {**stage(task, lr=lr), "name": "main", "metrics": {f"val/{task}/loss": ALONE[task] + worse + 0.01 * seed}}
    fake_run(home / f"{start}-alone-{task}-{lr}-{seed}", [one], config=config_of(start), seed=seed, seconds=9.0)


def write_study(home: Path, seeds=2, methods=(("none", 0.0), ("ewc", 0.5)), **options) -> None:
    for seed in range(seeds):
        for task in TASKS:
            write_alone(home, task, seed)
            write_alone(home, task, seed, lr=0.1, worse=0.3)
        for method, kept in methods:
            for order in (TASKS, ["c", "a", "b"]):
                write_sequence(home, method, order, seed, kept, **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "continual"
    write_study(home)
    return home


def one(study, method="none", order="a > b > c", seed=0):
    rows = sequence_rows.outcomes(read_runs(study), 0.02)
    return rows[(rows["method"] == method) & (rows["order"] == order) & (rows["seed"] == seed)].iloc[0]


def test_every_metric_of_a_sequence_by_hand(study):
    row = one(study)
    assert row["ACC"] == pytest.approx(-(2.0 + 1.5 + 1.4) / 3)
    assert row["LA"] == pytest.approx(-(1.0 + 1.2 + 1.4) / 3)
    assert row["BWT"] == pytest.approx(-((2.0 - 1.0) + (1.5 - 1.2)) / 2) and row["forgetting"] == pytest.approx(0.65)
    assert row["FWT"] == pytest.approx(((5.0 - 3.0) + (5.0 - 3.5)) / 2)
    assert row["intransigence"] == pytest.approx(((1.0 - 0.9) + (1.2 - 1.1) + (1.4 - 1.0)) / 3)
    # 1.02 is reached at step 99 of the first stage, and at 20 + 20 * .48 / .5 of the last
    assert row["savings"] == pytest.approx(1 - (20 + 20 * 0.48 / 0.5) / 99)
    assert row["upstream"] != row["upstream"], "nothing was there before"


def test_the_order_of_stages_and_not_of_columns_decides(study):
    assert one(study, order="c > a > b").drop(["run", "order", "matrix", "intransigence"]).to_dict() == pytest.approx(
        one(study).drop(["run", "order", "matrix", "intransigence"]).to_dict(), nan_ok=True
    )
    assert one(study, order="c > a > b")["intransigence"] == pytest.approx((0.0 + 0.3 + 0.3) / 3)


def test_a_reference_is_that_of_the_seed_at_the_rate_that_is_best_on_average(study):
    assert one(study, seed=1)["intransigence"] == pytest.approx(one(study)["intransigence"])
    alone = sequence_rows.alone_scores(read_runs(study))
    assert sequence_rows.reference(alone, "scratch", "a", 7) == pytest.approx(-0.905), "the mean of the seeds"
    assert sequence_rows.reference(alone, "elsewhere", "a", 0) != sequence_rows.reference(alone, "elsewhere", "a", 0)


def test_methods_are_compared_within_order_and_seed(study):
    record = Continual().compare(read_runs(study))
    gaps = {(gap["method"], gap["metric"]): gap for gap in record["gaps"]}
    gap = gaps["ewc", "forgetting"]
    assert gap["difference"] == pytest.approx(-0.325) and gap["pairs"] == 4
    assert gap["hi"] - gap["lo"] < 1e-9, "what seeds and orders share is gone"
    codes = {claim["code"]: claim["holds"] for claim in record["claims"]}
    assert codes["forgetting_ewc"] is True and codes["acc_ewc"] is True
    found = Continual().analyse(read_runs(study))
    assert "3 tasks in 2 orders with 2 seeds: ewc ends at" in found.headline and "more than noise" in found.headline


def test_each_method_stands_at_its_best_setting(tmp_path):
    write_study(tmp_path / "s")
    folder = write_sequence(tmp_path / "s", "ewc", TASKS, 9, kept=0.9)
    told = json.loads((folder / "summary.json").read_text())
    told["stages"] = [{**stage, "lr": 0.5} for stage in told["stages"]]
    (folder / "summary.json").write_text(json.dumps(told))
    best = Continual().compare(read_runs(tmp_path / "s"))["best"]
    assert set(best[best["method"] == "ewc"]["lr"]) == {0.01}, "one run of a better setting is no comparison"


def test_tasks_of_the_start_are_upstream_and_not_averaged(tmp_path):
    write_sequence(tmp_path / "s", extra=(1.3,), start="base")
    row = sequence_rows.outcomes(read_runs(tmp_path / "s"), 0.02).iloc[0]
    assert row["upstream"] == pytest.approx(0.3) and row["ACC"] == pytest.approx(-4.9 / 3)
    table = Continual().analyse(read_runs(tmp_path / "s")).tables["Forgetting by task"]
    assert {told["task"]: told["forgetting"] for told in table} == pytest.approx(
        {"a": 1.0, "b": 0.3, "up (upstream)": 0.3}
    )


def test_heads_of_their_own_tell_no_forward_transfer(tmp_path):
    folder = write_sequence(tmp_path / "s", again=False)
    text = (folder / "summary.json").read_text()
    text = text.replace("/loss", "/accuracy").replace('"clm"', '"classify"').replace("false", "true")
    (folder / "summary.json").write_text(text)
    rows = sequence_rows.outcomes(read_runs(tmp_path / "s"), 0.02)
    row = rows.iloc[0]
    assert row["FWT"] != row["FWT"] and row["ACC"] == pytest.approx(4.9 / 3) and row["kind"] == "accuracy"
    shown = matrices(rows)
    assert shown["score"].iloc[-1] == pytest.approx(1.4) and shown["change"].isna().sum() == 3


def test_scores_without_a_common_mean_are_refused(tmp_path):
    folder = write_sequence(tmp_path / "s")
    told = json.loads((folder / "summary.json").read_text())
    told["R"]["metric"]["b"] = "val/b/accuracy"
    (folder / "summary.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="accuracy and loss, which have no mean"):
        Continual().compare(read_runs(tmp_path / "s"))


def test_a_part_of_the_runs_is_told_as_such(tmp_path):
    write_sequence(tmp_path / "s", again=False)
    found = Continual().analyse(read_runs(tmp_path / "s"))
    assert "none ends at a mean of 1.6333 nats, no comparison" in found.headline
    assert {one["code"] for one in found.verdicts} == {"untuned", "alone", "regained", "unbalanced"}
    write_sequence(tmp_path / "s", "ewc", kept=0.5)
    found = Continual().analyse(read_runs(tmp_path / "s"))
    assert "no interval of one pair" in found.headline
    write_sequence(tmp_path / "s", "ewc", ["c", "a", "b"], kept=0.5)
    found = Continual().analyse(read_runs(tmp_path / "s"))
    assert "partial" in {one["code"] for one in found.verdicts}
    with pytest.raises(ValueError, match="no finished run over a sequence"):
        Continual().compare([])


def test_its_figures_are_drawn_for_each_start(study, tmp_path):
    assert set(Continual().analyse(read_runs(study)).figures) == {"metrics", "matrix", "first_task"}
    write_sequence(tmp_path / "s", again=False)
    write_sequence(tmp_path / "s", again=False, start="base")
    found = Continual().analyse(read_runs(tmp_path / "s"))
    assert set(found.figures) == {f"{name}-{s}" for name in ("metrics", "matrix", "first_task") for s in
                                  ("scratch", "base")}  # fmt: skip
    drawn = {name: json.dumps(make().to_dict()) for name, make in found.figures.items()}
    assert "from base" in drawn["matrix-base"] and "ACC (higher is better)" in drawn["metrics-scratch"]


@pytest.mark.parametrize("options", [{"tolerance": -0.1}, {"level": 1.0}, {"max_cells": 0}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="study"):
        Continual(**options)


@pytest.mark.slow
def test_it_trains_every_method_over_a_sequence_small_and_continues(tmp_path, cache_dir, capsys):
    small = ["trainer=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=1024"]
    plan = ["eval.watch_tokens=1024", "batch.tokens=512", "design.seeds=1", "design.orders=1", "eval.every_steps=10"]
    command = ["study=continual", *small, *plan, f"root={tmp_path}"]
    assert launch(command) == 0, capsys.readouterr().err
    runs = read_runs(tmp_path / "continual")
    assert len(runs) == 2 + 6 and {run.status for run in runs} == {"finished"}
    rows = Continual().compare(runs)["rows"]
    assert set(rows["method"]) == {"none", "replay", "l2sp", "ewc", "lwf", "agem"}
    assert rows["intransigence"].notna().all() and rows["BWT"].notna().all()
    capsys.readouterr()
    assert launch(command) == 0
    assert "8 of 8 cells are finished already" in capsys.readouterr().out


def test_an_order_for_each_place_of_each_task_is_balanced(tmp_path):
    for order in (TASKS, ["c", "a", "b"], ["b", "c", "a"]):
        write_sequence(tmp_path / "s", order=order)
    assert "unbalanced" not in {one["code"] for one in Continual().analyse(read_runs(tmp_path / "s")).verdicts}


def test_who_does_not_regain_the_task_has_no_faster_savings(tmp_path):
    """Savings of those that did are no verdict on a method."""
    for seed in range(3):
        write_sequence(tmp_path / "s", "none", seed=seed)
        folder = write_sequence(tmp_path / "s", "ewc", seed=seed, kept=0.5)
        told = json.loads((folder / "summary.json").read_text())
        for place, row in enumerate(told["stages"][-1]["curve"]):  # back at once, or never
            row["val/a/loss"] = 9.0 if seed == 0 else 1.0 if place else 2.0
        (folder / "summary.json").write_text(json.dumps(told))
    record = Continual().compare(read_runs(tmp_path / "s"))
    (gap,) = (one for one in record["gaps"] if one["metric"] == "savings")
    assert gap["pairs"] == 2 and gap["lost"] == 1
    (claim,) = (one for one in record["claims"] if one["code"] == "savings_ewc")
    assert claim["holds"] is None and "1 sequences more have none" in claim["text"]
    assert next(one for one in record["claims"] if one["code"] == "acc_ewc")["holds"] is True


def test_sequences_over_other_tasks_are_left_out_by_name(study, tmp_path):
    write_study(tmp_path / "s", methods=(("none", 0.0), ("ewc", 0.5)))
    folder = write_sequence(tmp_path / "s", "ewc", TASKS, 7, kept=0.9)
    told = json.loads((folder / "summary.json").read_text())
    told["stages"] = told["stages"][:2]
    told["R"] |= {"stages": ["a", "b"], "matrix": told["R"]["matrix"][:2]}
    (folder / "summary.json").write_text(json.dumps(told))
    found = Continual().analyse(read_runs(tmp_path / "s"))
    (verdict,) = (one for one in found.verdicts if one["code"] == "other_tasks")
    assert verdict["text"].endswith(folder.name) and found.headline == Continual().analyse(read_runs(study)).headline


def test_a_rate_of_a_task_does_not_part_the_orders(tmp_path):
    write_study(tmp_path / "s")
    for folder in (tmp_path / "s").glob("scratch-*-*-?"):
        told, config = (json.loads((folder / "summary.json").read_text()), folder / "config.yaml")
        for stage in told["stages"]:
            stage["lr"] = {"a": 0.1}.get(stage["tasks"][0], 0.01)
        (folder / "summary.json").write_text(json.dumps(told))
        config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "optimizer": {"lr": 0.01}}))
    assert Continual().compare(read_runs(tmp_path / "s"))["best"]["order"].nunique() == 2


def test_arms_that_differ_in_their_schedule_are_two_settings(tmp_path):
    for schedule in ("wsd", "constant"):
        folder = write_sequence(tmp_path / schedule, "none")
        (folder / "overrides.yaml").write_text(yaml.safe_dump([f"schedule={schedule}", "optimizer.lr=0.01", "seed=0"]))
        folder.rename(folder.with_name(f"{folder.name}-{schedule}"))
    rows = sequence_rows.outcomes(read_runs(tmp_path), 0.02)
    assert set(rows["setting"]) == {"schedule=wsd", "schedule=constant"}
