"""Rows of the studies `continual` (sequences of tasks) and `transfer` (fine-tunes on labelled tasks).

The metrics of a sequence follow from its matrix R, but intransigence also needs runs of each task alone, and savings
the curve of a last stage that trains the first task again. A metric without its runs is nan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies import forgetting_metrics
from kleiber.studies.compare.decision import interval
from kleiber.studies.compare.rows import SCRATCH, Rows, apart, described
from kleiber.types import Config, Json

LABELS = {
    "ACC": "ACC", "LA": "LA", "BWT": "BWT", "FWT": "FWT", "forgetting": "forgetting",
    "max_forgetting": "max forgetting since learned", "chaudhry_forgetting": "max forgetting (Chaudhry)",
    "intransigence": "intransigence", "savings": "savings", "upstream": "upstream",
}  # fmt: skip
METRICS = tuple(LABELS)
LOWER = {"forgetting", "max_forgetting", "chaudhry_forgetting", "intransigence", "upstream"}  # is better
CELL = ["start", "method", "setting", "lr"]
# Scores of tasks that were trained alone, higher is better, by (start, task), learning rate and seed.
Alone = Mapping[tuple[str, str], Mapping[float, Mapping[int, float]]]


def sequence_rows(runs: Sequence[Run], tolerance: float) -> pd.DataFrame:
    """A row for each finished sequence of tasks: CELL, order, seed, METRICS and its `matrix` R.

    tolerance  the first task counts as relearned at (1 + tolerance) times the loss at the end of its stage

    Raises ValueError without a finished sequence, and where a sequence mixes kinds of scores.
    """
    alone = alone_scores(runs)
    kept = [run for run in runs if run.status == "finished" and is_sequence(run)]
    suffixes = apart(kept)
    rows = [sequence_row(run, alone, tolerance, suffixes[run.name]) for run in kept]
    if not rows:
        raise ValueError("no finished run over a sequence of tasks: this study needs the chains of its own design")
    return pd.DataFrame(rows).sort_values([*CELL, "order", "seed"], ignore_index=True)


def is_sequence(run: Run) -> bool:
    return len(run.stages) > 1 and not any(stage.get("trunk") for stage in run.stages)


def sequence_row(run: Run, alone: Alone, tolerance: float, suffix: str = "") -> Json:
    """The row of one sequence; `suffix` is appended to its setting."""
    config, stages = run.config, [stage for stage in run.stages if stage["name"] != AGAIN]
    r, kind = own_matrix(run)
    method, setting = described(config)
    setting = f"{setting} {suffix}".strip()
    start, seed = start_of(config), int(run.summary["seed"])
    lr = float(
        (config.get("optimizer") or {}).get("lr") or stages[0]["lr"]
    )  # the run's: a task may have one of its own
    scores = forgetting_metrics.summary(r)
    if any(stage["objective"] == "classify" for stage in stages):
        scores["FWT"] = float("nan")  # a head that nothing has trained says nothing of what the backbone learned
    untrained = [j for j in range(len(r.tasks)) if r.trained_by[j] is None]
    best = np.array([reference(alone, start, task, seed) for task in r.tasks])
    behind = forgetting_metrics.intransigence(r, best.tolist())[r.learned]
    first = tasks_in_order(r)[0][1]
    return {
        "run": run.name, "start": start, "method": method, "setting": setting, "lr": lr, "seed": seed,
        "order": " > ".join(r.stages), **scores,
        "intransigence": float(behind.mean()),
        "savings": saved(run, r.tasks[first], tolerance),
        "upstream": float((r.baseline - r.gains[-1])[untrained].mean()) if untrained else float("nan"),
        "matrix": r, "kind": kind, "seconds": run.summary.get("seconds"),
    }  # fmt: skip


def own_matrix(run: Run) -> tuple[forgetting_metrics.Matrix, str]:
    """R without the stage that trains the first task again, and the kind of score of all learned tasks.

    Raises ValueError where tasks have different kinds of scores.
    """
    stages = [stage for stage in run.stages if stage["name"] != AGAIN]
    record = run.summary["R"]
    names = [stage["name"] for stage in stages]
    kept = [row for name, row in zip(record["stages"], record["matrix"], strict=True) if name in names]
    trained = {task: i for i, stage in enumerate(stages) for task in stage["tasks"]}
    trained_by = [trained.get(task) for task in record["tasks"]]
    kinds = {record["metric"][task].rsplit("/", 1)[1] for task in trained}
    if len(kinds) > 1:
        raise ValueError(f"{run.name}: its tasks have scores of several kinds, {' and '.join(sorted(kinds))}")
    return forgetting_metrics.matrix({**record, "stages": names, "matrix": kept}, trained_by), kinds.pop()


def start_of(config: Config) -> str:
    return str((config.get("study") or {}).get("start") or "start")


def alone_scores(runs: Sequence[Run]) -> Alone:
    """The final main score of the runs of a single task, as the sequences score it, by start point and task."""
    scored: dict[str, tuple[str, float]] = {}
    for run in runs:
        record = run.summary.get("R") or {}
        for task, key in (record.get("metric") or {}).items():
            scored[task] = (key, 1.0 if record["higher_is_better"][task] else -1.0)
    table: dict[tuple[str, str], dict[float, dict[int, float]]] = {}
    for run in runs:
        if run.status != "finished" or len(run.stages) != 1:
            continue
        start = start_of(run.config)
        for task in set(run.stage["tasks"]) & set(scored):
            key, sign = scored[task]
            value = run.metrics.get(key)
            if value is not None:
                by_rate = table.setdefault((start, task), {}).setdefault(float(run.stage["lr"]), {})
                by_rate[int(run.summary["seed"])] = sign * value
    return table


def reference(alone: Alone, start: str, task: str, seed: int) -> float:
    """The score of a task alone at the rate of best mean, of the seed or else the mean; nan without such runs."""
    rates = alone.get((start, task))
    if not rates:
        return float("nan")
    best = max(rates.values(), key=lambda by_seed: sum(by_seed.values()) / len(by_seed))
    return best.get(seed, sum(best.values()) / len(best))


def saved(run: Run, task: str, tolerance: float) -> float:
    """Savings of the first task, from its loss curves when trained first and when trained again."""
    again = next((stage for stage in run.stages if stage["name"] == AGAIN), None)
    if again is None:
        return float("nan")
    key = f"val/{task}/loss"
    level = (1 + tolerance) * run.stages[0]["metrics"][key]
    return forgetting_metrics.savings(curve(again, key), level, curve(run.stages[0], key))


def curve(stage: Json, key: str) -> dict[float, float]:
    return {float(row["step"]): float(row[key]) for row in stage.get("curve") or [] if row.get(key) is not None}


def mean_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting: means of the metrics over orders and seeds, and the number of runs."""
    with_means = {name: (name, "mean") for name in METRICS}
    return rows.groupby(CELL, as_index=False).agg(runs=("run", "size"), **with_means)  # type: ignore[call-overload]


