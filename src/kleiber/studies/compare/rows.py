"""The table of fine-tuned runs, from their summaries and configs: forgetting, losses and costs.

A row is one run, or one point on the line between its start and end (WiSE). Runs without a base are left out.
Means over seeds have Student's intervals with the noise pooled over all settings: two or three seeds determine the
noise of all settings together well enough, but not that of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.config.stages import quantity
from kleiber.records.catalog import Run
from kleiber.studies.compare.labels import readable
from kleiber.studies.decision import Estimate, estimate_around
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.types import Config, Json

Rows = Any  # a DataFrame, or a row or column of one; the stubs of pandas do not type what indexing returns

PLAIN = "none"  # the method of plain fine-tuning
GENERATED = "generated"  # replay of text that the model generated
DENSE, MIXTURE, FULL = "dense", "moe", "full"  # arms named by the model, and without an adapter
FROZEN = f"{MIXTURE}, router frozen"
SCRATCH = "scratch"  # the start of a model without trained weights
REPLAY = (  # a sentence for the methods of studies that compare replay
    " Unless retention.replay.memory bounds it, replay draws from the whole training text of the earlier tasks, most "
    "of which the stages before need not have read: then it is further training on a mixture, not a memory."
)
OTHER = re.compile(r"(schedule|batch|optimizer)(\.(?!lr=).*)?=")
LABELS = {  # of arms that are named here
    PLAIN: "plain fine-tuning", GENERATED: "self-generated replay", FULL: "full fine-tuning",
    FROZEN: "mixture of experts, router frozen",
}  # fmt: skip
CELL = ["method", "setting", "lr", "tokens"]  # columns that name a setting of an arm
ArmOf = Callable[[Config], tuple[str, str]]  # the arm of a run and its setting, by its config


def label(arm: str) -> str:
    """Returns what an arm is called in tables and figures, such as `A-GEM + WiSE-FT`."""
    parts = (part.split("+") for part in arm.split(" with "))
    return " with ".join(" + ".join(LABELS.get(name) or readable(name) for name in names) for names in parts)


def outcomes(runs: Sequence[Run], arm_of: ArmOf | None = None) -> pd.DataFrame:
    """A row for each finished run that started from another one.

    arm_of  names the column `method` and the setting of each run; None: `method_of`

    Columns: method, setting, lr, seed, base, pretrained (tokens), replayed (share), kept (tokens of each earlier task
    that replay draws from); F, relative, peak (nats of the mean loss of the earlier tasks), path (F by step), target
    (mean loss of the new tasks), start; loss and start of every task; tokens, target_tokens, seconds, memory. F is nan
    where the earlier tasks were not scored. Raises ValueError where no finished run started from another.
    """
    by_folder = {str(run.folder.absolute()): run for run in runs}
    kept = [run for run in runs if run.finished and is_fine_tuned(run)]
    suffixes = differing_overrides(kept)
    table = [row for run in kept for row in rows_of(run, by_folder, arm_of or method_of, suffixes[run.name])]
    if not table:
        raise ValueError(
            "no fine-tuning run in this folder: the forgetting study compares runs that start from another run's "
            "checkpoint"
        )
    order = ["method", "setting", "lr", "tokens", "seed", "run"]
    return pd.DataFrame(table).sort_values(order, ignore_index=True)


def is_fine_tuned(run: Run) -> bool:
    """Whether the last stage of the run started from weights that other tasks had trained."""
    return bool(run.stage.get("start_metrics")) and bool(earlier_tasks(run))


def earlier_tasks(run: Run) -> list[str]:
    trained = set(run.stage.get("tasks") or [])
    return [task for task in (run.summary.get("R") or {}).get("tasks", []) if task not in trained]


def differing_overrides(runs: Sequence[Run]) -> dict[str, str]:
    """The overrides of schedule, optimizer and batch that not all runs have, as text by name of run."""
    overrides = {run.name: {line for line in run.overrides if OTHER.match(line)} for run in runs}
    common = set.intersection(*overrides.values()) if overrides else set()
    return {name: " ".join(sorted(lines - common)) for name, lines in overrides.items()}


def rows_of(run: Run, by_folder: Mapping[str, Run], arm_of: ArmOf, suffix: str = "") -> list[Json]:
    """The rows of one run; `suffix` is appended to its setting."""
    stage, config = run.stage, run.config
    method, setting = arm_of(config)
    setting = f"{setting} {suffix}".strip()
    replay = (config.get("retention") or {}).get("replay") or {}
    share, memory = float(replay.get("fraction", 0.0)), replay.get("memory")
    spent, base = stage["steps"] * stage["batch_tokens"], str((config.get("init") or {}).get("path", ""))
    common = {
        "run": run.name, "seed": run.summary.get("seed"), "lr": stage.get("lr"), "base": base,
        "N": (stage.get("params") or {}).get("active"), "tuned": (stage.get("params") or {}).get("trainable"),
        "pretrained": pretrained(stage, spent, base, by_folder), "tokens": spent, "target_tokens": spent * (1 - share),
        "replayed": share, "kept": math.inf if memory is None else float(quantity(memory)), "steps": stage["steps"],
        "seconds": stage.get("seconds"), "memory": stage.get("peak_memory_bytes"),
    }  # fmt: skip
    new_tasks, before = list(stage["tasks"]), earlier_tasks(run)
    untrained = mean([stage["metrics"].get(f"drift/{task}/untrained") for task in before])
    ends = {"val/": (method, setting)}
    alphas = {key.split("/")[1] for key in stage["metrics"] if key.startswith("wise/")}
    for alpha in sorted(alphas, key=float):
        ends[f"wise/{alpha}/"] = ("wise" if method == PLAIN else f"{method}+wise", f"{setting} a={alpha}".strip())
    table = []
    for prefix, (name, at) in ends.items():
        scored = {task: stage["metrics"].get(f"{prefix}{task}/loss") for task in (*new_tasks, *before)}
        row = {**common, "method": name, "setting": at, **losses(stage, scored, new_tasks, before)}
        row["relative"] = row["F"] / (untrained - row["start"])
        if prefix != "val/":
            row |= {"peak": float("nan"), "path": []}  # the line is walked after training, so it has no trajectory
        table.append(row)
    return table


def losses(stage: Json, scored: Mapping[str, float | None], new_tasks: Sequence[str], before: Sequence[str]) -> Json:
    """Forgetting and target loss from the scores of one set of weights."""
    begins = {task: stage["start_metrics"].get(f"val/{task}/loss") for task in scored}
    start = mean([begins[task] for task in before])
    during = losses_during(stage, before)
    path = [(step, value - during[0][1]) for step, value in during]
    return {
        "F": mean([scored[task] for task in before]) - start,
        "path": path,
        "peak": max((F for _, F in path), default=float("nan")),
        "start": start,
        "target": mean([scored[task] for task in new_tasks]),
        **{f"loss/{task}": mean([value]) for task, value in scored.items()},
        **{f"start/{task}": mean([value]) for task, value in begins.items()},
    }


def losses_during(stage: Json, before: Sequence[str]) -> list[tuple[int, float]]:
    """(step, mean loss of the earlier tasks) at the evaluations during the stage that scored all of them."""
    curve = [
        (row["step"], mean([row.get(f"watch/{task}/loss") for task in before])) for row in stage.get("curve") or []
    ]
    return [(step, value) for step, value in curve if np.isfinite(value)]


def mean(values: Sequence[float | None]) -> float:
    """The mean; nan without values and where one is None."""
    return float(np.mean([float("nan") if value is None else value for value in values])) if values else float("nan")


def method_of(config: Config) -> tuple[str, str]:
    """The method and its setting: the names of the adapter and retention methods, and the values of their nodes.

    WiSE does not change training, so a run with WiSE alone counts as plain fine-tuning. Replay of text that the model
    generated is the method "generated".
    """
    nodes = {name: node for name, node in (config.get("retention") or {}).items() if node}
    names = [name for name in nodes if name != "wise"]
    parts = [setting for name in names for setting in settings(nodes[name])]
    names = [GENERATED if name == "replay" and nodes[name].get("source") == "generated" else name for name in names]
    adapter = config.get("adapter")
    if adapter:
        names.insert(0, str(adapter["_target_"]).rsplit(".", 1)[-1].lower())
        parts = settings(adapter) + parts
    return "+".join(names) or PLAIN, " ".join(parts)


def model_arm(config: Config) -> tuple[str, str]:
    """The arm by its model: DENSE, MIXTURE or FROZEN, with retention methods and other adapters behind it."""
    mixture = "num_experts" in (config["model"].get("mlp") or {})
    adapter = config.get("adapter") or {}
    frozen = mixture and list(adapter.get("freeze") or ()) == ["router"] and adapter.get("train") is None
    method, setting = method_of({**config, "adapter": None if frozen else config.get("adapter")})
    model = FROZEN if frozen else MIXTURE if mixture else DENSE
    return (model, setting) if method == PLAIN else (f"{model} with {method}", setting)


def adapter_arms(runs: Sequence[Run]) -> ArmOf:
    """Names arms by their adapter: FULL without one, `rank r`, or what else was trained.

    Arms of one rank that differ in another key of the adapter have the key in their name.
    """
    nodes = [run.config.get("adapter") or {} for run in runs]

    def name(config: Config) -> tuple[str, str]:
        """The arm of a run and its setting."""
        method, setting = method_of(config)
        if method != "lora":
            return (FULL, "") if method == PLAIN else (method, setting)
        node = config["adapter"]
        alike = [other for other in nodes if all(other.get(key) == node[key] for key in ("rank", "_target_"))]
        differ = [key for key in sorted(node) if any(other.get(key) != node[key] for other in alike)]
        return " ".join([f"rank {node['rank']}", *(f"{key}={node[key]}" for key in differ)]), ""

    return name


def settings(node: Config) -> list[str]:
    """The values of a retention or adapter node as text: `rank=8`, `freeze=router+layers.0`."""
    values = {key: "+".join(map(str, v)) if isinstance(v, list) else v for key, v in node.items() if v != []}
    return [f"{k}={v}" for k, v in values.items() if k[0] != "_" and isinstance(v, int | float | str) and v != "real"]


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


def seed_means(
    rows: Rows, by: Sequence[str], value: str, level: float = 0.9, limits: tuple[float, float] | None = None
) -> Rows:
    """A row for each setting: the columns `by`, mean, seeds, half (half-width of the interval of the mean), lo, hi.

    Branches of a trunk share the noise of their run: with a column `run` the degrees of freedom count runs, not rows.

    limits  ends of the scale of `value`, such as (0, 1) of a share, at which lo and hi are cut
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
    ends = pd.DataFrame({"lo": table["mean"] - table["half"], "hi": table["mean"] + table["half"]})
    return table.join(ends if limits is None else ends.clip(*limits))


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
