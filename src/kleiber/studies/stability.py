"""The study `stability`: the learning-rate sensitivity of arms at several widths, and their attention logits by rate.

The sensitivity is the mean over the learning rates of min(L(rate), L0) - L*, where L* is the loss at the rate of best
mean and L0 that of uniform predictions, which also stands for a run that diverged. It is 0 where every rate of the grid
is as good as the best one, and depends on the grid. Wortsman et al. 2023, arXiv:2309.14322, section 2.2; there L0 is
the loss at initialization.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from kleiber.config.errors import Status
from kleiber.config.model_size import vocabulary_of, width_of
from kleiber.records.catalog import Run
from kleiber.records.metrics import rows_with
from kleiber.studies.compare.arms import Arm, arm_name, arms_in_order, read_ladders, uneven
from kleiber.studies.compare.decision import Estimate, as_row, mean_estimate, paired_difference
from kleiber.studies.compare.labels import LOSS
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json, Row

LOGIT = "stability/attention_logit/"
UNIT = "nats per token"
Place = tuple[str, int]  # an arm and its width
LABELS = {"qk_norm": "QK-norm", "z_loss": "z-loss"}  # of arms, in figures and sentences; others have their names
Losses = dict[float, dict[int, float]]  # by learning rate and seed, those of diverged runs replaced


@dataclass(frozen=True, kw_only=True)
class Stability(IntervalStudy):
    """The learning-rate sensitivity of arms at several widths; the first arm of the design is the reference."""

    arm: str | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the sensitivities, and their differences from the first arm.

        Raises ValueError where arms have other learning rates or seeds than the first.
        """
        places, arms = places_in_order(runs), arms_by_width(runs)
        worst = uniform_loss(runs)
        losses = {place: capped(arm, worst) for place, arm in arms.items()}
        check_grids([*arms.values()], losses)
        by_seed = {place: sensitivities(each) for place, each in losses.items()}
        rows = [self.row(place, arms[place], losses[place], by_seed[place], worst) for place in arms]
        differences = self.differences(by_seed, reference=places[0][0])
        absent = [without_loss(place, runs) for place in places if place not in arms]
        logits = attention_logits(runs)
        tables = {
            "Learning-rate sensitivity": rows,
            "Difference in sensitivity": differences,
            "Largest attention logit by learning rate": logit_table(logits),
        }
        charts: Figures = {"loss": partial(loss_figure, losses, worst)}
        if logits:
            charts["logits"] = partial(logit_figure, logits)
        return Findings(
            answer=" ".join([*(entry["text"] for entry in absent), headline(rows, differences)]),
            caveats=[*absent, *edges(rows)],
            tables={title: table for title, table in tables.items() if table},
            figures=charts,
            methods=METHODS.format(level=f"{self.level:.0%}", worst=f"{worst:.3f}"),
        )

    def row(self, place: Place, arm: Arm, losses: Losses, by_seed: Mapping[int, float], worst: float) -> Json:
        """The sensitivity of one arm and width, and how many runs were no better than uniform predictions."""
        estimate = mean_estimate([*by_seed.values()], self.level, UNIT)
        assert estimate is not None
        lost = sum(value >= worst for by_rate in losses.values() for value in by_rate.values())
        return {
            "arm": place[0], "width": place[1], **as_row(estimate), "best lr": arm.best_lr, "loss": arm.mean,
            "rates": len(losses), "diverged or uniform": lost, "runs": sum(map(len, losses.values())),
        }  # fmt: skip

    def differences(self, by_seed: Mapping[Place, Mapping[int, float]], reference: str) -> list[Json]:
        """The sensitivity of each arm less that of the reference at its width, and of each width less the narrowest."""
        rows: list[Json] = []
        narrow = min(width for _, width in by_seed)
        for (name, width), ours in by_seed.items():
            pairs = [(reference, width)] if name != reference else [(name, narrow)] if width != narrow else []
            for other in pairs:
                if other in by_seed:
                    estimate = paired_difference(ours, by_seed[other], self.level, UNIT)
                    assert estimate is not None
                    row = {"arm": name, "width": width, "against": other[0], "against width": other[1]}
                    rows.append({**row, **as_row(estimate)})
        return rows


