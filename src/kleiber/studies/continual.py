"""The study `continual`: sequences of tasks trained with every retention method.

Every method is taken at its best setting and compared with plain training within order and seed. Forgetting is reported
together with the final score and with how well each task was learned, since a method that learns nothing forgets
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies import forgetting_metrics
from kleiber.studies.compare.decision import interval
from kleiber.studies.compare.rows import PLAIN, REPLAY, Rows
from kleiber.studies.compare.task_rows import (
    CELL,
    LABELS,
    LOWER,
    METRICS,
    best_settings,
    by_position,
    mean_metrics,
    sequence_rows,
)
from kleiber.studies.study import EqualTargetStudy, Figures, Findings
from kleiber.types import Json, Row

TOLD = {
    "ACC": "has a higher final score", "LA": "learns each task better",
    "forgetting": "forgets less", "savings": "relearns the first task faster",
}  # fmt: skip


@dataclass(frozen=True)
class Continual(EqualTargetStudy):
    """How to compare.

    start      of a cell: set by the design
    tolerance  the first task counts as regained at (1 + tolerance) times the loss that it was left with
    level      of the intervals
    """

    start: str | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares every method, at its best setting, with plain training."""
        record = self.compare(runs)
        best: Rows = record["best"]
        return Findings(
            headline=headline(record),
            verdicts=[*complaints(record), *record["claims"]],
            tables={
                "Methods": method_table(best, self.level),
                "Against plain training": [{**gap, "metric": LABELS[gap["metric"]]} for gap in record["gaps"]],
                "Forgetting by task": task_table(best, self.level),
                "Settings": mean_metrics(record["rows"]).rename(columns=LABELS).to_dict("records"),
            },
            figures=figures(record, self.level),
            methods=METHODS_TEXT.format(level=self.level, tolerance=self.tolerance) + REPLAY + BESIDE,
        )

    def compare(self, runs: Sequence[Run]) -> Json:
        """Rows, those at each method's best setting, differences from plain training and what they say."""
        rows, others = of_same_tasks(sequence_rows(runs, self.tolerance))
        best = best_settings(rows)
        gap_rows = [gap for _, part in best.groupby("start", sort=False) for gap in gaps(part, self.level)]
        return {
            "rows": rows, "best": best, "gaps": gap_rows, "claims": claims(gap_rows), "level": self.level,
            "others": others,
        }  # fmt: skip


def of_same_tasks(rows: Rows) -> tuple[Rows, list[str]]:
    """The rows of the set of tasks that most runs share, since scores over different tasks have no mean; and the names
    of the other runs."""
    tasks = pd.Series([" ".join(sorted(order.split(" > "))) for order in rows["order"]], index=rows.index)
    kept = tasks == tasks.value_counts().index[0]
    return pd.DataFrame(rows[kept]).reset_index(drop=True), list(rows["run"][~kept])


def gaps(rows: Rows, level: float) -> list[Json]:
    """Each method less plain training by metric, within order and seed; simultaneous over methods (Bonferroni)."""
    names = [name for name in dict.fromkeys(rows["method"]) if name != PLAIN]
    each, gap_rows = 1 - (1 - level) / max(len(names), 1), []
    if PLAIN not in set(rows["method"]):
        return []
    ran = {name: set(zip(part["order"], part["seed"], strict=True)) for name, part in rows.groupby("method")}
    for name in names:
        for metric in METRICS:
            table = rows.pivot_table(index=["order", "seed"], columns="method", values=metric)
            if not {name, PLAIN} <= set(table):
                continue
            apart = (table[name] - table[PLAIN]).dropna().tolist()
            if apart:
                lo, hi = interval(apart, each)
                lost = len(ran[name] & ran[PLAIN]) - len(apart)
                labels = {"start": rows["start"].iloc[0], "method": name, "metric": metric, "lost": lost}
                gap_rows.append(
                    {**labels, "difference": float(np.mean(apart)), "lo": lo, "hi": hi, "pairs": len(apart)}
                )
    return gap_rows


def claims(gap_rows: Sequence[Row]) -> list[Json]:
    """What is often asked of a method, each answered by its interval."""
    verdicts = []
    for gap in gap_rows:
        if gap["metric"] not in TOLD:
            continue
        sign = -1 if gap["metric"] in LOWER else 1
        ends = None if gap["lo"] is None else sorted((sign * gap["lo"], sign * gap["hi"]))
        holds = None if ends is None else True if ends[0] > 0 else False if ends[1] < 0 else None
        lost = gap["lost"] if gap["metric"] == "savings" else 0  # who does not regain the task has no savings to count
        holds = None if lost else holds
        outcome = {True: "holds", False: "does not hold", None: "undecided"}[holds]
        by = "no interval" if ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"
        statement = f"from {gap['start']}, {gap['method']} {TOLD[gap['metric']]} than plain training"
        text = f"{outcome}: {statement}: by {sign * gap['difference']:+.4f} {by}, {gap['pairs']} pairs"
        text += f"; {lost} sequences more have none, where it or plain training did not regain the task" * bool(lost)
        code = f"{gap['metric']}_{gap['method']}".lower()
        verdicts.append({"code": code, "level": "note", "text": text, "holds": holds, "start": gap["start"]})
    return verdicts


