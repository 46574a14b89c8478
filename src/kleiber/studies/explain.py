"""The study `explain`: which attribution is faithful, on models and data whose predictions rest on known tokens.

Each arm is a task with planted causes, learned by several seeds. `evals=attribution` explains predictions of each run:
how often a method ranks a cause first, and what deletion and insertion say without knowing it. Differences between
methods are within runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import ClassVar

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import arm_name, planned_arms
from kleiber.studies.compare.decision import as_row, gaps_by_seed, mean_estimate
from kleiber.studies.compare.places import OneRunStudy, refuse_twin_rows
from kleiber.studies.compare.rows import Rows, values_by
from kleiber.studies.compare.verdicts import MeanClaim, decide_means
from kleiber.studies.study import Findings
from kleiber.types import Json

METRIC = re.compile(r"eval/attribution/[^/]+/(planted_first|planted_found|deletion_gain|insertion_gain)/(\w+)")
METHODS = {
    "occlusion": "occlusion",
    "integrated_gradients": "integrated gradients",
    "rollout": "attention rollout",
    "gradient_x_input": "gradient x input",
    "random": "random ranking",
}
ARMS = {"trigger_lstm": "trigger, LSTM"}  # labels that are not the name
MEASURES = {  # label and unit
    "planted_first": ("a cause is ranked first", "share of texts"),
    "planted_found": ("causes among the first", "share of causes"),
    "deletion_gain": ("deletion, relative to random rankings", "nats"),
    "insertion_gain": ("insertion, relative to random rankings", "nats"),
}
TRUTH, TEST = "planted_first", "deletion_gain"
FAITHFUL = 0.95  # share of texts in which the cause has to be first
BETTER = (  # method, and the one that it is claimed to be better than
    ("occlusion", "gradient_x_input"),
    ("integrated_gradients", "gradient_x_input"),
    ("occlusion", "rollout"),
)
PAPER = (
    "Models learned tasks whose answers rest on known tokens: a trigger that stands anywhere in a text and alone "
    "decides its last token, and lookup, where a key that was read before asks for the value behind it (Arora et al. "
    "2023, arXiv:2312.04927). In lookup every key has values of its own, so the value tells its key; in induction all "
    "keys share them, so a layer has to mark each value with the key in front of it (Olsson et al. 2022, "
    "arXiv:2209.11895). Stories are explained at five places, where no cause is known. Attributions are of the log- "
    "probability of the answer to the tokens in front of it; the token that asks is left out of the ranking. Deletion "
    "and insertion replace tokens by those of other texts at the same place, in the order of the attributions "
    "(Petsiuk et al. 2018, arXiv:1806.07421), and are given in nats relative to random rankings of the same texts. "
    "Differences between methods are paired by seed, with Student's intervals; those of the claims hold together "
    "(Bonferroni)."
)


@dataclass(frozen=True, kw_only=True)
class Explain(OneRunStudy):
    """How often each attribution finds the planted cause, and whether deletion tells which attribution does.

    arm  of a cell: set by the design
    """

    of_each_size: ClassVar[bool] = False

    arm: str | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates each method on each task, and decides the claims.

        Raises ValueError where no run has been explained on data with planted causes.
        """
        rows = explained(runs)
        arms = [arm for arm in planned_arms([run.config for run in runs]) if arm in set(rows["arm"])]
        arms = arms or list(dict.fromkeys(rows["arm"]))
        tables = {
            f"{MEASURES[measure][0].capitalize()} ({MEASURES[measure][1]})": means(rows, arms, measure, self.level)
            for measure in MEASURES
            if measure in set(rows["measure"])
        }
        verdicts = decide_means(claims(rows, arms), self.level)
        shown = {
            "planted": partial(chart, rows, arms, (TRUTH,), self.level),
            "tests": partial(chart, rows, arms, (TEST, "insertion_gain"), self.level),
        }
        return Findings(headline(rows, arms, self.level), verdicts, tables, shown, methods=PAPER)


def explained(runs: Sequence[Run]) -> Rows:
    """A row for each finished run, method and measure: arm, seed, method, measure, value."""
    rows: list[Json] = []
    for run in (run for run in runs if run.finished and arm_name(run) is not None):
        for metric, value in run.metrics.items():
            match = METRIC.fullmatch(metric)
            if match and match[2] in METHODS:
                names = {"arm": arm_name(run), "seed": run.config["seed"], "measure": match[1], "method": match[2]}
                rows.append({"run": run.name, **names, "value": value})
    table = pd.DataFrame(rows, columns=["run", "arm", "seed", "measure", "method", "value"])
    if TRUTH not in set(table["measure"]):
        raise ValueError(
            "no run here was explained on data with planted causes: train with evals=attribution and data=trigger or "
            "data=recall"
        )
    refuse_twin_rows(table, ["arm", "seed"], runs)
    return table


