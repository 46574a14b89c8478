"""The study `instructions`: what instruction tuning teaches a small model, and what it forgets.

The arms and claims between them are those of `Compare`. This module adds the model before tuning, which every run
scores before its first step, and claims of the arms against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import START as BEFORE
from kleiber.studies.compare.arms import Arm
from kleiber.studies.compare.decision import mean_estimate
from kleiber.studies.compare.labels import readable
from kleiber.studies.compare.measures import Measures
from kleiber.studies.compare.study import Compare
from kleiber.studies.compare.tables import at_common_budget
from kleiber.studies.study import Findings
from kleiber.types import Json

START = "before tuning"
FOLLOWED = "eval/instructions/"
SHOWN = {  # of all instructions together
    "accuracy": "instructions followed (share)",
    "unasked": "followed by answers to other prompts (share)",
    "lift": "lift: followed, less by answers to other prompts",
}


@dataclass(frozen=True)
class Instructions(Compare):
    """Compares arms of instruction tuning with one another, and each with the model that it started from."""

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Decides all claims, and shows what each arm scores beside its start."""
        findings = super().analyze(runs)
        arms = at_common_budget(self.ladders(runs))
        rows = score_rows(arms, Measures(runs), self.level)
        # Arms start from one base, so their sizes differ by adapters alone.
        charts = {name: draw for name, draw in findings.figures.items() if name != "sizes"}
        return replace(
            findings,
            tables={"Scores before and after tuning": rows, **findings.tables},
            figures={"scores": partial(chart, rows, self.labels(runs)), **charts},
            methods=f"{METHODS} {findings.methods}",
        )


METHODS = (
    "Every run starts from the same trained weights, or from those of the base of its seed, and learns the answers of "
    "instruction data. Losses are those of answer tokens of held-out instructions, and of the text that the start was "
    "trained on. Instructions that a rule verifies (after IFEval, Zhou et al. 2023, arXiv:2311.07911) are answered "
    "greedily; the lift is the share of answers that follow the instruction of their prompt less the share of answers "
    "to other prompts that follow it. Differences to the start are paired by seed, and their claims share the error "
    "rate with those between arms."
)


def scores_before(arms: Mapping[str, Arm], measure: str) -> Mapping[str, Mapping[int, float]]:
    """A measure by seed before tuning: of the start that all arms share, or of each arm where their starts differ."""
    by_arm = {name: scores for name, arm in arms.items() if (scores := arm.values(f"{BEFORE}{measure}"))}
    shared: dict[int, float] = {}
    for scores in by_arm.values():
        for seed, value in scores.items():
            if not math.isclose(shared.setdefault(seed, value), value, rel_tol=1e-4):
                return {f"{arm}, {START}": scores for arm, scores in by_arm.items()}
    return {START: shared}


def score_rows(arms: Mapping[str, Arm], scores: Measures, level: float) -> list[Json]:
    """A row for each measure and for the start and each arm at its best rate: the mean over seeds with its interval."""
    names = dict.fromkeys(name for arm in arms.values() for name in arm.measures_at_best)
    measures = [name for name in names if is_shown(name) and f"{BEFORE}{name}" in names]
    rows = []
    for measure in measures:
        by_model = {**scores_before(arms, measure), **{name: arm.values(measure) for name, arm in arms.items()}}
        for model, values in by_model.items():
            estimate = mean_estimate([*values.values()], level, scores[measure].unit)
            if estimate is not None:
                rows.append({"measure": title_of(measure), "model": model, **asdict(estimate)})
    return rows


def is_shown(measure: str) -> bool:
    """Whether a measure is a loss of a text, or of all instructions together."""
    if measure.startswith(FOLLOWED):
        return measure.rpartition("/")[2] in SHOWN and measure.count("/") == FOLLOWED.count("/") + 2
    return measure.startswith("val/") and measure.endswith("/loss")


def title_of(measure: str) -> str:
    """What people call a measure."""
    middle, last = measure.split("/")[1:-1], measure.rpartition("/")[2]
    return SHOWN[last] if last in SHOWN else f"loss on {'/'.join(middle)} (nats per token)"


def chart(rows: Sequence[Json], labels: Mapping[str, str]) -> object:
    """Losses and instruction following before and after tuning, a panel for each measure, with intervals.

    labels  what each arm is called
    """
    import altair as alt

    from kleiber.charts.theme import apply_theme, kind_color

    named = {**labels, **{f"{arm}, {START}": f"{label}, {START}" for arm, label in labels.items()}, START: START}
    table = pd.DataFrame([{**row, "model": named[row["model"]]} for row in rows])
    models = list(dict.fromkeys(table["model"]))
    arms_first = sorted(models, key=lambda model: model.endswith(START))  # with the colors of the page
    color = kind_color(models, "model", order=arms_first)
    panels = []
    for measure, part in table.groupby("measure", sort=False):
        base = alt.Chart(part).encode(y=alt.Y("model:N", sort=models, title=None), color=color)
        low, value = (
            alt.X(f"{name}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4, labelOverlap=True))
            for name in ("lo", "value")
        )
        layers = alt.layer(
            base.mark_rule(strokeWidth=1.6).encode(x=low, x2="hi:Q"),
            base.mark_point(filled=True, size=60, opacity=1).encode(
                x=value, tooltip=["model", alt.Tooltip("value:Q", format=".4f")]
            ),
        )
        panels.append(layers.properties(title=" ".join(map(readable, str(measure).split())), width=240, height=80))
    title = alt.TitleParams("Losses and instruction following before and after tuning", anchor="start")
    return apply_theme(alt.concat(*panels, columns=2).properties(title=title))