def complaints(record: Json) -> list[dict[str, str]]:
    """What makes the comparison weaker than it looks, and what was not measured."""
    rows, verdicts = record["rows"], []
    if record["others"]:
        text = (
            f"{len(record['others'])} runs over other tasks than most are left out: {', '.join(record['others'][:3])}"
        )
        verdicts.append({"code": "other_tasks", "level": "warn", "text": text})
    for start, start_rows in rows.groupby("start", sort=False):
        untuned = [str(name) for name, part in start_rows.groupby("method") if part["lr"].nunique() < 2]
        if untuned:
            text = f"from {start}: {', '.join(untuned)} at one learning rate, so a tuned one may be better"
            verdicts.append({"code": "untuned", "level": "warn", "text": text})
        counts = record["best"][record["best"]["start"] == start].groupby("method").size()
        if counts.nunique() > 1:
            counted = ", ".join(f"{name} {count}" for name, count in counts.items())
            text = f"from {start}: methods have unequal numbers of runs ({counted}); differences are of those in common"
            verdicts.append({"code": "partial", "level": "warn", "text": text})
        if not balanced(start_rows["order"].unique().tolist()):
            text = (
                f"from {start}: tasks do not stand equally often at every place, so forgetting by task is also by place"
            )
            verdicts.append({"code": "unbalanced", "level": "warn", "text": text})
        if start_rows["intransigence"].isna().any():
            text = f"from {start}: a task has no run of its own, so intransigence is not told of every sequence"
            verdicts.append({"code": "alone", "level": "warn", "text": text})
        lost = int(start_rows["savings"].isna().sum())
        if lost:
            text = (
                f"from {start}: in {lost} of {len(start_rows)} sequences the first task was not regained, or not tried"
            )
            verdicts.append({"code": "regained", "level": "warn", "text": text})
    return verdicts


def balanced(orders: Sequence[str]) -> bool:
    """Whether every task stands at every place equally often."""
    places = pd.DataFrame([order.split(" > ") for order in orders])
    tasks = places.loc[0]
    return len({count for at in places for count in places[at].value_counts().reindex(tasks, fill_value=0)}) == 1


def method_table(best: Rows, level: float) -> list[Json]:
    """Every metric as mean and interval over orders and seeds, methods by their final score."""
    table = []
    for (start, method, setting, lr), part in best.groupby(CELL, sort=False):
        row = {"start": start, "method": method, "setting chosen": f"{setting} lr={lr:g}".strip(), "runs": len(part)}
        for metric in METRICS:
            values = part[metric].dropna().tolist()
            if values:
                lo, hi = interval(values, level)
                row[LABELS[metric]] = f"{np.mean(values):.4f}" + (
                    " (no interval)" if lo is None else f" [{lo:.4f}, {hi:.4f}]"
                )
        table.append((start, -part["ACC"].mean(), {**row, "minutes": part["seconds"].astype(float).mean() / 60}))
    return [row for *_, row in sorted(table, key=lambda item: item[:2])]


def task_table(best: Rows, level: float) -> list[Json]:
    """R[own stage][task] - R[last stage][task], in the task's unit, positive where it got worse; mean of all runs whose
    order has a stage after the task."""
    table = []
    for (start, method), part in best.groupby(["start", "method"], sort=False):
        by_task: dict[str, list[float]] = {}
        for r in part["matrix"]:
            for j in r.earlier:
                by_task.setdefault(r.tasks[j], []).append(float(forgetting_metrics.forgetting_by_task(r)[j]))
            for j in set(range(len(r.tasks))) - set(r.learned):
                by_task.setdefault(f"{r.tasks[j]} (upstream)", []).append(float(r.baseline[j] - r.gains[-1, j]))
        for task, values in sorted(by_task.items()):
            lo, hi = interval(values, level)
            labels = {"start": start, "method": method, "task": task, "forgetting": float(np.mean(values))}
            table.append({**labels, "lo": lo, "hi": hi, "runs": len(values)})
    return table