def by_seed(rows: Rows, arm: str, method: str, measure: str) -> dict[int, float]:
    """A measure of a method on a task, by seed; empty where it is not defined."""
    return values_by(rows, ["seed"], "value", arm=arm, method=method, measure=measure)


def means(rows: Rows, arms: Sequence[str], measure: str, level: float) -> list[Json]:
    """The mean over seeds of a measure for each task and method, with Student's interval."""
    table: list[Json] = []
    for arm in arms:
        for method, name in METHODS.items():
            estimate = mean_estimate(list(by_seed(rows, arm, method, measure).values()), level, MEASURES[measure][1])
            if estimate is None:
                continue
            if measure.startswith("planted"):
                estimate = estimate.within(0.0, 1.0)
            table.append({"arm": arm, "task": ARMS.get(arm, arm), "method": name, **as_row(estimate)})
    return table


def claims(rows: Rows, arms: Sequence[str]) -> list[MeanClaim]:
    """The claims about each method pair and the faithful share, by task, and about deletion."""
    unit = MEASURES[TRUTH][1]
    mean_claims: list[MeanClaim] = []
    for arm in arms:
        name = ARMS.get(arm, arm)
        for better, worse in BETTER:
            gaps = gaps_by_seed(*(by_seed(rows, arm, method, TRUTH) for method in (better, worse)))
            text = f"{name}: {METHODS[better]} ranks a cause first more often than {METHODS[worse]}"
            mean_claims.append(MeanClaim(f"{arm}_{better}_{worse}", text, gaps, "higher", unit=unit))
        shares = [share - FAITHFUL for share in by_seed(rows, arm, "occlusion", TRUTH).values()]
        text = f"{name}: occlusion ranks a cause first in more than {FAITHFUL:.0%} of texts"
        mean_claims.append(MeanClaim(f"{arm}_faithful", text, shares, "higher", unit=f"{unit} above {FAITHFUL:g}"))
    orders = [order for arm in arms for order in agreements(rows, arm)]
    text = "the method with the larger deletion gain ranks a cause first more often, over pairs of methods"
    mean_claims.append(MeanClaim("deletion", text, orders, "higher", unit="share of pairs above 1/2"))
    return mean_claims


def agreements(rows: Rows, arm: str) -> list[float]:
    """For each seed, the share of pairs of methods that deletion orders as the truth does, less 1/2; without ties."""
    methods = [method for method in METHODS if all(by_seed(rows, arm, method, of) for of in (TEST, TRUTH))]
    by_method = {method: (by_seed(rows, arm, method, TEST), by_seed(rows, arm, method, TRUTH)) for method in methods}
    shares = []
    for seed in sorted(set.intersection(*(set(test) for test, _ in by_method.values())) if methods else ()):
        signs = [
            np.sign(by_method[a][0][seed] - by_method[b][0][seed])
            * np.sign(by_method[a][1][seed] - by_method[b][1][seed])
            for a, b in combinations(methods, 2)
        ]
        ordered = [sign > 0 for sign in signs if sign]
        if ordered:
            shares.append(float(np.mean(ordered)) - 0.5)
    return shares


def headline(rows: Rows, arms: Sequence[str], level: float) -> str:
    """How often each method ranks a cause first, on each task."""
    parts: dict[str, list[str]] = {}
    for row in means(rows, arms, TRUTH, level):
        interval = "" if row["lo"] is None else f" [{row['lo']:.0%}, {row['hi']:.0%}]"
        parts.setdefault(row["task"], []).append(f"{row['method']} {row['value']:.0%}{interval}")
    tasks = "; ".join(f"{task}: {', '.join(texts)}" for task, texts in parts.items())
    return f"A token that decides the answer is ranked first in this share of texts. {tasks}."


def chart(rows: Rows, arms: Sequence[str], measures: Sequence[str], level: float) -> object:
    """Means over seeds of measures with intervals, a panel for each task and measure."""
    from kleiber.studies.compare.chart_forms import estimates, interval_note

    shown: list[Json] = []
    for measure in measures:
        for row in means(rows, arms, measure, level):
            panel = row["task"] if len(measures) == 1 else f"{row['task']}: {measure.partition('_')[0]}"
            shown.append({"series": row["method"], "panel": panel, **{key: row[key] for key in ("value", "lo", "hi")}})
    order, note = ["", *METHODS.values()], interval_note(level, shown)
    if len(measures) == 1:
        label, unit = MEASURES[measures[0]]
        return estimates(shown, order, unit, f"Attributions by how often {label}", subtitle=note)
    title = "Area under deletion and insertion, relative to random rankings"
    return estimates(shown, order, "nats", title, zero=True, subtitle=note)
