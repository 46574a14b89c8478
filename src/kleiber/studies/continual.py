"""The study `continual`: sequences of tasks trained with every retention method.

Every method is taken at its best setting and compared with plain fine-tuning within order and seed. Forgetting is
reported together with the final score and with how well each task was learned, since a method that learns nothing
forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.claims import RATE, Claim, Question, decide_together, read_claims
from kleiber.studies.compare.arms import not_ready, untuned
from kleiber.studies.compare.contrast import format_level
from kleiber.studies.compare.frontier import best_settings
from kleiber.studies.compare.rows import PLAIN, REPLAY, Rows, label
from kleiber.studies.decision import Estimate, as_row, mean_estimate
from kleiber.studies.sequence_metrics import (
    CELL,
    LABELS,
    LOWER,
    METRICS,
    by_position,
    forgetting_by_task,
    refuse_planned_twins,
    sequence_rows,
    tasks_in_order,
)
from kleiber.studies.statements import answer_text, sentence, statement
from kleiber.studies.study import EqualTargetStudy, Figures, Findings, PlannedPoint
from kleiber.types import Config, Json

CLAIMS = ("ACC", "LA", "forgetting", "savings")  # metrics by which each method is claimed to be better
IN_WORDS = {
    "ACC": "mean score at the end",
    "LA": "mean score right after learning a task",
    "savings": "share of steps saved when relearning",
}  # what sentences call metrics


@dataclass(frozen=True)
class Continual(EqualTargetStudy):
    """How to compare.

    start      of a cell: set by the design
    tolerance  the first task counts as regained at (1 + tolerance) times the loss that it was left with
    claims     about metrics of methods, see `kleiber.studies.claims.Claim`, from every start: {measure: forgetting,
               of: {method: ewc}, against: {method: replay}}. Without claims: every method is better than plain
               fine-tuning by each of CLAIMS
    level      of the intervals
    """

    start: str | None = None
    claims: Sequence[Config] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.read_claims([PLAIN])

    def read_claims(self, methods: Sequence[str]) -> list[Claim]:
        """The claims of the study about these methods. Raises ValueError, which names the key, for an invalid one."""
        others = {"of": {}, "each": {"method": {"not": [PLAIN]}}, "against": {"method": PLAIN}}
        nodes = self.claims or [{**others, "measure": metric} for metric in CLAIMS]
        better = [{"direction": "lower" if node.get("measure") in LOWER else "higher", **node} for node in nodes]
        claims = read_claims(better, "study.claims", {}, {"method": methods})
        for at, claim in enumerate(claims):
            two = [[*side] for _, side in claim.sides] == [["method"], ["method"]]
            if claim.measure not in METRICS or claim.equal is not None or not two:
                raise ValueError(
                    f"study.claims[{at}] must compare two methods, without equal, by a metric: {', '.join(METRICS)}"
                )
        return claims

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError as `refuse_twins` for planned sequences."""
        refuse_planned_twins(points)
        return []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares every method, at its best setting, with plain fine-tuning."""
        record = self.compare(runs)
        best: Rows = record["best"]
        means = {name: (name, "mean") for name in METRICS}
        settings = record["rows"].groupby(CELL, as_index=False).agg(runs=("run", "size"), **means)
        settings["method"] = settings["method"].map(label)
        return Findings(
            question="Which method learns a sequence of tasks with the least forgetting?",
            answer=answer_text(headline(record), record["claims"], self.level),
            claims=record["claims"],
            caveats=complaints(record),
            tables={
                "Methods": method_table(best, self.level),
                "Differences from plain fine-tuning": [
                    {**gap, "method": label(gap["method"]), "metric": LABELS[gap["metric"]]} for gap in record["gaps"]
                ],
                "Forgetting by task": task_table(best, self.level),
                "Settings": settings.rename(columns=LABELS).to_dict("records"),
            },
            figures=figures(best, self.level),
            methods=METHODS_TEXT.format(level=self.level, tolerance=self.tolerance) + REPLAY + BESIDE,
        )

    def compare(self, runs: Sequence[Run]) -> Json:
        """Returns all rows, those at the best setting of each method, differences from plain fine-tuning and verdicts.

        Methods are compared within order and seed.
        """
        rows, others = of_same_tasks(sequence_rows(runs, self.tolerance))
        best = rows.merge(best_settings(rows, CELL[:2], CELL[2:], "ACC", higher=True), on=CELL)
        waiting = not_ready(runs, 1, lambda run: "sequences").why
        gaps, asked = [], []
        for start, part in best.groupby("start", sort=False):
            names = [name for name in dict.fromkeys(part["method"]) if name != PLAIN]
            for metric in METRICS:
                for name in names:
                    estimate = mean_estimate(differences(part, metric, name, PLAIN), self.level, unit_of(metric, part))
                    if estimate is not None:
                        lost = unpaired(part, estimate.n, name, PLAIN)
                        labels = {"start": start, "method": name, "metric": metric, "lost": lost}
                        gaps.append({**labels, **asdict(estimate)})
            rates = {str(name): sorted(set(lrs)) for name, lrs in rows[rows["start"] == start].groupby("method")["lr"]}
            claims = self.read_claims([*dict.fromkeys(part["method"])])
            asked += [question(claim, str(start), part, rates, waiting) for claim in claims]
        claims = decide_together(asked, self.level, variance=self.variance)
        return {"rows": rows, "best": best, "gaps": gaps, "claims": claims, "others": others}


def unit_of(metric: str, rows: Rows) -> str:
    """The unit of a metric: of savings the share of the steps, else that of the scores."""
    kind = rows["kind"].iloc[0]
    return "of the steps" if metric == "savings" else "nats" if kind == "loss" else str(kind)


def differences(best: Rows, metric: str, ours: str, theirs: str) -> list[float]:
    """Returns a metric of one method minus that of another, of each order and seed that both have."""
    table = best.pivot_table(index=["order", "seed"], columns="method", values=metric)
    return (table[ours] - table[theirs]).dropna().tolist() if {ours, theirs} <= {*table} else []


def unpaired(best: Rows, measured: int, ours: str, theirs: str) -> int:
    """Returns of how many orders and seeds that both methods have the metric of one is missing."""
    runs = best.pivot_table(index=["order", "seed"], columns="method", values="seconds", aggfunc="size")
    return len(runs[[ours, theirs]].dropna()) - measured


def equal_rates(methods: Sequence[str], rates: Mapping[str, Sequence[float]], best: Rows) -> tuple[str, str]:
    """Returns what two methods have equal, and why they decide nothing; "" where they can.

    Two methods that were trained at one and the same rate are compared at it; otherwise both have to be tuned.

    rates  of each method
    best   the rows of each method at its best setting
    """
    first, second = (rates[method] for method in methods)
    if len(first) == 1 and first == second:
        return RATE, ""
    for method in methods:
        part = best[best["method"] == method]
        if why := untuned(rates[method], float(part["lr"].iloc[0]), int(part["seed"].nunique())):
            return "tokens", f"for {label(method)}, {why}"
    return "tokens", ""


def question(claim: Claim, start: str, best: Rows, rates: Mapping[str, Sequence[float]], waiting: str) -> Question:
    """Returns a claim about two methods from a start, with their differences by order and seed.

    best     the rows of each method at its best setting, from this start
    rates    of each method, from this start
    waiting  why the runs decide nothing; "" where they can
    """
    metric, methods = claim.measure, [str(side["method"]) for _, side in claim.sides]
    absent = next((name for name in methods if name not in rates), None)
    equal, problem = ("", f"no finished run of {label(absent)}") if absent else equal_rates(methods, rates, best)
    values = [] if absent else differences(best, metric, *methods)
    lost = 0 if absent or metric != "savings" else unpaired(best, len(values), *methods)
    # A sequence in which the task was not regained has no savings to count.
    missing = f"{lost} sequences have no savings, because one of the two did not regain the first task" if lost else ""

    def wording(stated: Claim) -> str:
        """Returns a claim about these methods as a sentence."""
        names = replace(stated, of={"method": stated.of["method"]})
        return f"{statement(names, measure, unit, lambda _, value: label(str(value)))}, starting from {start}"

    unit, measure = unit_of(metric, best), IN_WORDS.get(metric, LABELS[metric])
    measure += " (the negative of the loss)" * ("score" in measure and best["kind"].iloc[0] == "loss")
    claim = replace(claim, of={**claim.of, "start": start}, equal=equal or None)
    return Question(
        claim=claim, text=wording(claim), wording=wording, values=values, unit=unit,
        better="lower" if metric in LOWER else "higher", problem=missing or waiting or problem,
        samples="orders and seeds", paired=True,
    )  # fmt: skip


def of_same_tasks(rows: Rows) -> tuple[Rows, list[str]]:
    """The rows of the set of tasks that most runs share, since scores over different tasks have no mean; and the names
    of the other runs."""
    tasks = pd.Series([" ".join(sorted(order.split(" > "))) for order in rows["order"]], index=rows.index)
    kept = tasks == tasks.value_counts().index[0]
    return pd.DataFrame(rows[kept]).reset_index(drop=True), list(rows["run"][~kept])


def complaints(record: Json) -> list[Json]:
    """Returns what makes the comparison weaker than it looks, and what was not measured."""
    rows, others = record["rows"], record["others"]
    left_out = f"{len(others)} runs over other tasks are left out: {', '.join(others[:3])}"
    entries = [("other_tasks", left_out)] * bool(others)
    for start, part in rows.groupby("start", sort=False):
        untuned = ", ".join(label(str(name)) for name, rates in part.groupby("method")["lr"] if rates.nunique() < 2)
        counts = record["best"][record["best"]["start"] == start].groupby("method").size()
        counted = ", ".join(f"{label(str(name))} {count}" for name, count in counts.items())
        unequal = f"methods have unequal numbers of runs ({counted}); differences are of those in common"
        lost = int(part["savings"].isna().sum())
        checks = [
            ("untuned", untuned, f"{untuned} at one learning rate, so a tuned one may be better"),
            ("partial", counts.nunique() > 1, unequal),
            ("unbalanced", not balanced(part["order"].unique().tolist()),
             "tasks do not stand equally often at every place, so forgetting by task is also by place"),
            ("alone", part["intransigence"].isna().any(),
             "a task has no run of its own, so not every sequence has an intransigence"),
            ("regained", lost, f"in {lost} of {len(part)} sequences the first task was not regained, or not tried"),
        ]  # fmt: skip
        entries += [(code, f"from {start}: {text}") for code, applies, text in checks if applies]
    return [{"code": code, "text": text} for code, text in entries]


def balanced(orders: Sequence[str]) -> bool:
    """Whether every task stands at every place equally often."""
    places = pd.DataFrame([order.split(" > ") for order in orders])
    tasks = places.loc[0]
    return len({count for at in places for count in places[at].value_counts().reindex(tasks, fill_value=0)}) == 1


def method_table(best: Rows, level: float) -> list[Json]:
    """Every metric as mean and interval over orders and seeds, methods by their final score."""
    table = []
    for (start, method, setting, lr), part in best.groupby(CELL, sort=False):
        names = {"start": start, "method": label(method), "setting chosen": f"{setting} lr={lr:g}".strip()}
        cells = {LABELS[metric]: format_level(mean) for metric, mean in metric_means(part, level).items()}
        minutes = part["seconds"].astype(float).mean() / 60
        table.append((start, -part["ACC"].mean(), {**names, "runs": len(part), **cells, "minutes": minutes}))
    return [row for *_, row in sorted(table, key=lambda item: item[:2])]


def metric_means(rows: Rows, level: float) -> dict[str, Estimate]:
    """The mean of each metric that was measured, with its interval over orders and seeds."""
    means = {metric: mean_estimate(rows[metric].dropna().tolist(), level, unit_of(metric, rows)) for metric in METRICS}
    return {metric: mean for metric, mean in means.items() if mean is not None}


def task_table(best: Rows, level: float) -> list[Json]:
    """R[own stage][task] - R[last stage][task], in the task's unit, positive where it got worse; mean of all runs whose
    order has a stage after the task."""
    table = []
    for (start, method), part in best.groupby(["start", "method"], sort=False):
        by_task: dict[str, list[float]] = {}
        for r in part["matrix"]:
            for j in r.earlier:
                by_task.setdefault(r.tasks[j], []).append(float(forgetting_by_task(r)[j]))
            for j in set(range(len(r.tasks))) - set(r.learned):
                by_task.setdefault(f"{r.tasks[j]} (upstream)", []).append(float(r.baseline[j] - r.gains[-1, j]))
        for task, values in sorted(by_task.items()):
            labels = {"start": start, "method": label(method), "task": task}
            table.append({**labels, **as_row(mean_estimate(values, level, unit_of("forgetting", part)))})
    return table


def figures(best: Rows, level: float) -> Figures:
    """Three for every start; with several starts its name stands behind theirs."""
    from kleiber.charts.intervals import estimates
    from kleiber.charts.theme import pointed
    from kleiber.studies.compare import figures as drawing

    charts: Figures = {}
    starts = list(dict.fromkeys(best["start"]))
    for start in starts:
        rows = best[best["start"] == start]
        tail, of = (f"-{start}", f", from {start}") if len(starts) > 1 else ("", "")
        order = sorted(set(rows["method"]), key=lambda name: (name != PLAIN, name))
        names, kind = [label(name) for name in order], rows["kind"].iloc[0]
        unit = "loss (nats per token)" if kind == "loss" else str(kind)
        of_first = unit.partition(" (")[0].capitalize()
        drawn = {
            "metrics": (estimates, metric_panels(rows, order, level), names, "",
                        f"Metrics by method, {level:.0%} intervals{of}"),
            "matrix": (drawing.score_matrix, matrices(rows, order),
                       f"Held-out {unit} of each task after each stage{of}"),
            "first_task": (drawing.first_task, first_task(rows), names,
                           pointed(f"held-out {unit}", "lower" if kind == "loss" else "higher"),
                           f"{of_first} on the first task vs tasks learned so far{of}"),
        }  # fmt: skip
        charts |= {f"{name}{tail}": partial(*call) for name, call in drawn.items()}
    return charts


def metric_panels(rows: Rows, order: Sequence[str], level: float) -> list[Json]:
    """The mean of each metric by method with its interval."""
    means = {name: metric_means(rows[rows["method"] == name], level) for name in order}
    return [
        {
            "panel": f"{LABELS[metric]} ({'lower' if metric in LOWER else 'higher'} is better)",
            "series": label(name), **asdict(means[name][metric]),
        }
        for metric in METRICS for name in order if metric in means[name]
    ]  # fmt: skip


def matrices(rows: Rows, order: Sequence[str]) -> Rows:
    """Mean R by method, stage and place of the task in the order, scores as the tasks have them; `change` against when
    the task was learned, higher is better, nan before."""
    sign, entries = sign_of(rows), []
    for name in order:
        mean = by_position(rows[rows["method"] == name]["matrix"].tolist())
        for i, j in np.ndindex(*mean.shape):
            change = mean[i, j] - mean[j, j] if i >= j else float("nan")
            cell = {"series": label(name), "stage": i + 1, "task": j + 1, "value": sign * mean[i, j], "change": change}
            entries.append(cell)
    return pd.DataFrame(entries)


def first_task(rows: Rows) -> Rows:
    """The score of the first task of each sequence after each stage."""
    sign, entries = sign_of(rows), []
    for name, r in zip(rows["method"], rows["matrix"], strict=True):
        scores = sign * r.gains[:, tasks_in_order(r)[0][1]]
        entries += [{"series": label(name), "stage": i, "value": score} for i, score in enumerate(scores, start=1)]
    return pd.DataFrame(entries)


def sign_of(rows: Rows) -> float:
    """What turns a gain into the score of a task: -1 for losses."""
    return -1.0 if rows["kind"].iloc[0] == "loss" else 1.0


def headline(record: Json) -> str:
    """Returns who ends with the best score, against plain fine-tuning, from each start."""
    sentences, best = [], record["best"]
    for start, part in best.groupby("start", sort=False):
        means = part.groupby("method")["ACC"].mean().sort_values(ascending=False)
        orders, seeds, tasks = part["order"].nunique(), part["seed"].nunique(), len(part["matrix"].iloc[0].learned)
        counts = f"{orders} order{'s' * (orders > 1)} with {seeds} seed{'s' * (seeds > 1)}"
        where, unit = f"From {start}, {tasks} tasks in {counts}", unit_of("ACC", part)
        name = next((name for name in means.index if name != PLAIN), means.index[0])
        what = "score" if sign_of(part) > 0 else "loss"
        ends = f"{where}: {label(name)} ends at a mean {what} of {sign_of(part) * means[name]:.3f} {unit}".rstrip()
        side = {"method": name, "start": start}
        answer = next(
            (sentence(result) for result in record["claims"]
             if result.claim.measure == "ACC" and result.claim.of == side), None,
        )  # fmt: skip
        if PLAIN not in means or answer is None:
            why = "no comparison" if len(means) == 1 else "on no order and seed in common with plain fine-tuning"
            sentences.append(f"{ends}, {why}.")
        else:
            sentences.append(f"{ends} and plain fine-tuning at {sign_of(part) * means[PLAIN]:.3f}. {answer}")
    return " ".join(sentences)


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
    "are within order and seed; those of the claims hold together, with variances that are shrunk to each other (Smyth "
    "2004)."
)