def best_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the best setting of each method, by mean ACC, among settings with the most runs."""
    points, kept = mean_metrics(rows), []
    for _, part in points.groupby(["start", "method"]):
        full = pd.DataFrame(part[part["runs"] == part["runs"].max()])
        kept.append(full.loc[full["ACC"].idxmax(), CELL])
    return rows.merge(pd.DataFrame(kept), on=CELL)


def by_position(rows: Sequence[forgetting_metrics.Matrix]) -> np.ndarray:
    """Mean of R over runs, tasks in the order of training: entry i, j is the score of the j-th task after stage i."""
    return np.mean([r.gains[:, [task for _, task in tasks_in_order(r)]] for r in rows], axis=0)


def tasks_in_order(r: forgetting_metrics.Matrix) -> list[tuple[int, int]]:
    """(stage, task) of every task that a stage trained, by stage."""
    return sorted((stage, j) for j, stage in enumerate(r.trained_by) if stage is not None)


AGAIN = "again"  # the stage that trains the first task once more, to see how fast it comes back


def score_rows(runs: Sequence[Run]) -> Rows:
    """A row for each finished fine-tune: kind, start, task, share, seed, lr, metric, score, loss, tokens (labelled
    tokens), params, seconds. Raises ValueError where there is none."""
    table = []
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
        table.append(
            {
                **{key: labels[key] for key in ("kind", "start", "task")}, "share": float(labels["share"]),
                "seed": config["seed"], "lr": stage["lr"], "metric": metric, "score": score,
                "loss": stage["metrics"][f"val/{name}/loss"],
                "tokens": stage["data"]["tokens"], "params": stage["params"]["total"],
                "outside": stage["params"]["non_embedding"], "seconds": stage["seconds"],
            }
        )  # fmt: skip
    if not table:
        raise ValueError("no finished run of any task: this study needs the cells of its own design")
    return pd.DataFrame(table).sort_values(["task", "kind", "start", "share", "seed", "lr"], ignore_index=True)


def tuned_rates(runs: Sequence[Run], share: float) -> dict[tuple[str, str, str], float]:
    """The rate with the best score at the first seed, by kind, start and task; ties go to the least loss."""
    try:
        rows = score_rows(runs)
    except ValueError:
        return {}
    rates = {}
    for key, part in rows[(rows["seed"] == 0) & (rows["share"] == share)].groupby(["kind", "start", "task"]):
        rates[key] = float(part.sort_values(["score", "loss"], ascending=[False, True])["lr"].iloc[0])
    return rates


def at_tuned_rate(rows: Rows) -> Rows:
    """The rows of each kind, start, task and share at the rate with the most seeds; other rates were for tuning."""
    group = ["kind", "start", "task", "share"]
    sizes = rows.groupby([*group, "lr"])["seed"].transform("nunique")
    kept = rows[sizes == sizes.groupby([rows[key] for key in group]).transform("max")]
    best = kept.groupby(group)["score"].transform("max")  # with one seed each, the best is the one that was meant
    lrs = kept[kept["score"] == best].groupby(group)["lr"].first()
    wanted = pd.Series(list(zip(*(kept[key] for key in group), strict=True)), index=kept.index).map(lrs.to_dict())
    return kept[kept["lr"] == wanted]


def scores_by_seed(rows: Rows, **where: str | float) -> dict[int, float]:
    """Scores by seed of one kind, start, task and share."""
    for key, value in where.items():
        rows = rows[rows[key] == value]
    return dict(zip(rows["seed"], rows["score"], strict=True))


def paired_scores(ours: Mapping[int, float], theirs: Mapping[int, float], level: float) -> Json:
    """Mean of ours - theirs over the common seeds, with Student's interval; no interval below two seeds."""
    seeds = sorted(set(ours) & set(theirs))
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = interval(gaps, level)
    value = sum(gaps) / len(gaps) if gaps else None
    return {
        "gap": value,
        "lo": low,
        "hi": high,
        "seeds": len(gaps),
        "better on": sum(difference > 0 for difference in gaps),
    }


