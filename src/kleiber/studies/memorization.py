"""The study `memorization`: what models remember of canaries, by repetitions and size, and what each remedy costs.

Runs of `data=canaries` are scored by `evals=memorization`: exposure in bits and extraction by number of repetitions.
The first arm of the design is the reference; the others remove duplicates or train with differential privacy. A canary
that was never planted is the control: its exposure is that of chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from kleiber.config.model_size import width_of
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import arm_name, leaf_rows, planned_arms
from kleiber.studies.compare.decision import as_row, from_row, mean_estimate, paired_difference
from kleiber.studies.compare.places import OneRunStudy, refuse_twin_rows
from kleiber.studies.study import Figures, Findings
from kleiber.types import Json, Row

CANARY = re.compile(r"eval/memorization/canaries/(exposure|extracted)/(\d+)")
AREA = "membership_auc/loss"
LOSS, EPSILON, BITS, NATS = "loss", "privacy/epsilon", "bits", "nats per token"
DISTINCT = "exact"  # the arm whose canaries are the same, each read once
LABELS = {"plain": "plain", DISTINCT: "without exact duplicates", "near": "without near duplicates"}

Place = tuple[str, int]  # an arm and its width
BySeed = dict[int, float]


@dataclass(frozen=True)
class Cells:
    """The runs of one arm at one width: values by measure and seed.

    epsilon  that the runs spent; None without differential privacy
    """

    place: Place
    values: Mapping[str, BySeed]
    epsilon: float | None

    def of(self, measure: str, repetitions: int | None = None) -> BySeed:
        """The values of a measure, such as exposure of canaries with a number of repetitions, by seed."""
        return self.values.get(measure if repetitions is None else f"{measure}/{repetitions}", {})

    @property
    def name(self) -> str:
        """What the arm is called."""
        arm = self.place[0]
        return LABELS.get(arm, arm) if self.epsilon is None else f"DP-SGD, epsilon {shown(self.epsilon):g}"


@dataclass(frozen=True, kw_only=True)
class Memorization(OneRunStudy):
    """Exposure and extraction of canaries by arm, width and repetitions, against the first arm of the design."""

    arm: str | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates exposure, extraction and loss of each arm, and differences of those that the questions need.

        Raises ValueError where no run was scored on canaries.
        """
        cells = read_cells(runs)
        measures = [name.split("/") for cell in cells for name in cell.values]
        repetitions = sorted({int(parts[1]) for parts in measures if parts[0] == "exposure"})
        if not repetitions:
            raise ValueError("no run here was scored on canaries: train with data=canaries and evals=memorization")
        differences = [row for row in self.differences(cells, repetitions) if row["value"] is not None]
        measured = self.by_repetitions(cells, repetitions)
        tables = {
            "Exposure and extraction by repetitions": measured,
            "Loss and membership": self.costs(cells),
            "Differences": differences,
        }
        charts: Figures = {
            "exposure": partial(repetition_figure, cells, repetitions, "exposure", "exposure (bits)"),
            "extracted": partial(repetition_figure, cells, repetitions, "extracted", "share of canaries extracted"),
        }
        if any(cell.epsilon is not None for cell in cells):
            charts["epsilon"] = partial(epsilon_figure, cells, max(repetitions))
        notes = [{"code": row["code"], "level": "note", "text": sentence(row)} for row in differences]
        return Findings(
            headline=headline(cells, differences, measured),
            verdicts=notes,
            tables={title: rows for title, rows in tables.items() if rows},
            figures=charts,
            methods=METHODS.format(level=f"{self.level:.0%}"),
        )

    def by_repetitions(self, cells: Sequence[Cells], repetitions: Sequence[int]) -> list[Json]:
        """A row for each arm, width, number of repetitions and measure."""
        rows: list[Json] = []
        for cell in cells:
            for count in repetitions:
                for measure, unit in (("exposure", BITS), ("extracted", "share")):
                    estimate = mean_estimate([*cell.of(measure, count).values()], self.level, unit)
                    if estimate is not None:
                        place = {"arm": cell.name, "width": cell.place[1], "repetitions": count, "measure": measure}
                        rows.append({**place, **as_row(estimate.within(0.0, 1.0 if unit == "share" else math.inf))})
        return rows

    def costs(self, cells: Sequence[Cells]) -> list[Json]:
        """A row for each arm and width with its epsilon and its loss, and one with its area of membership inference."""
        rows: list[Json] = []
        for cell in cells:
            for measure, unit in ((LOSS, NATS), (AREA, "area")):
                estimate = mean_estimate([*cell.of(measure).values()], self.level, unit)
                if estimate is not None:
                    place = {"arm": cell.name, "width": cell.place[1], "epsilon": cell.epsilon, "measure": measure}
                    rows.append({**place, **as_row(estimate)})
        return rows

    def differences(self, cells: Sequence[Cells], repetitions: Sequence[int]) -> list[Json]:
        """What repetition, size and each arm do to the exposure, and what each arm does to the loss."""
        most, least = max(repetitions), min((count for count in repetitions if count), default=0)
        middle = [count for count in repetitions if least < count < most][-1:] or [most]
        first = cells[0].place[0]
        narrow = min(cell.place[1] for cell in cells if cell.place[0] == first)
        by_place = {cell.place: cell for cell in cells}
        rows = []
        for (arm, width), cell in by_place.items():
            at_most = cell.of("exposure", most)
            if arm == first:
                if least < most:
                    text = f"Exposure of canaries repeated {most} times less that of those repeated {times(least)}"
                    rows.append(self.row("repetition", cell, text, at_most, cell.of("exposure", least), BITS))
                    text = f"Share of canaries repeated {most} times that are extracted less that of those repeated"
                    text = f"{text} {times(least)}"
                    always, once = (cell.of("extracted", count) for count in (most, least))
                    rows.append(self.row("extraction", cell, text, always, once, "share"))
                if width != narrow:
                    text = f"Exposure of canaries repeated {middle[0]} times less that at width {narrow}"
                    other = by_place[arm, narrow].of("exposure", middle[0])
                    rows.append(self.row("size", cell, text, cell.of("exposure", middle[0]), other, BITS))
                continue
            plain = by_place.get((first, width))
            if plain is not None:
                text = f"Exposure of canaries repeated {most} times less that of the arm {LABELS.get(first, first)}"
                rows.append(self.row(f"exposure_{arm}", cell, text, at_most, plain.of("exposure", most), BITS))
                text = f"Validation loss less that of the arm {LABELS.get(first, first)}"
                rows.append(self.row(f"loss_{arm}", cell, text, cell.of(LOSS), plain.of(LOSS), NATS))
            if 0 in repetitions:
                text = f"Exposure of canaries repeated {most} times less that of canaries that were never planted"
                rows.append(self.row(f"chance_{arm}", cell, text, at_most, cell.of("exposure", 0), BITS))
            read_once = by_place.get((DISTINCT, width))
            if read_once is not None and arm != DISTINCT:
                text = f"Exposure of canaries repeated {most} times less that of the same ones in the arm"
                text = f"{text} {LABELS[DISTINCT]}, which reads them once"
                rows.append(self.row(f"once_{arm}", cell, text, at_most, read_once.of("exposure", most), BITS))
        return rows

    def row(self, code: str, cell: Cells, text: str, ours: BySeed, theirs: BySeed, unit: str) -> Json:
        """One difference, paired by seed."""
        estimate = paired_difference(ours, theirs, self.level, unit)
        if estimate is not None and unit == "share":
            estimate = estimate.within(-1.0, 1.0)
        return {"code": code, "arm": cell.name, "width": cell.place[1], "difference": text, **as_row(estimate)}