METHODS = (
    "Every arm was trained at every learning rate and seed; runs of the same seed see the same data. The learning-rate "
    "sensitivity is the mean over the rates of min(L, L0) - L*, with the validation loss L, its value L* at the rate "
    "of best mean over seeds, and L0 = {worst}, the loss of uniform predictions, for runs that diverged or are worse "
    "(Wortsman et al. 2023, arXiv:2309.14322, section 2.2). It is computed for each seed; intervals of means and of "
    "differences that are paired by seed are Student's at {level}. The largest attention logit is that of any head "
    "while the run trained, as it enters the softmax, on one row of the batch every few steps."
)


def place_of(run: Run) -> Place | None:
    """The arm and the width of a run; None for a run of no arm."""
    name = arm_name(run)
    return None if name is None else (name, width_of(run.config["model"]))


def places_in_order(runs: Sequence[Run]) -> list[Place]:
    """The arms and widths of the runs: arms in the order of the design, widths ascending."""
    arms = arms_in_order(runs)
    return sorted({*filter(None, map(place_of, runs))}, key=lambda place: (arms.index(place[0]), place[1]))


def arms_by_width(runs: Sequence[Run]) -> dict[Place, Arm]:
    """Each arm at each width that has a run with a loss, in the order of `places_in_order`."""

    def arm_of(run: Run) -> str | None:
        place = place_of(run)
        return None if place is None else format_place(place)

    ladders = read_ladders(runs, LOSS, arm_of, min_arms=1)
    names = {place: format_place(place) for place in places_in_order(runs)}
    return {place: ladders[name][-1] for place, name in names.items() if name in ladders}


def format_place(place: Place) -> str:
    return f"{place[0]}, width {place[1]}"


def without_loss(place: Place, runs: Sequence[Run]) -> Json:
    """The verdict on an arm of a width at which no run has a loss: without a best rate it has no sensitivity."""
    part = [run for run in runs if place_of(run) == place]
    diverged = sum(run.status == Status.DIVERGED for run in part)
    who = f"{LABELS.get(place[0], place[0])} at width {place[1]}"
    text = (
        f"No run of {who} has a loss ({diverged} of {len(part)} diverged), so its learning-rate sensitivity and "
        "differences from it are not determined."
    )
    return {"code": "no_loss", "text": text}


def uniform_loss(runs: Sequence[Run]) -> float:
    """The loss of uniform predictions over the vocabulary, in nats per token."""
    return math.log(vocabulary_of(runs[0].config["data"]))


def capped(arm: Arm, worst: float) -> Losses:
    """The losses of an arm, with `worst` in place of those that are higher or not finite."""
    return {
        lr: {seed: min(loss, worst) if math.isfinite(loss) else worst for seed, loss in by_seed.items()}
        for lr, by_seed in sorted(arm.values_by_rate.items())
    }


def check_grids(arms: Sequence[Arm], losses: Mapping[Place, Losses]) -> None:
    """Raises ValueError unless all arms have the same learning rates and seeds: the sensitivity depends on both."""
    grids = {place: {lr: sorted(by_seed) for lr, by_seed in each.items()} for place, each in losses.items()}
    first = next(iter(grids.values()))
    for (name, width), grid in grids.items():
        if grid != first:
            reason = uneven(arms) or "some runs are missing or have not finished"
            raise ValueError(f"{name}, width {width}, has other rates and seeds than the first arm: {reason}")


def sensitivities(losses: Losses) -> dict[int, float]:
    """The learning-rate sensitivity of each seed, in nats per token."""
    means = {lr: sum(by_seed.values()) / len(by_seed) for lr, by_seed in losses.items()}
    best = losses[min(means, key=lambda lr: means[lr])]
    return {seed: sum(by_seed[seed] - best[seed] for by_seed in losses.values()) / len(losses) for seed in best}