def figures(record: Json, level: float) -> Figures:
    """Three for every start; with several starts its name stands behind theirs."""
    from kleiber.studies import forgetting_figures

    best, charts = record["best"], {}
    starts = list(dict.fromkeys(best["start"]))
    for start in starts:
        rows = best[best["start"] == start]
        tail, of = (f"-{start}", f", from {start}") if len(starts) > 1 else ("", "")
        charts[f"metrics{tail}"] = lambda rows=rows, of=of: forgetting_figures.bars(rows, METRICS, level, of)
        charts[f"matrix{tail}"] = lambda rows=rows, of=of: forgetting_figures.score_heatmap(matrices(rows), of)
        charts[f"first_task{tail}"] = lambda rows=rows, of=of: forgetting_figures.first_task(rows, of)
    return charts


def matrices(rows: Rows) -> pd.DataFrame:
    """Mean R by method, stage and place of the task in the order, scores as the tasks have them; `change` against when
    the task was learned, higher is better, nan before."""
    sign = -1.0 if rows["kind"].iloc[0] == "loss" else 1.0
    entries = []
    for method, part in rows.groupby("method", sort=False):
        mean = by_position(part["matrix"].tolist())
        for i, j in np.ndindex(*mean.shape):
            change = mean[i, j] - mean[j, j] if i >= j else float("nan")
            entry = {"method": method, "stage": i + 1, "task": j + 1, "score": sign * mean[i, j]}
            entries.append({**entry, "change": change, "kind": rows["kind"].iloc[0]})
    return pd.DataFrame(entries)


def headline(record: Json) -> str:
    """Who ends with the best score, against plain training, from each start."""
    sentences, best = [], record["best"]
    for start, part in best.groupby("start", sort=False):
        means = part.groupby("method")["ACC"].mean().sort_values(ascending=False)
        kind = part["kind"].iloc[0]
        sign, unit = (-1.0, "nats") if kind == "loss" else (1.0, kind)
        orders, seeds, tasks = part["order"].nunique(), part["seed"].nunique(), len(part["matrix"].iloc[0].learned)
        counts = f"{orders} order{'s' * (orders > 1)} with {seeds} seed{'s' * (seeds > 1)}"
        where = f"From {start}, {tasks} tasks in {counts}"
        if PLAIN not in means or len(means) == 1:
            sentences.append(
                f"{where}: {means.index[0]} ends at a mean of {sign * means.iloc[0]:.4f} {unit}, no comparison"
            )
            continue
        name = next(name for name in means.index if name != PLAIN)
        gap = next((g for g in record["gaps"] if (g["start"], g["method"], g["metric"]) == (start, name, "ACC")), None)
        ends = f"{name} ends at {sign * means[name]:.4f} {unit} and plain training at {sign * means[PLAIN]:.4f}"
        sentences.append(f"{where}: {ends}, {describe_gap(gap)}")
    return "; ".join(sentences) + "."


def describe_gap(gap: Row | None) -> str:
    """The difference from plain training as text, and whether it is beyond noise."""
    if gap is None:
        return "on no order and seed in common"
    if gap["lo"] is None:
        return f"better by {gap['difference']:+.4f}, no interval of one pair"
    outcome = "more than noise" if gap["lo"] > 0 else "worse than plain" if gap["hi"] < 0 else "within noise"
    return f"better by {gap['difference']:+.4f} [{gap['lo']:+.4f}, {gap['hi']:+.4f}], {outcome}"


BESIDE = " Of tasks with a head of their own it is not part of the batch but comes on top, and costs as much more."
METHODS_TEXT = (
    "R[i][j] is the held-out score of task j after stage i; losses count negative, so that higher is better in ACC, "
    "LA, BWT and FWT. ACC is the mean of the last row over the tasks trained, LA of the diagonal, BWT of last row less "
    "diagonal (Lopez-Paz and Ranzato 2017, arXiv:1706.08840), FWT of the score before a task's own stage less that of "
    "the start; it is left out where tasks have heads of their own, which nothing trained before. Maximal forgetting "
    "is the best earlier score of a task less the last: over all earlier stages after Chaudhry et al. 2018 "
    "(arXiv:1801.10112, eq. 2), and over those since the task was learned. Intransigence is theirs as well (eq. 3), "
    "with a model trained from the same start on the one task, at its best learning rate, in place of one trained on "
    "all at once. Savings (Ebbinghaus 1885): 1 less steps to regain the first task over steps to learn it, both to "
    "{tolerance:.0%} above the loss that its own stage ended with, in a last stage without any method; where it was "
    "not regained there is none. Upstream is what the tasks of the start point lost. The first stage has no method, so "
    "it is the same for all. Each method stands at its setting of best mean ACC, chosen on the same runs, which "
    "favors methods with more settings. Student's "
    "{level:.0%} intervals take each order and seed as one sample: they say nothing of other start points. Differences "
    "are within order and seed, for all methods at once (Bonferroni)."
)
