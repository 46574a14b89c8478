"""What each run over a sequence of tasks learned, forgot and carried over, as rows: from R and curves alone.

R is the single source of every metric but two: intransigence needs runs of each task alone, and savings the curve of
the stage that trains the first task once more. A metric whose runs are not there is nan.

The fine-tunes of the study `transfer` as rows, and what follows from them: rates, paired gaps, data transferred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies import forgetting_metrics as metrics
from kleiber.studies.compare.arms import interval
from kleiber.studies.compare.intervals import Rows
from kleiber.studies.compare.rows import apart, described

LABELS = {
    "ACC": "ACC", "LA": "LA", "BWT": "BWT", "FWT": "FWT", "forgetting": "forgetting",
    "max_forgetting": "max forgetting since learned", "chaudhry_forgetting": "max forgetting (Chaudhry)",
    "intransigence": "intransigence", "savings": "savings", "upstream": "upstream",
}  # fmt: skip
METRICS = tuple(LABELS)
LOWER = {"forgetting", "max_forgetting", "chaudhry_forgetting", "intransigence", "upstream"}  # is better
CELL = ["start", "method", "setting", "lr"]
Alone = Mapping[
    tuple[str, str], Mapping[float, Mapping[int, float]]
]  # (start, task): lr: seed: score, higher is better


def sequence_rows(runs: Sequence[Run], tolerance: float) -> pd.DataFrame:
    """A row a finished sequence: CELL, order, seed, METRICS, its `matrix` of the tasks' own stages, `tasks` in order.

    tolerance  the first task counts as regained at (1 + tolerance) times the loss that it was left with

    Errors: ValueError without a finished sequence, and where one mixes scores that have no mean.
    """
    alone = alone_scores(runs)
    kept = [run for run in runs if run.status == "finished" and is_sequence(run)]
    more = apart(kept)
    rows = [sequence_row(run, alone, tolerance, more[run.name]) for run in kept]
    if not rows:
        raise ValueError("no finished run over a sequence of tasks: this study reads chains that its design made")
    return pd.DataFrame(rows).sort_values([*CELL, "order", "seed"], ignore_index=True)


def is_sequence(run: Run) -> bool:
    return len(run.stages) > 1 and not any(stage.get("trunk") for stage in run.stages)


def sequence_row(run: Run, alone: Alone, tolerance: float, more: str = "") -> dict[str, Any]:
    config, stages = run.config, [one for one in run.stages if one["name"] != AGAIN]
    r, kind = own_matrix(run)
    method, setting = described(config)
    setting = f"{setting} {more}".strip()
    start, seed = start_of(config), int(run.summary["seed"])
    lr = float(
        (config.get("optimizer") or {}).get("lr") or stages[0]["lr"]
    )  # the run's: a task may have one of its own
    found = metrics.summary(r)
    if any(stage["objective"] == "classify" for stage in stages):
        found["FWT"] = float("nan")  # a head that nothing has trained says nothing of what the backbone learned
    known = [j for j in range(len(r.tasks)) if r.own[j] is None]
    best = np.array([reference(alone, start, task, seed) for task in r.tasks])
    behind = metrics.intransigence(r, best.tolist())[r.learned]
    first = tasks_in_order(r)[0][1]
    return {
        "run": run.name, "start": start, "method": method, "setting": setting, "lr": lr, "seed": seed,
        "order": " > ".join(r.stages), **found,
        "intransigence": float(behind.mean()),
        "savings": saved(run, r.tasks[first], tolerance),
        "upstream": float((r.baseline - r.gains[-1])[known].mean()) if known else float("nan"),
        "matrix": r, "kind": kind, "seconds": run.summary.get("seconds"),
    }  # fmt: skip


def own_matrix(run: Run) -> tuple[metrics.Matrix, str]:
    """R without the stage that trains the first task again, and the name of the score that all learned tasks share."""
    stages = [one for one in run.stages if one["name"] != AGAIN]
    told = run.summary["R"]
    names = [one["name"] for one in stages]
    kept = [row for name, row in zip(told["stages"], told["matrix"], strict=True) if name in names]
    trained = {task: i for i, stage in enumerate(stages) for task in stage["tasks"]}
    own = [trained.get(task) for task in told["tasks"]]
    kinds = {told["metric"][task].rsplit("/", 1)[1] for task in trained}
    if len(kinds) > 1:
        raise ValueError(f"{run.name}: its tasks are scored by {' and '.join(sorted(kinds))}, which have no mean")
    return metrics.matrix({**told, "stages": names, "matrix": kept}, own), kinds.pop()


def start_of(config: Mapping[str, Any]) -> str:
    return str((config.get("study") or {}).get("start") or "start")


def alone_scores(runs: Sequence[Run]) -> Alone:
    """Of the runs of one task: its main score when they ended, as the sequences score it."""
    scored: dict[str, tuple[str, float]] = {}
    for run in runs:
        told = run.summary.get("R") or {}
        for task, key in (told.get("metric") or {}).items():
            scored[task] = (key, 1.0 if told["higher_is_better"][task] else -1.0)
    found: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
    for run in runs:
        if run.status != "finished" or len(run.stages) != 1:
            continue
        start = start_of(run.config)
        for task in set(run.stage["tasks"]) & set(scored):
            key, sign = scored[task]
            value = run.metrics.get(key)
            if value is not None:
                by_rate = found.setdefault((start, task), {}).setdefault(float(run.stage["lr"]), {})
                by_rate[int(run.summary["seed"])] = sign * value
    return found


def reference(alone: Alone, start: str, task: str, seed: int) -> float:
    """The score of a task alone at the rate of best mean: that of the seed, else the mean; nan where none was run."""
    rates = alone.get((start, task))
    if not rates:
        return float("nan")
    best = max(rates.values(), key=lambda by_seed: sum(by_seed.values()) / len(by_seed))
    return best.get(seed, sum(best.values()) / len(best))


def saved(run: Run, task: str, tolerance: float) -> float:
    """Savings of the first task: its curve when trained again against the one when trained first, on its loss."""
    again = next((one for one in run.stages if one["name"] == AGAIN), None)
    if again is None:
        return float("nan")
    key = f"val/{task}/loss"
    level = (1 + tolerance) * run.stages[0]["metrics"][key]
    return metrics.savings(curve(again, key), level, curve(run.stages[0], key))


def curve(stage: Mapping[str, Any], key: str) -> dict[float, float]:
    return {float(row["step"]): float(row[key]) for row in stage.get("curve") or [] if row.get(key) is not None}


def mean_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: means of the metrics over orders and seeds, and how many runs there are."""
    with_means = {name: (name, "mean") for name in METRICS}
    return rows.groupby(CELL, as_index=False).agg(runs=("run", "size"), **with_means)  # type: ignore[call-overload]


