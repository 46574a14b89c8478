"""What each run of a comparison of retention methods cost and kept, as rows: read from summaries and configs alone.

A row is one run, or one point of its line between start and end (WiSE). It refuses runs that started from nothing: they
had nothing to forget, and are the bases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.config.budget import quantity
from kleiber.records.catalog import Run
from kleiber.studies.forgetting_metrics import upstream

PLAIN = "none"
REPLAY = (  # for the methods of whoever compares it
    " Unless retention.replay.memory bounds it, replay draws from the whole training text of the earlier tasks, most "
    "of which the stages before need not have read: then it is further training on a mixture, not a memory."
)
OTHER = re.compile(r"(schedule|batch|optimizer)(\.(?!lr=).*)?=")


def outcomes(runs: Sequence[Run]) -> pd.DataFrame:
    """A row each: method, setting, lr, seed, base, pretrained, replayed share, kept (tokens of each earlier task that
    replay draws from); F, relative, peak (nats of the earlier tasks' mean loss), target (mean loss of the new ones),
    start and every task's loss; tokens, target_tokens, seconds, memory.

    F is `nan` where the earlier tasks were not scored. Errors: ValueError when no finished run started from another.
    """
    known = {str(run.folder.absolute()): run for run in runs}
    kept = [run for run in runs if run.status == "finished" and continued(run)]
    more = apart(kept)
    found = [row for run in kept for row in rows_of(run, known, more[run.name])]
    if not found:
        raise ValueError("no finished run here started from another one: nothing could be forgotten")
    order = ["method", "setting", "lr", "tokens", "seed", "run"]
    return pd.DataFrame(found).sort_values(order, ignore_index=True)


def continued(run: Run) -> bool:
    """Whether the run's last stage began with what it could forget."""
    return bool(run.stage.get("start_metrics")) and bool(earlier_tasks(run))


def earlier_tasks(run: Run) -> list[str]:
    own = set(run.stage.get("tasks") or [])
    return [task for task in (run.summary.get("R") or {}).get("tasks", []) if task not in own]


def apart(runs: Sequence[Run]) -> dict[str, str]:
    """By name of run, what tells it from others beside method, learning rate and seed: the overrides of schedule,
    optimizer and batch that not all of them have."""
    told = {run.name: {line for line in run.overrides if OTHER.match(line)} for run in runs}
    common = set.intersection(*told.values()) if told else set()
    return {name: " ".join(sorted(lines - common)) for name, lines in told.items()}


def rows_of(run: Run, known: Mapping[str, Run], more: str = "") -> list[dict[str, Any]]:
    """`more` is part of the setting."""
    stage, config = run.stage, run.config
    method, setting = described(config)
    setting = f"{setting} {more}".strip()
    share = replayed(config)
    spent = stage["steps"] * stage["batch_tokens"]
    common = {
        "run": run.name, "seed": run.summary.get("seed"), "lr": stage.get("lr"), "base": base_of(config),
        "N": (stage.get("params") or {}).get("active"), "tuned": (stage.get("params") or {}).get("trainable"),
        "pretrained": pretrained(stage, spent, base_of(config), known),
        "tokens": spent, "target_tokens": spent * (1 - share),
        "replayed": share, "kept": kept(config), "steps": stage["steps"], "seconds": stage.get("seconds"),
        "memory": stage.get("peak_memory_bytes"),
    }  # fmt: skip
    own, before = list(stage["tasks"]), earlier_tasks(run)
    ends = {"val/": (method, setting)}
    for alpha in points_of_line(stage["metrics"]):
        ends[f"wise/{alpha}/"] = ("wise" if method == PLAIN else f"{method}+wise", f"{setting} a={alpha}".strip())
    found = []
    for prefix, (name, told) in ends.items():
        scored = {task: stage["metrics"].get(f"{prefix}{task}/loss") for task in (*own, *before)}
        row = {**common, "method": name, "setting": told, **losses(stage, scored, own, before)}
        row["relative"] = row["F"] / (untrained(run, before) - row["start"])
        if prefix != "val/":
            row["peak"] = float("nan")  # the line is walked after training: there is no trajectory of it
        found.append(row)
    return found


def losses(
    stage: Mapping[str, Any], scored: Mapping[str, float | None], own: Sequence[str], before: Sequence[str]
) -> dict[str, float]:
    """Forgetting and target loss from the scores of one set of weights."""
    start = mean([stage["start_metrics"].get(f"val/{task}/loss") for task in before])
    seen = [value for _, value in watched(stage, before)]
    end = mean([scored[task] for task in before])
    peak = upstream(seen, seen[0]).peak if seen else float("nan")
    told = {f"loss/{task}": float("nan") if value is None else value for task, value in scored.items()}
    return {"F": end - start, "peak": peak, "start": start, "target": mean([scored[task] for task in own]), **told}


def watched(stage: Mapping[str, Any], before: Sequence[str]) -> list[tuple[int, float]]:
    """(step, mean loss of the earlier tasks) as they were watched during the stage, where all of them were."""
    told = [(row["step"], mean([row.get(f"watch/{task}/loss") for task in before])) for row in stage.get("curve") or []]
    return [(step, value) for step, value in told if np.isfinite(value)]


def untrained(run: Run, before: Sequence[str]) -> float:
    """The earlier tasks' mean loss before any training, nan where it was not measured."""
    return mean([run.stage["metrics"].get(f"drift/{task}/untrained") for task in before])


def mean(values: Sequence[float | None]) -> float:
    """The mean, nan where one is missing."""
    return float(np.mean([float("nan") if value is None else value for value in values])) if values else float("nan")


def described(config: Mapping[str, Any]) -> tuple[str, str]:
    """The method and its settings: the names of retention methods and adapter, and the numbers of their nodes.

    WiSE changes no training, so a run with it alone is plain fine-tuning and, beside that, the points of its line.
    Replay of text that the model wrote needs none of the old text: a method of its own, "generated".
    """
    nodes = {name: node for name, node in (config.get("retention") or {}).items() if node}
    names = [name for name in nodes if name != "wise"]
    told = [setting for name in names for setting in settings(nodes[name])]
    names = ["generated" if name == "replay" and nodes[name].get("source") == "generated" else name for name in names]
    adapter = config.get("adapter")
    if adapter:
        names.insert(0, str(adapter["_target_"]).rsplit(".", 1)[-1].lower())
        told = settings(adapter) + told
    return "+".join(names) or PLAIN, " ".join(told)


def settings(node: Mapping[str, Any]) -> list[str]:
    """What tells a method or an adapter from others of its kind: `rank=8`, `freeze=router+layers.0`."""
    told = {key: "+".join(map(str, v)) if isinstance(v, list) else v for key, v in node.items() if v != []}
    return [f"{k}={v}" for k, v in told.items() if k[0] != "_" and isinstance(v, int | float | str) and v != "real"]


def replayed(config: Mapping[str, Any]) -> float:
    """The share of the stage's tokens that are of earlier tasks."""
    return float(((config.get("retention") or {}).get("replay") or {}).get("fraction", 0.0))


def kept(config: Mapping[str, Any]) -> float:
    """Tokens of each earlier task that replay draws from at most; inf: all of its training text."""
    memory = ((config.get("retention") or {}).get("replay") or {}).get("memory")
    return math.inf if memory is None else float(quantity(memory))


def base_of(config: Mapping[str, Any]) -> str:
    return str((config.get("init") or {}).get("path", ""))


def pretrained(stage: Mapping[str, Any], spent: float, base: str, known: Mapping[str, Run]) -> float:
    """Tokens before the stage: those of the run's own earlier stages, and of the run that it started from.

    nan where that run is not among the ones read.
    """
    before = float(stage.get("tokens") or 0) - spent
    if not base:
        return before
    run, name = base_run(Path(base).expanduser().absolute(), known)
    if run is None:
        return before if before else float("nan")
    ends = [one for one in run.stages if name in (None, one.get("name"))]
    return before + (float(ends[-1].get("tokens") or 0) if ends else float("nan"))


def base_run(path: Path, known: Mapping[str, Run]) -> tuple[Run | None, str | None]:
    """The run that RUN or RUN/STAGE names, by its path or, in a sweep that was moved since, by its name; the stage."""
    named = {Path(folder).name: run for folder, run in known.items()}
    for one in (path, path.parent):
        run = known.get(str(one)) or named.get(one.name)
        if run is not None:
            return run, None if one == path else path.name
    return None, None


def points_of_line(metrics: Mapping[str, float]) -> list[str]:
    """The alphas of `wise/<alpha>/...`, in order."""
    return sorted({key.split("/")[1] for key in metrics if key.startswith("wise/")}, key=float)


def real_replay(rows: pd.DataFrame) -> pd.DataFrame:
    """Plain fine-tuning and replay of the earlier tasks' own text, of several memories of it that of the largest."""
    replay, kept = rows["method"] == "replay", rows["kept"]
    return pd.DataFrame(rows[(rows["method"] == PLAIN) | (replay & (kept == kept[replay].max()))])


def beside(rows: pd.DataFrame, by: Sequence[str] = ()) -> list[float]:
    """Steps of the plain runs, alike in `by`, that a row stands beside: as many as its own or, where replay came on top
    (design.equal=target), those that read as much new text. nan without plain runs."""
    keys = list(zip(*(rows[name] for name in by), strict=True)) or [()] * len(rows)
    plain: dict[tuple[Any, ...], set[float]] = {}
    for key, steps, method in zip(keys, rows["steps"], rows["method"], strict=True):
        plain.setdefault(key, set()).update({steps} if method == PLAIN else ())
    found = []
    for key, steps, share in zip(keys, rows["steps"], rows["replayed"], strict=True):
        near = min(plain[key], key=lambda other, new=steps * (1 - share): abs(other - new), default=float("nan"))
        found.append(float(steps if steps in plain[key] else near))
    return found


def trajectories(runs: Sequence[Run]) -> pd.DataFrame:
    """F by step of every run, from what was watched of the earlier tasks: method, setting, lr, seed, step, F."""
    found = []
    for run in runs:
        if run.status == "finished" and continued(run):
            method, setting = described(run.config)
            curve = watched(run.stage, earlier_tasks(run))
            same = {"method": method, "setting": setting, "lr": run.stage.get("lr"), "seed": run.summary.get("seed")}
            found += [{**same, "run": run.name, "step": step, "F": value - curve[0][1]} for step, value in curve]
    return pd.DataFrame(found)