METHODS = (
    "Secrets of random digits were planted in the training text with fixed numbers of repetitions, and every arm was "
    "trained on it with every seed (Carlini et al. 2019, arXiv:1802.08232). Exposure is the binary logarithm of the "
    "number of candidates over the rank of the secret among them, the rank from a skew-normal distribution fitted to a "
    "sample of candidates where there are too many to score; chance has 1.44 bits on average. A secret counts as "
    "extracted if the model writes it at temperature 0 after the words before it. The canaries and their places are "
    "the same in all runs, so intervals (Student's at {level}) are over seeds of the model and the order of the data, "
    "not over canaries. Epsilon is that of DP-SGD (Abadi et al. 2016, arXiv:1607.00133) for one window of text, by the "
    "Rényi accountant for Poisson sampling; a canary that is repeated has many windows. The learning rate is the same "
    "in all arms and was not tuned for any."
)


def shown(epsilon: float) -> float:
    """Epsilon to one decimal place, and below 1 to two."""
    return round(epsilon, 1 if epsilon >= 1 else 2)


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def read_cells(runs: Sequence[Run]) -> list[Cells]:
    """The cells, arms in the order of the design and widths ascending."""
    rows = [row for run in runs if arm_name(run) for row in finished_rows(run)]
    if rows:
        refuse_twin_rows(pd.DataFrame(rows), ["arm", "width", "seed"], runs)
    values: dict[Place, dict[str, BySeed]] = {}
    epsilons: dict[Place, float] = {}  # a run that diverged has none
    for row in rows:
        place = (row["arm"], row["width"])
        if row.get(EPSILON) is not None:
            epsilons[place] = row[EPSILON]
        for name, value in row.items():
            short = LOSS if name == LOSS else AREA if name.endswith(f"/{AREA}") else ""
            if match := CANARY.fullmatch(name):
                short = f"{match[1]}/{match[2]}"
            if short and isinstance(value, float):
                values.setdefault(place, {}).setdefault(short, {})[row["seed"]] = value
    planned = planned_arms([run.config for run in runs])
    order = sorted(values, key=lambda place: (planned.index(place[0]) if place[0] in planned else 0, place[1]))
    return [Cells(place, values[place], epsilons.get(place)) for place in order]


