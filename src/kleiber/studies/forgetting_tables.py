"""The tables of a comparison of retention methods, and its method in a paragraph. Nothing here computes a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kleiber.catalog import Run
from kleiber.studies import outcomes
from kleiber.studies.frontier import CELL


def scores(rows: pd.DataFrame, chosen: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Loss of each task by method at its chosen setting, seeds averaged, and before; change is against before."""
    tasks = [name for name in rows.columns if name.startswith("loss/")]
    start = [run.stage["start_metrics"] for run in runs if run.status == "finished" and outcomes.continued(run)]
    first = {task: outcomes.mean([one.get(f"val/{task[5:]}/loss") for one in start]) for task in tasks}
    found = [{"method": "before", "task": task[5:], "loss": first[task], "change": 0.0} for task in tasks]
    for one in chosen.to_dict("records"):
        mine = rows[(rows[CELL] == pd.Series({name: one[name] for name in CELL})).all(axis=1)]
        for task in tasks:
            loss = float(pd.Series(mine[task]).mean())
            found.append({"method": one["method"], "task": task[5:], "loss": loss, "change": loss - first[task]})
    return pd.DataFrame(found)


def matched(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparison, and for each method the setting that stands for it with its cost."""
    by_method = {one["method"]: one for one in record["chosen"]}
    rows = []
    for one in record["matched"]:
        setting = by_method[one["method"]]
        rows.append({
            "method": one["method"], "F at equal target": one["F"] if one["reached"] else "does not reach it",
            f"{record['level']:.0%}": span(one), "seeds": f"{one['reached']} of {one['seeds']}",
            "setting chosen": f"{setting['setting']} lr={setting['lr']:g}".strip(), "F": setting["F"],
            "peak F": setting["peak"], "F of what was learned": setting["relative"], "target loss": setting["target"],
            "new tokens": setting["target_tokens"], "all tokens": float(setting["tokens"]),
            "ms a step": per(setting, "seconds", 1e3 / setting["steps"]), "MiB": per(setting, "memory", 2.0**-20),
        })  # fmt: skip
    return rows


def settings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every setting, method by method, the least forgetful first."""
    points = sorted(record["points"], key=lambda one: (one["method"], one["F"]))
    return [
        {
            "method": one["method"], "setting": one["setting"], "lr": one["lr"], "seeds": one["n"], "F": one["F"],
            "sd of F": one["F_sd"], "peak F": one["peak"], "target loss": one["target"], "sd": one["target_sd"],
            "on the frontier": bool(one["best"]),
        }
        for one in points
    ]  # fmt: skip


def method(record: Mapping[str, Any]) -> str:
    """A paragraph for a paper."""
    noise = record["seed_noise"]
    spread = "not measured" if not noise["df"] else f"{noise['F']:.4f} nats ({noise['df']} degrees of freedom)"
    return (
        "All methods go on from the same base run of their seed. F is the rise of the earlier tasks' mean held-out "
        "loss between the first and the last step, peak F its largest rise on a subset while training went on. Every "
        "method was tuned over its settings and learning rates; F is read off its own frontier (straight lines between "
        f"its undominated points, seed by seed) at a target loss of {record['matched_target']:.4f}, which is the best "
        f"of plain fine-tuning and {record['tolerance']:.0%} more. Intervals are Student's at {record['level']:.0%}: "
        "of F with as many degrees of freedom as there are bases less one, of differences within seeds with the noise "
        "left after seeds and methods, for all methods at once (Bonferroni). Seed noise of a run: "
        f"{spread}. The choice among settings is made on the same runs, which favours methods with more of them; the "
        "line of WiSE contains the ends of plain fine-tuning, so it cannot come out behind it. Replayed tokens count "
        "as tokens of the budget unless the design says otherwise." + outcomes.REPLAY
    )


def span(one: Mapping[str, Any]) -> str:
    return f"[{one['lo']:.4f}, {one['hi']:.4f}]" if bounded(one) else "no interval"


def bounded(one: Mapping[str, Any]) -> bool:
    """Whether there is an interval: without replicates its ends are infinite or nan."""
    return one["hi"] - one["lo"] < float("inf")


def per(setting: Mapping[str, Any], what: str, scale: float) -> float | None:
    value = setting.get(what)
    return None if value is None else round(value * scale, 1)
