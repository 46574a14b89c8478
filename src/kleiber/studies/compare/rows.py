"""The runs of a comparison of retention methods as rows, from their summaries and configs: forgetting, losses, costs.

A row is one run, or one point on the line between its start and end (WiSE). Runs without a base are left out.
Means over seeds have Student's intervals with the noise pooled over all settings: two or three seeds determine the
noise of all settings together well enough, but not that of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.config.stages import quantity
from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import Estimate, estimate_around
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.types import Config, Json

Rows = Any  # a DataFrame, or a row or column of one; the stubs of pandas do not type what indexing returns

LOSS = "validation loss (nats per token)"  # label of an axis
PLAIN = "none"  # the method of plain fine-tuning
SCRATCH = "scratch"  # the start of a model without trained weights
REPLAY = (  # a sentence for the methods of studies that compare replay
    " Unless retention.replay.memory bounds it, replay draws from the whole training text of the earlier tasks, most "
    "of which the stages before need not have read: then it is further training on a mixture, not a memory."
)
OTHER = re.compile(r"(schedule|batch|optimizer)(\.(?!lr=).*)?=")


def outcomes(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each finished run that started from another one.

    Columns: method, setting, lr, seed, base, pretrained (tokens), replayed (share), kept (tokens of each earlier task
    that replay draws from); F, relative, peak (nats of the mean loss of the earlier tasks), target (mean loss of the
    new tasks), start and the loss of every task; tokens, target_tokens, seconds, memory. F is nan where the earlier
    tasks were not scored. Raises ValueError where no finished run started from another.
    """
    by_folder = {str(run.folder.absolute()): run for run in runs}
    kept = [run for run in runs if run.status == "finished" and continued(run)]
    suffixes = apart(kept)
    table = [row for run in kept for row in rows_of(run, by_folder, suffixes[run.name])]
    if not table:
        raise ValueError(
            "no fine-tuning run in this folder: the forgetting study compares runs that start from another run's "
            "checkpoint"
        )
    order = ["method", "setting", "lr", "tokens", "seed", "run"]
    return pd.DataFrame(table).sort_values(order, ignore_index=True)


def continued(run: Run) -> bool:
    """Whether the last stage of the run started from weights that other tasks had trained."""
    return bool(run.stage.get("start_metrics")) and bool(earlier_tasks(run))


def earlier_tasks(run: Run) -> list[str]:
    trained = set(run.stage.get("tasks") or [])
    return [task for task in (run.summary.get("R") or {}).get("tasks", []) if task not in trained]


def apart(runs: Sequence[Run]) -> dict[str, str]:
    """The overrides of schedule, optimizer and batch that not all runs have, as text by name of run."""
    overrides = {run.name: {line for line in run.overrides if OTHER.match(line)} for run in runs}
    common = set.intersection(*overrides.values()) if overrides else set()
    return {name: " ".join(sorted(lines - common)) for name, lines in overrides.items()}


def rows_of(run: Run, by_folder: Mapping[str, Run], suffix: str = "") -> list[Json]:
    """The rows of one run; `suffix` is appended to its setting."""
    stage, config = run.stage, run.config
    method, setting = described(config)
    setting = f"{setting} {suffix}".strip()
    share = replayed(config)
    spent = stage["steps"] * stage["batch_tokens"]
    common = {
        "run": run.name, "seed": run.summary.get("seed"), "lr": stage.get("lr"), "base": base_of(config),
        "N": (stage.get("params") or {}).get("active"), "tuned": (stage.get("params") or {}).get("trainable"),
        "pretrained": pretrained(stage, spent, base_of(config), by_folder),
        "tokens": spent, "target_tokens": spent * (1 - share),
        "replayed": share, "kept": kept(config), "steps": stage["steps"], "seconds": stage.get("seconds"),
        "memory": stage.get("peak_memory_bytes"),
    }  # fmt: skip
    new_tasks, before = list(stage["tasks"]), earlier_tasks(run)
    ends = {"val/": (method, setting)}
    for alpha in points_of_line(stage["metrics"]):
        ends[f"wise/{alpha}/"] = ("wise" if method == PLAIN else f"{method}+wise", f"{setting} a={alpha}".strip())
    table = []
    for prefix, (name, label) in ends.items():
        scored = {task: stage["metrics"].get(f"{prefix}{task}/loss") for task in (*new_tasks, *before)}
        row = {**common, "method": name, "setting": label, **losses(stage, scored, new_tasks, before)}
        row["relative"] = row["F"] / (untrained(run, before) - row["start"])
        if prefix != "val/":
            row["peak"] = float("nan")  # the line is walked after training: there is no trajectory of it
        table.append(row)
    return table