def best_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method's best setting, by mean ACC among those with the most runs."""
    points, kept = mean_metrics(rows), []
    for _, one in points.groupby(["start", "method"]):
        full = pd.DataFrame(one[one["runs"] == one["runs"].max()])
        kept.append(full.loc[full["ACC"].idxmax(), CELL])
    return rows.merge(pd.DataFrame(kept), on=CELL)


def by_position(rows: Sequence[metrics.Matrix]) -> np.ndarray:
    """Mean of R over runs, tasks in the order of each run: entry i, j is the j-th task after the i-th stage."""
    return np.mean([r.gains[:, [task for _, task in tasks_in_order(r)]] for r in rows], axis=0)


def tasks_in_order(r: metrics.Matrix) -> list[tuple[int, int]]:
    """(stage, task) of every task that a stage trained, in the order of the stages."""
    return sorted((stage, j) for j, stage in enumerate(r.own) if stage is not None)


AGAIN = "again"  # the stage that trains the first task once more, to see how fast it comes back


SCRATCH = "scratch"


def score_rows(runs: Sequence[Run]) -> Rows:
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


def tuned_rates(runs: Sequence[Run], share: float) -> dict[tuple[str, str, str], float]:
    """The rate of the best score at the first seed, by kind, start and task; of equal scores that of the least loss."""
    try:
        rows = score_rows(runs)
    except ValueError:
        return {}
    found = {}
    for key, part in rows[(rows["seed"] == 0) & (rows["share"] == share)].groupby(["kind", "start", "task"]):
        found[key] = float(part.sort_values(["score", "loss"], ascending=[False, True])["lr"].iloc[0])
    return found


def at_tuned_rate(rows: Rows) -> Rows:
    """Of each kind, start, task and share the rate that the most seeds have; the others were tried for tuning."""
    group = ["kind", "start", "task", "share"]
    sizes = rows.groupby([*group, "lr"])["seed"].transform("nunique")
    kept = rows[sizes == sizes.groupby([rows[key] for key in group]).transform("max")]
    best = kept.groupby(group)["score"].transform("max")  # with one seed each, the best is the one that was meant
    lrs = kept[kept["score"] == best].groupby(group)["lr"].first()
    wanted = pd.Series(list(zip(*(kept[key] for key in group), strict=True)), index=kept.index).map(lrs.to_dict())
    return kept[kept["lr"] == wanted]


def scores_by_seed(rows: Rows, **where: Any) -> dict[int, float]:
    """Scores by seed of one kind, start, task and share."""
    for key, value in where.items():
        rows = rows[rows[key] == value]
    return dict(zip(rows["seed"], rows["score"], strict=True))


def paired_scores(ours: Mapping[int, float], theirs: Mapping[int, float], level: float) -> dict[str, Any]:
    """Mean of ours - theirs over the seeds of both, with Student's interval; none of fewer than two seeds."""
    seeds = sorted(set(ours) & set(theirs))
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = interval(gaps, level)
    value = sum(gaps) / len(gaps) if gaps else None
    return {"gap": value, "lo": low, "hi": high, "seeds": len(gaps), "better on": sum(one > 0 for one in gaps)}


def equivalent_labels(curve: Mapping[float, float], score: float) -> float:
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
            (equivalent_labels(curves[seed], score) / tokens, tokens)
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
