"""The study `chain_of_thought`: does a model that writes worked steps add longer numbers at equal training tokens?

The arms and claims are those of `Compare`. This module adds the exact match of each arm by the number of digits, as
`evals=exact_match` measures it on `data=arithmetic`, and what the steps gain at each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from kleiber.config.model_size import width_of
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import Arm, ArmOf, arm_name
from kleiber.studies.compare.decision import as_row, paired_difference
from kleiber.studies.compare.rows import Rows, seed_means
from kleiber.studies.compare.study import Compare
from kleiber.studies.compare.tables import at_common_budget, cell_scores
from kleiber.studies.study import Figures, Findings, PlannedPoint
from kleiber.types import Config, Json
from kleiber.types.score import format_interval

CELL = re.compile(r"eval/exact_match/digits(\d+)/accuracy")
# What compares losses, which are of different answers, and so of different tokens.
OF_LOSS = ("Differences", "Differences by training tokens", "Trends of differences", "differences", "arms", "sizes")


@dataclass(frozen=True)
class ChainOfThought(Compare):
    """Compares arms that answer with and without steps, by the number of digits and the size of the model."""

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError for what `Compare` refuses, and for two arms that differ neither in steps nor in width."""
        settings(point.config for point in points)
        return super().check_plan(points)

    def labels(self, runs: Sequence[Run], arm_of: ArmOf = arm_name) -> dict[str, str]:
        return {
            arm: f"{'worked steps' if steps else 'sum alone'}, width {width}"
            for arm, (steps, width) in settings(run.config for run in runs).items()
        }

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Decides the claims, and shows the exact match of each arm at every number of digits.

        Raises ValueError where no run was scored on arithmetic.
        """
        findings = super().analyze(runs)
        arms = at_common_budget(self.ladders(runs))
        rows = cell_scores(arms, CELL, lambda match: {"digits": int(match[1])})
        if rows.empty:
            raise ValueError("no run here was scored on arithmetic: train with evals=exact_match and data=arithmetic")
        means = match_means(rows, self.level)
        named = self.labels(runs)
        gained = gains(arms, runs, self.level)
        shown = pd.concat([means[means["arm"] == arm] for arm in named if arm in arms])
        shown = shown.assign(arm=[named[arm] for arm in shown["arm"]])
        listed = shown.drop(columns="half").rename(columns={"mean": "exact match"})
        tables = {
            "Exact match by number of digits": listed.to_dict("records"),
            "Gain of worked steps by number of digits": gained,
            **findings.tables,
        }
        with_interval = [row for row in gained if row["lo"] is not None]  # which one seed has not
        figures: Figures = {
            "digits": partial(chart, shown, [named[arm] for arm in arms], self.level),
            **findings.figures,
        }
        if with_interval:
            figures["gains"] = partial(gain_chart, with_interval, self.level)
        return replace(
            findings,
            answer=f"{summary(shown, gained)} {findings.answer}",
            tables={title: part for title, part in tables.items() if title not in OF_LOSS},
            figures={name: draw for name, draw in figures.items() if name not in OF_LOSS},
            methods=f"{METHODS} {findings.methods}",
        )


METHODS = (
    "Models learned to add numbers from generated problems, with the loss on answers alone. The answer is the sum, or "
    "the sums of the columns from the right with their carries and then the sum (a scratchpad: Nye et al. 2021, "
    "arXiv:2112.00114). Training tokens are equal, and since steps make answers longer, an arm with steps saw fewer "
    "problems. Exact match is the share of held-out problems, none of which any arm trained on in either order of its "
    "terms, whose greedy answer ends in the right sum. All arms and seeds answer the same problems."
)


def match_means(rows: pd.DataFrame, level: float) -> Rows:
    """The mean exact match of each arm and number of digits, with the noise of seeds pooled over those of its arm."""
    parts = [
        seed_means(part, ["arm", "digits"], "accuracy", level, (0, 1)) for _, part in rows.groupby("arm", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def settings(configs: Iterable[Config]) -> dict[str, tuple[bool, int]]:
    """Whether the answers of each arm show steps, and the width of its model; narrow models first.

    Raises ValueError for two arms that differ in neither.
    """
    read = dict[str, tuple[bool, int]]()
    for config in configs:
        arm = (config.get("study") or {}).get("arm")
        if arm is not None:
            read[str(arm)] = (bool(config["data"].get("steps")), width_of(config["model"]))
    arm_of = {setting: arm for arm, setting in read.items()}
    for arm, setting in read.items():
        if arm_of[setting] != arm:
            raise ValueError(
                f"the arms {arm} and {arm_of[setting]} differ neither in data.steps nor in model.width, by which this "
                "study tells arms apart: give them another width, or use study=compare"
            )
    return dict(sorted(read.items(), key=lambda item: (item[1][1], item[1][0])))


def gains(arms: Mapping[str, Arm], runs: Sequence[Run], level: float) -> list[Json]:
    """The exact match with steps less that without, for each width and number of digits, paired by seed."""
    by_setting = {setting: arm for arm, setting in settings(run.config for run in runs).items() if arm in arms}
    rows = []
    for width in sorted({width for _, width in by_setting}):
        if not {(True, width), (False, width)} <= by_setting.keys():
            continue
        steps, plain = (arms[by_setting[shown, width]] for shown in (True, False))
        metrics = [match for match in map(CELL.fullmatch, steps.measures_at_best) if match is not None]
        for match in sorted(metrics, key=lambda match: int(match[1])):
            gap = paired_difference(steps.values(match[0]), plain.values(match[0]), level, "exact match")
            rows.append({"width": width, "digits": int(match[1]), **as_row(gap)})
    return rows


def summary(shown: Rows, gained: Sequence[Json]) -> str:
    """The exact match of the widest models at the largest number of digits, and what the steps gain there."""
    last = shown[shown["digits"] == shown["digits"].max()]
    texts = []
    for row in last.to_dict("records"):
        interval = f" {format_interval(row['lo'], row['hi'], '.0%')}" if row["seeds"] > 1 else ""
        texts.append(f"{row['arm']}, {row['mean']:.0%}{interval}")
    text = f"Of held-out sums of numbers with {last['digits'].max()} digits these are right: {'; '.join(texts)}."
    for row in gained:
        if row["width"] == gained[-1]["width"] and row["digits"] == shown["digits"].max() and row["lo"] is not None:
            interval = format_interval(row["lo"], row["hi"], "+.2f")
            text += f" At width {row['width']} the steps gain {row['value']:+.2f} {interval}."
    return text


def chart(shown: Rows, order: Sequence[str], level: float) -> object:
    """Exact match over the number of digits, a line for each arm of the page, with intervals over seeds."""
    from kleiber.charts.theme import line_chart
    from kleiber.studies.compare.chart_forms import interval_note

    return line_chart(
        shown, "digits", "digits of each term", "arm", "Exact match of held-out sums vs number of digits",
        value="exact match (share of problems)", linear=True, order=order, subtitle=interval_note(level, shown),
    )  # fmt: skip


def gain_chart(gained: Sequence[Json], level: float) -> object:
    """What steps gain over the number of digits, a line for each width, with intervals over seeds."""
    from kleiber.charts.theme import line_chart
    from kleiber.studies.compare.chart_forms import interval_note

    rows = pd.DataFrame(gained).rename(columns={"value": "mean", "n": "seeds"})
    rows = rows.assign(half=(rows["hi"] - rows["lo"]) / 2, width=[f"width {width}" for width in rows["width"]])
    return line_chart(
        rows, "digits", "digits of each term", "width", "Gain of worked steps vs number of digits",
        value="exact match with steps less without", linear=True, subtitle=interval_note(level, rows),
    )  # fmt: skip