def finished_rows(run: Run) -> list[Row]:
    """The rows of a run that has finished, with its width."""
    try:
        return [{**row, "width": width_of(run.config["model"])} for row in leaf_rows([run])]
    except ValueError:  # it has not finished
        return []


def widest(cells: Sequence[Cells]) -> int:
    """The largest width."""
    return max(cell.place[1] for cell in cells)


def headline(cells: Sequence[Cells], differences: Sequence[Row], measured: Sequence[Row]) -> str:
    """The differences at the largest width; without any, the exposure of the canaries that were repeated most.

    measured  rows of exposure and extraction by repetitions
    """
    shown = [row for row in differences if row["width"] == widest(cells)] or differences
    if shown:
        return " ".join(map(sentence, shown))
    row = max((row for row in measured if row["measure"] == "exposure"), key=lambda row: row["repetitions"])
    return (
        f"Exposure of canaries repeated {row['repetitions']} times is {from_row(row).text('.3f')} at width "
        f"{row['width']}; no other arm, width or number of repetitions was trained to compare it with."
    )


def sentence(row: Row) -> str:
    """A difference with its interval, and whether it is clear of 0."""
    estimate = from_row(row)
    text = f"{row['arm'][:1].upper()}{row['arm'][1:]}, width {row['width']}: {row['difference'][:1].lower()}"
    text += f"{row['difference'][1:]} is {estimate.text('+.3f')}"
    unclear = estimate.lo is None or estimate.hi is None or estimate.lo <= 0 <= estimate.hi
    return f"{text}, which may be 0." if unclear else f"{text}."


def repetition_figure(cells: Sequence[Cells], repetitions: Sequence[int], measure: str, title: str) -> object:
    """A measure vs repetitions: a line for each arm, a panel for each width. Repetitions of 0 are left out."""
    from kleiber.studies.compare.chart_forms import lines, values_axis

    rows = pd.DataFrame(
        {"series": cell.name, "panel": f"width {cell.place[1]}", "repetitions": count, "seed": seed, "value": value}
        for cell in sorted(cells, key=lambda cell: cell.place[1])
        for count in repetitions
        if count
        for seed, value in cell.of(measure, count).items()
    )
    x = values_axis("repetitions", "repetitions in the training text", rows["repetitions"], "~g")
    heading = {"exposure": "Exposure of canaries", "extracted": "Extraction of canaries"}[measure]
    order = list(dict.fromkeys(cell.name for cell in cells))
    return lines(rows, x, title, order, f"{heading} vs repetitions")


def epsilon_figure(cells: Sequence[Cells], most: int) -> object:
    """Loss and exposure vs epsilon: a line for each width; dashed: the first arm, without differential privacy."""
    import altair as alt

    from kleiber.studies.compare.chart_forms import arm_color, in_rows, span, values_axis

    order = [f"width {width}" for width in sorted({cell.place[1] for cell in cells})]
    panels = []
    for measure, title in ((LOSS, "validation loss (nats per token)"), ("exposure", "exposure (bits)")):
        rows = pd.DataFrame(
            {"series": f"width {cell.place[1]}", "arm": cell.place[0], "epsilon": cell.epsilon, "value": value}
            for cell in cells
            if cell.epsilon is not None or cell.place[0] == cells[0].place[0]
            for value in cell.of(measure, None if measure == LOSS else most).values()
        )
        private, plain = rows[rows["epsilon"].notna()], rows[rows["epsilon"].isna()]
        x = values_axis("epsilon", "epsilon spent", pd.Series([shown(epsilon) for epsilon in private["epsilon"]]), "~g")
        y, mean = (
            alt.Y(f"{name}:Q", title=title, scale=span(rows["value"].to_numpy())) for name in ("value", "mean(value)")
        )
        color = arm_color(order, order, legend=not panels)
        base = alt.Chart(private).encode(x=x, color=color)
        rule = alt.Chart(plain).mark_rule(strokeDash=[5, 4], strokeWidth=1.4).encode(y=mean, color=color)
        layers = [
            rule,
            base.mark_line(strokeWidth=1.5).encode(y=mean),
            base.mark_point(size=24, filled=True).encode(y=y),
        ]
        heading = "Validation loss" if measure == LOSS else f"Exposure of canaries repeated {most} times"
        panels.append(alt.layer(*layers).properties(title=heading, width=250, height=200))
    return in_rows(panels, "Loss and exposure vs epsilon of DP-SGD", "dashed: without differential privacy")
