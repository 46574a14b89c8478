"""Runs of sequences of tasks with known score matrices R."""

from pathlib import Path

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies import sequence_metrics

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
    by_name = {
        "tasks": [*TASKS, *(["up"] if extra else [])], "stages": [entry["name"] for entry in stages],
        "metric": {task: f"val/{task}/loss" for task in TASKS} | ({"up": "val/up/loss"} if extra else {}),
        "higher_is_better": dict.fromkeys([*TASKS, "up"], False),
        "matrix": [*matrix, *([matrix[-1]] if again else [])], "baseline": [*BASELINE, *([1.0] if extra else [])],
    }  # fmt: skip
    return fake_run(folder, stages, config=config_of(start, retention), seed=seed, seconds=60.0, R=by_name)


def write_alone(home: Path, task: str, seed=0, lr=0.01, worse=0.0, start="scratch") -> None:
    row = {**stage(task, lr=lr), "name": "main", "metrics": {f"val/{task}/loss": ALONE[task] + worse + 0.01 * seed}}
    fake_run(home / f"{start}-alone-{task}-{lr}-{seed}", [row], config=config_of(start), seed=seed, seconds=9.0)


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


def sequence_row(study, method="none", order="a > b > c", seed=0):
    rows = sequence_metrics.sequence_rows(read_runs(study), 0.02)
    return rows[(rows["method"] == method) & (rows["order"] == order) & (rows["seed"] == seed)].iloc[0]