def losses(
    stage: Json, scored: Mapping[str, float | None], new_tasks: Sequence[str], before: Sequence[str]
) -> dict[str, float]:
    """Forgetting and target loss from the scores of one set of weights."""
    start = mean([stage["start_metrics"].get(f"val/{task}/loss") for task in before])
    during = [value for _, value in watched(stage, before)]
    end = mean([scored[task] for task in before])
    peak = float(np.max(during) - during[0]) if during else float("nan")
    task_losses = {f"loss/{task}": float("nan") if value is None else value for task, value in scored.items()}
    return {
        "F": end - start,
        "peak": peak,
        "start": start,
        "target": mean([scored[task] for task in new_tasks]),
        **task_losses,
    }


def watched(stage: Json, before: Sequence[str]) -> list[tuple[int, float]]:
    """(step, mean loss of the earlier tasks) at the evaluations during the stage that scored all of them."""
    curve = [
        (row["step"], mean([row.get(f"watch/{task}/loss") for task in before])) for row in stage.get("curve") or []
    ]
    return [(step, value) for step, value in curve if np.isfinite(value)]


def untrained(run: Run, before: Sequence[str]) -> float:
    """The earlier tasks' mean loss before any training, nan where it was not measured."""
    return mean([run.stage["metrics"].get(f"drift/{task}/untrained") for task in before])


def mean(values: Sequence[float | None]) -> float:
    """The mean; nan without values and where one is None."""
    return float(np.mean([float("nan") if value is None else value for value in values])) if values else float("nan")


def described(config: Config) -> tuple[str, str]:
    """The method and its setting: the names of the adapter and retention methods, and the values of their nodes.

    WiSE does not change training, so a run with WiSE alone counts as plain fine-tuning. Replay of text that the model
    generated is the method "generated".
    """
    nodes = {name: node for name, node in (config.get("retention") or {}).items() if node}
    names = [name for name in nodes if name != "wise"]
    parts = [setting for name in names for setting in settings(nodes[name])]
    names = ["generated" if name == "replay" and nodes[name].get("source") == "generated" else name for name in names]
    adapter = config.get("adapter")
    if adapter:
        names.insert(0, str(adapter["_target_"]).rsplit(".", 1)[-1].lower())
        parts = settings(adapter) + parts
    return "+".join(names) or PLAIN, " ".join(parts)


def settings(node: Config) -> list[str]:
    """The values of a retention or adapter node as text: `rank=8`, `freeze=router+layers.0`."""
    values = {key: "+".join(map(str, v)) if isinstance(v, list) else v for key, v in node.items() if v != []}
    return [f"{k}={v}" for k, v in values.items() if k[0] != "_" and isinstance(v, int | float | str) and v != "real"]


def replayed(config: Config) -> float:
    """The share of the stage's tokens that are of earlier tasks."""
    return float(((config.get("retention") or {}).get("replay") or {}).get("fraction", 0.0))


def kept(config: Config) -> float:
    """The most tokens of each earlier task that replay draws from; inf for all of its training text."""
    memory = ((config.get("retention") or {}).get("replay") or {}).get("memory")
    return math.inf if memory is None else float(quantity(memory))


def base_of(config: Config) -> str:
    return str((config.get("init") or {}).get("path", ""))


def pretrained(stage: Json, spent: float, base: str, by_folder: Mapping[str, Run]) -> float:
    """Training tokens before the stage: of the earlier stages of the run and of the run that it started from.

    nan where that run is not in `by_folder`.
    """
    before = float(stage.get("tokens") or 0) - spent
    if not base:
        return before
    run, name = base_run(Path(base).expanduser().absolute(), by_folder)
    if run is None:
        return before if before else float("nan")
    ends = [end for end in run.stages if name in (None, end.get("name"))]
    return before + (float(ends[-1].get("tokens") or 0) if ends else float("nan"))