def equivalent_labels(curve: Mapping[float, float], score: float) -> float:
    """The amount of labelled data with which training from scratch reaches `score`.

    curve  score by amount of data; its running maximum is interpolated log-linearly

    Returns inf above the curve and 0 below it.
    """
    data = np.array(sorted(curve))
    reached = np.maximum.accumulate([curve[amount] for amount in data])
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


def transferred(rows: Rows, kind: str, start: str, task: str) -> list[Json]:
    """Effective data transferred, in labelled tokens, at each share of the labels.

    This is the amount that training from scratch needs for the same score, less the amount used. `factor` is (used +
    transferred) / used: the median over seeds with their least and most; inf where all labels are not enough, 0 where
    the score is below that of the smallest share. Hernandez et al. 2021, arXiv:2102.01293, section 1.1.
    """
    part = rows[(rows["kind"] == kind) & (rows["task"] == task)]
    new, ours = part[part["start"] == SCRATCH], part[part["start"] == start]
    curves = {seed: dict(zip(part["tokens"], part["score"], strict=True)) for seed, part in new.groupby("seed")}
    table = []
    for share, part in ours.groupby("share"):
        pairs = [
            (equivalent_labels(curves[seed], score) / tokens, tokens)
            for seed, score, tokens in zip(part["seed"], part["score"], part["tokens"], strict=True)
            if len(curves.get(seed, ())) > 1
        ]
        if pairs:
            factors = sorted(factor for factor, _ in pairs)
            labelled = float(np.mean([tokens for _, tokens in pairs]))
            middle = factors[(len(factors) - 1) // 2]
            table.append(
                {
                    "kind": kind, "start": start, "task": task, "share": share, "labelled tokens": labelled,
                    "transferred": (middle - 1) * labelled, "factor": middle, "least": factors[0], "most": factors[-1],
                    "seeds": len(pairs),
                }
            )  # fmt: skip
    return table