def attention_logits(runs: Sequence[Run]) -> list[Row]:
    """The largest attention logit that each run logged: series (the arm), panel (the width), lr, seed and value."""
    rows: list[Row] = []
    for run in runs:
        place = place_of(run)
        logged = [
            value for row in rows_with(run.rows, LOGIT) for key, value in row.items() if key.startswith(LOGIT)
        ]  # of a run that diverged, those before
        finite = [value for value in logged if math.isfinite(value)]
        if place is not None and finite:
            names = {"series": LABELS.get(place[0], place[0]), "panel": f"width {place[1]}", "seed": run.config["seed"]}
            rows.append({**names, "lr": run.config["optimizer"]["lr"], "value": max(finite)})
    return rows


def logit_table(logits: Sequence[Row]) -> list[Json]:
    """The median over seeds of the largest attention logit: a row for each arm and width, a column for each rate."""
    if not logits:
        return []
    table = pd.DataFrame(logits).pivot_table("value", ["series", "panel"], "lr", "median", sort=True)
    columns = [f"lr {lr:g}" for lr in table.columns]
    return [
        {"arm": arm, "width": str(panel).removeprefix("width "), **dict(zip(columns, values, strict=True))}
        for (arm, panel), values in zip(table.index, table.to_numpy().tolist(), strict=True)
    ]


def difference_sentence(row: Row) -> str:
    """The sentence on one difference, which says where its interval holds 0."""
    estimate = Estimate(row["value"], row["lo"], row["hi"], row["n"], UNIT)
    who = f"{LABELS.get(row['arm'], row['arm'])} at width {row['width']}"
    against = f"{LABELS.get(row['against'], row['against'])} at width {row['against width']}"
    text = f"The learning-rate sensitivity of {who} less that of {against} is {estimate.text('+.3f')}"
    unclear = estimate.lo is None or estimate.hi is None or estimate.lo <= 0 <= estimate.hi
    return f"{text}: it is not determined which is more sensitive." if unclear else f"{text}."


def headline(rows: Sequence[Row], differences: Sequence[Row]) -> str:
    """What each arm does to the sensitivity at the largest width; the sensitivity where there is one arm."""
    widest = max(row["width"] for row in rows)
    shown = [row for row in differences if row["width"] == widest and row["against width"] == widest]
    if shown:
        return " ".join(map(difference_sentence, shown))
    row = rows[-1]
    estimate = Estimate(row["value"], row["lo"], row["hi"], row["n"], UNIT)
    return f"The learning-rate sensitivity of {row['arm']} at width {row['width']} is {estimate.text('.3f')}."


def edges(rows: Sequence[Row]) -> list[Row]:
    """A note where every run of every arm is better than uniform predictions: the grid ends before divergence."""
    if any(row["diverged or uniform"] for row in rows):
        return []
    text = "Every run ended below the loss of uniform predictions: larger rates may separate the arms further."
    return [{"code": "stable", "level": "note", "text": text}]


def loss_figure(losses: Mapping[Place, Losses], worst: float) -> object:
    """Loss vs learning rate, a line for each arm and a panel for each width."""
    from kleiber.studies.compare.chart_forms import lines, values_axis

    rows = pd.DataFrame(
        {"series": LABELS.get(name, name), "panel": f"width {width}", "lr": lr, "seed": seed, "value": value}
        for (name, width), each in losses.items()
        for lr, by_seed in each.items()
        for seed, value in by_seed.items()
    )
    x = values_axis("lr", "learning rate", rows["lr"], "~g")
    title = "Validation loss vs learning rate"
    if max(value for each in losses.values() for by_seed in each.values() for value in by_seed.values()) >= worst:
        title += f"; runs that diverged count as {worst:.2f}, the loss of uniform predictions"
    return lines(rows, x, "validation loss (nats per token)", list(dict.fromkeys(rows["series"])), title)


def logit_figure(logits: Sequence[Row]) -> object:
    """The largest attention logit vs learning rate, a line for each arm and a panel for each width."""
    from kleiber.studies.compare.chart_forms import lines, values_axis

    rows = pd.DataFrame(logits)
    x = values_axis("lr", "learning rate", rows["lr"], "~g")
    order = list(dict.fromkeys(rows["series"]))
    return lines(rows, x, "largest attention logit", order, "Largest attention logit vs learning rate", log=True)
