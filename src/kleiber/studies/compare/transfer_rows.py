"""The fine-tunes of the study `transfer` as rows, and what follows from them: rates, paired gaps, data transferred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import interval
from kleiber.studies.compare.intervals import Rows

SCRATCH = "scratch"


def rows_of(runs: Sequence[Run]) -> Rows:
    """A row a finished fine-tune: kind, start, task, share, seed, lr, metric, score, loss, tokens (labelled ones that
    are there), params, seconds. ValueError where there is none."""
    found = []
    for run in runs:
        config = run.config
        labels = config.get("study") or {}
        if run.status != "finished" or labels.get("task") is None or not run.stage.get("tasks"):
            continue  # a run that is planned alone has no score
        stage, (name, *_) = run.stage, run.stage["tasks"]
        usual = ("micro_f1", "accuracy", "pearson")  # of several classes, of one, of a quantity: data.metric=null
        metric = config["data"].get("metric") or next(m for m in usual if f"val/{name}/{m}" in stage["metrics"])
        score = stage["metrics"][f"val/{name}/{metric}"]
        if metric == "rmse":  # scores rise with what is learned, here as everywhere in this study
            metric, score = f"-{metric}", -score
        found.append(
            {
                **{key: labels[key] for key in ("kind", "start", "task")}, "share": float(labels["share"]),
                "seed": config["seed"], "lr": stage["lr"], "metric": metric, "score": score,
                "loss": stage["metrics"][f"val/{name}/loss"],
                "tokens": stage["data"]["tokens"], "params": stage["params"]["total"],
                "outside": stage["params"]["non_embedding"], "seconds": stage["seconds"],
            }
        )  # fmt: skip
    if not found:
        raise ValueError("no finished run of any task: this study reads cells that its own design made")
    return pd.DataFrame(found).sort_values(["task", "kind", "start", "share", "seed", "lr"], ignore_index=True)


def best_rates(runs: Sequence[Run], share: float) -> dict[tuple[str, str, str], float]:
    """The rate of the best score at the first seed, by kind, start and task; of equal scores that of the least loss."""
    try:
        rows = rows_of(runs)
    except ValueError:
        return {}
    found = {}
    for key, part in rows[(rows["seed"] == 0) & (rows["share"] == share)].groupby(["kind", "start", "task"]):
        found[key] = float(part.sort_values(["score", "loss"], ascending=[False, True])["lr"].iloc[0])
    return found


def chosen(rows: Rows) -> Rows:
    """Of each kind, start, task and share the rate that the most seeds have; the others were tried for tuning."""
    group = ["kind", "start", "task", "share"]
    sizes = rows.groupby([*group, "lr"])["seed"].transform("nunique")
    kept = rows[sizes == sizes.groupby([rows[key] for key in group]).transform("max")]
    best = kept.groupby(group)["score"].transform("max")  # with one seed each, the best is the one that was meant
    lrs = kept[kept["score"] == best].groupby(group)["lr"].first()
    wanted = pd.Series(list(zip(*(kept[key] for key in group), strict=True)), index=kept.index).map(lrs.to_dict())
    return kept[kept["lr"] == wanted]


def by_seed(rows: Rows, **where: Any) -> dict[int, float]:
    """Scores by seed of one kind, start, task and share."""
    for key, value in where.items():
        rows = rows[rows[key] == value]
    return dict(zip(rows["seed"], rows["score"], strict=True))


def gap(ours: Mapping[int, float], theirs: Mapping[int, float], level: float) -> dict[str, Any]:
    """Mean of ours - theirs over the seeds of both, with Student's interval; none of fewer than two seeds."""
    seeds = sorted(set(ours) & set(theirs))
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = interval(gaps, level)
    value = sum(gaps) / len(gaps) if gaps else None
    return {"gap": value, "lo": low, "hi": high, "seeds": len(gaps), "better on": sum(one > 0 for one in gaps)}


def needed(curve: Mapping[float, float], score: float) -> float:
    """Labelled data with which training from nothing would have come to `score`, by its curve score(data): log-linear
    between points, its running maximum where it falls; inf above all of it, 0 below all of it.
    """
    data = np.array(sorted(curve))
    reached = np.maximum.accumulate([curve[one] for one in data])
    if score > reached[-1]:
        return math.inf
    if score < reached[0]:
        return 0.0
    right = int(np.argmax(reached >= score))
    if right == 0:
        return float(data[0])
    low, high = reached[right - 1], reached[right]
    at = (score - low) / (high - low)
    return float(math.exp(math.log(data[right - 1]) * (1 - at) + math.log(data[right]) * at))


def transferred(rows: Rows, kind: str, start: str, task: str) -> list[dict[str, Any]]:
    """Effective data transferred, in labelled tokens, at each share of the labels: what training from nothing would
    have needed beyond what was given, by seed. Hernandez et al. 2021, arXiv:2102.01293, section 1.1.

    `factor` is (given + transferred) / given: the median of the seeds with their least and most; inf where no amount
    of the task's labels would have done, 0 where the pre-trained model is below the smallest share from nothing.
    """
    part = rows[(rows["kind"] == kind) & (rows["task"] == task)]
    new, ours = part[part["start"] == SCRATCH], part[part["start"] == start]
    curves = {seed: dict(zip(one["tokens"], one["score"], strict=True)) for seed, one in new.groupby("seed")}
    found = []
    for share, one in ours.groupby("share"):
        pairs = [
            (needed(curves[seed], score) / tokens, tokens)
            for seed, score, tokens in zip(one["seed"], one["score"], one["tokens"], strict=True)
            if len(curves.get(seed, ())) > 1
        ]
        if pairs:
            factors = sorted(factor for factor, _ in pairs)
            given = float(np.mean([tokens for _, tokens in pairs]))
            middle = factors[(len(factors) - 1) // 2]
            found.append(
                {
                    "kind": kind, "start": start, "task": task, "share": share, "labelled tokens": given,
                    "transferred": (middle - 1) * given, "factor": middle, "least": factors[0], "most": factors[-1],
                    "seeds": len(pairs),
                }
            )  # fmt: skip
    return found
