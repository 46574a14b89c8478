"""The study `needle`: does attention find what matters, where a recurrent state of equal parameters forgets it?

The arms and claims are those of `Compare`. This module adds the accuracy of each arm by depth of the needle and length
of the haystack, as `evals=needle` measures it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import ArmOf, arm_name
from kleiber.studies.compare.rows import Rows, seed_means
from kleiber.studies.compare.study import Compare
from kleiber.studies.compare.tables import at_common_budget, cell_scores
from kleiber.studies.study import Findings
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

CELL = re.compile(r"eval/needle/[^/]+/length(\d+)(?:/depth([\d.]+))?/accuracy")
LABELS = {
    "full": "full attention",
    "window": "window attention",
    "none": "no mixing of positions",
    "lstm": "LSTM",
}  # by the arm's name up to _


@dataclass(frozen=True)
class Needle(Compare):
    """Compares arms in how well they recall a needle, by its depth and the length of the haystack."""

    def labels(self, runs: Sequence[Run], arm_of: ArmOf = arm_name) -> dict[str, str]:
        return labels(runs, arm_of)

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Decides the claims, and shows the accuracy of each arm in every cell of depth and length."""
        findings = super().analyze(runs)
        arms = at_common_budget(self.ladders(runs))
        rows = cell_scores(arms, CELL, place)
        if rows.empty:
            raise ValueError(
                "no run here was scored on needles: train with evals=needle and data=recall, data.distractors set"
            )
        cells = seed_means(rows[rows["depth"].notna()], ["arm", "length", "depth"], "accuracy", self.level, (0, 1))
        lengths = seed_means(rows[rows["depth"].isna()], ["arm", "length"], "accuracy", self.level, (0, 1))
        chance = guessing(runs)
        named = self.labels(runs)
        named = {arm: named[arm] for arm in arms}
        cells, lengths = (in_order(table, named) for table in (cells, lengths))
        tables = {
            "Accuracy by length of the haystack": listed(lengths),
            "Accuracy by length and depth": listed(cells),
        }
        figures = {
            "needle": partial(heat_maps, cells, chance),
            "needle_lengths": partial(lines, lengths, chance, [*named.values()]),
        }
        return replace(
            findings,
            answer=f"{summary(lengths)} {findings.answer}",
            tables={**tables, **findings.tables},
            figures={**figures, **findings.figures},
            methods=f"{METHODS} {findings.methods}",
        )


METHODS = (
    "Models of one depth and nearly equal parameters were trained on rows that hide pairs of a key and a value in "
    "meaningless tokens and then ask for them (after multi-query recall, Arora et al. 2023, arXiv:2312.04927). They "
    "were then asked one question about a needle at a fixed place of a haystack of fixed length, among as many "
    "distracting pairs as in training. Accuracy is the share of questions whose most probable answer is the needle's "
    "value. Intervals are t intervals over seeds, their noise pooled over settings; the same questions are asked of "
    "all arms and seeds."
)


def place(match: re.Match[str]) -> Row:
    """Length and depth of a measure of `evals=needle`; the depth of a mean over depths is nan."""
    return {"length": int(match[1]), "depth": math.nan if match[2] is None else float(match[2])}


def labels(runs: Sequence[Run], arm_of: ArmOf) -> dict[str, str]:
    """What each arm is called: its model, and the number of pairs in its haystacks where the arms differ in it.

    Arms that would be called the same have their own names.
    """
    pairs = {
        str(arm_of(run)): 1 + int(run.config["data"].get("distractors") or 0) for run in runs if arm_of(run) is not None
    }
    texts = {arm: LABELS.get(arm.partition("_")[0], arm) for arm in pairs}
    if len(set(pairs.values())) > 1:
        texts = {arm: f"{text}, {pairs[arm]} pairs" for arm, text in texts.items()}
    counts = Counter(texts.values())
    return {arm: text if counts[text] == 1 else arm for arm, text in texts.items()}


def in_order(means: Rows, named: Mapping[str, str]) -> Rows:
    """The rows of `seed_means` in the order of the arms, with their labels as names."""
    rows = pd.concat([means[means["arm"] == arm] for arm in named])
    return rows.assign(arm=[named[arm] for arm in rows["arm"]])


def guessing(runs: Sequence[Run]) -> float | None:
    """The accuracy of guessing one of the values of a key; None where the runs differ in their number."""
    counts = {run.config["data"].get("values") or 64 for run in runs}
    return 1 / counts.pop() if len(counts) == 1 else None


def listed(means: Rows) -> list[Json]:
    """Rows of a table."""
    return means.drop(columns="half").rename(columns={"mean": "accuracy"}).to_dict("records")


def summary(lengths: Rows) -> str:
    """The accuracy of each arm at the longest haystack, in a sentence."""
    longest = lengths[lengths["length"] == lengths["length"].max()].sort_values("mean", ascending=False)
    parts = []
    for row in longest.to_dict("records"):
        interval = f" {format_interval(row['lo'], row['hi'], '.0%')}" if row["seeds"] > 1 else ""
        parts.append(f"{row['arm']} {row['mean']:.0%}{interval}")
    where = f"In haystacks of {longest['length'].max()} tokens the needle is recalled"
    return f"{where} by {', '.join(parts)} (mean over its places)."


def heat_maps(cells: Rows, chance: float | None) -> object:
    """Accuracy over depth and length, a panel for each arm."""
    from kleiber.charts.needles import heat_maps

    title = "Recall of a needle, by its place and the length of the haystack"
    return heat_maps(cells.rename(columns={"mean": "value", "arm": "panel"}), title, guess_text(chance), columns=3)


def lines(lengths: Rows, chance: float | None, order: Sequence[str]) -> object:
    """Accuracy over the length of the haystack, a line for each arm of the page, with intervals over seeds."""
    from kleiber.charts.theme import line_chart

    return line_chart(
        lengths, "length", "haystack (tokens)", "arm", "Recall of a needle vs length of the haystack",
        value="accuracy (mean over places of the needle)", subtitle=guess_text(chance), order=order,
    )  # fmt: skip


def guess_text(chance: float | None) -> str:
    return "" if chance is None else f"accuracy; guessing one of the values of a key: {100 * chance:.3g}%"