def base_run(path: Path, by_folder: Mapping[str, Run]) -> tuple[Run | None, str | None]:
    """The run of a path RUN or RUN/STAGE, and the stage; a run of a moved sweep is found by the name of its folder."""
    named = {Path(folder).name: run for folder, run in by_folder.items()}
    for candidate in (path, path.parent):
        run = by_folder.get(str(candidate)) or named.get(candidate.name)
        if run is not None:
            return run, None if candidate == path else path.name
    return None, None


def points_of_line(metrics: Mapping[str, float]) -> list[str]:
    """The values alpha of the metrics `wise/<alpha>/...`, in ascending order."""
    return sorted({key.split("/")[1] for key in metrics if key.startswith("wise/")}, key=float)


def real_replay(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of plain fine-tuning, and of replay of the text of the earlier tasks with the largest memory."""
    replay, kept = rows["method"] == "replay", rows["kept"]
    return pd.DataFrame(rows[(rows["method"] == PLAIN) | (replay & (kept == kept[replay].max()))])


def beside(rows: pd.DataFrame, by: Sequence[str] = ()) -> list[float]:
    """For each row the steps of the plain runs, equal in `by`, that it is compared with; nan without plain runs.

    These have as many steps or, where replay was added to the budget (design.equal=target), as much new text.
    """
    keys = list(zip(*(rows[name] for name in by), strict=True)) or [()] * len(rows)
    plain: dict[tuple[float, ...], set[float]] = {}
    for key, steps, method in zip(keys, rows["steps"], rows["method"], strict=True):
        plain.setdefault(key, set()).update({steps} if method == PLAIN else ())
    nearest = []
    for key, steps, share in zip(keys, rows["steps"], rows["replayed"], strict=True):
        near = min(plain[key], key=lambda other, new=steps * (1 - share): abs(other - new), default=float("nan"))
        nearest.append(float(steps if steps in plain[key] else near))
    return nearest


def trajectories(runs: Sequence[Run]) -> pd.DataFrame:
    """F by step of every run, from the evaluations of the earlier tasks: method, setting, lr, seed, run, step, F."""
    points = []
    for run in runs:
        if run.status == "finished" and continued(run):
            method, setting = described(run.config)
            curve = watched(run.stage, earlier_tasks(run))
            same = {"method": method, "setting": setting, "lr": run.stage.get("lr"), "seed": run.summary.get("seed")}
            points += [{**same, "run": run.name, "step": step, "F": value - curve[0][1]} for step, value in curve]
    return pd.DataFrame(points)


def seed_means(rows: Rows, by: Sequence[str], value: str, level: float = 0.9) -> Rows:
    """A row for each setting: the columns `by`, mean, seeds, half (half-width of the interval of the mean), lo, hi.

    Branches of a trunk share the noise of their run: with a column `run` the degrees of freedom count runs, not rows.
    """
    grouped = rows.groupby(list(by), sort=True)[value]
    table = grouped.agg(["mean", "size"]).rename(columns={"size": "seeds"}).reset_index()
    spare = int((table["seeds"] - 1).sum())
    if spare:
        within = float(((rows[value] - grouped.transform("mean")) ** 2).sum())
        sd, factor = np.sqrt(within / spare), student_quantile(min(spare, repeated(rows, by)), level)
        table["half"] = factor * sd / np.sqrt(table["seeds"])
    else:
        table["half"] = np.nan
    return table.assign(lo=table["mean"] - table["half"], hi=table["mean"] + table["half"])


def repeated(rows: Rows, by: Sequence[str]) -> int:
    """The number of runs that repeat the settings of another, at least 1; the number of rows without a column `run`."""
    if "run" not in rows:
        return len(rows)
    settings = rows.assign(setting=rows.groupby(list(by)).ngroup()).groupby("run")["setting"]
    kinds = settings.agg(lambda places: tuple(sorted(places)))
    return max(1, len(kinds) - kinds.nunique())


def mean_of(row: Rows, unit: str) -> Estimate:
    """The mean of a row of `seed_means` with its interval."""
    return estimate_around(float(row["mean"]), float(row["half"]), int(row["seeds"]), unit)


def difference(first: Rows, second: Rows, unit: str) -> Estimate:
    """The difference first - second of two rows of `seed_means`."""
    half = float(np.hypot(first["half"], second["half"]))
    return estimate_around(float(first["mean"] - second["mean"]), half, int(first["seeds"]), unit)
