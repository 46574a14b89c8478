"""The study `mup_transfer`: the optimal learning rate at each width or depth, and how it drifts with it.

An arm is one width of one parametrization, or one depth where the runs have one width and several depths. A parabola
in log2 of the rate is fitted to the points around the least loss, with an intercept for each seed (seeds are paired
over rates). Its vertex is the optimum, with an interval by the delta method. An optimum at the edge of the grid is not
estimated, since the loss may be lower beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
import pandas as pd

from kleiber.config.model_size import width_of
from kleiber.inference.parabola import Parabola, fit_parabola
from kleiber.records.catalog import Run
from kleiber.studies.claims import Claim, Question, decide_together
from kleiber.studies.compare.arms import Arm, not_ready, read_ladders
from kleiber.studies.compare.labels import LOSS, VALIDATION_LOSS
from kleiber.studies.decision import Estimate, estimate_around
from kleiber.studies.laws.uncertainty import percent, student_quantile
from kleiber.studies.statements import answer_text
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Count, Json, Row

Arms = Mapping[tuple[str, int], Arm]  # by parametrization and size
Axis = Literal["width", "depth"]  # what the sizes are
AXIS_TITLES: Final = {"width": "width", "depth": "depth (layers)"}


@dataclass(frozen=True, kw_only=True)
class MupTransfer(IntervalStudy):
    """The optimal learning rate by width (or depth) and parametrization, its drift, and a figure.

    around  rates on each side of the least loss that the parabola is fitted to; a second fit with `around` + 1 shows
            how asymmetric the loss is
    """

    around: Count = 1

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the optimal learning rate at each width or depth, and its drift."""
        axis = axis_of(runs)
        places = {name_of(place, axis): place for place in sorted(place_of(run, axis) for run in runs)}
        ladders = read_ladders(runs, LOSS, lambda run: name_of(place_of(run, axis), axis), min_arms=1)
        arms = {place: ladders[name][-1] for name, place in places.items() if name in ladders}
        optima, drifts = self.optima(arms, axis)
        waiting = not_ready(runs, 1, lambda run: name_of(place_of(run, axis), axis)).why
        claims = decide_together(questions(drifts, waiting, axis), self.level)
        moves = ". ".join(drift_text(row, axis) for row in drifts)
        headline = f"{moves}." if moves else f"The optimum was not found at two {axis}s: its drift is not estimated."
        optimum_chart: Figures = {"optima": lambda: optimum_figure(optima, axis, self.level)} if drifts else {}
        return Findings(
            answer_text(headline, claims, self.level) if claims else headline,
            question="Does the best learning rate of a small model suit a larger one?",
            claims=claims,
            caveats=[caveat for row in optima for caveat in edge_warnings(row, axis)],
            tables={
                "Optima": optima,
                "Drift of the optimum": [{**row, f"{axis}s": str(row[f"{axis}s"])} for row in drifts],
            },
            figures={"transfer": lambda: tuning_figure(arms, axis), **optimum_chart},
            methods=METHODS.format(rates=2 * self.around + 1, axis=axis, level=f"{self.level:.0%}"),
        )

    def optima(self, arms: Arms, axis: Axis = "width") -> tuple[list[Json], list[Json]]:
        """The optima by parametrization and size, and the drift by parametrization."""
        optima: list[Json] = []
        drifts: list[Json] = []
        for name in dict.fromkeys(name for name, _ in arms):
            fits: dict[int, Parabola] = {}
            for size in (size for other, size in arms if other == name):
                entry, fit = self.fit(arms[name, size])
                optima.append({"parametrization": name, axis: size, **entry})
                fits |= {} if fit is None else {size: fit}
            df = sum(fit.df for fit in fits.values())
            if not df:
                continue
            # Noise is taken to be the same at every size: two seeds alone would leave an interval as wide as the grid.
            noise, quantile = sum(fit.squares for fit in fits.values()) / df, student_quantile(df, self.level)
            for entry in (entry for entry in optima if entry["parametrization"] == name and entry[axis] in fits):
                fit = fits[entry[axis]]
                half = quantile * fit.spread(noise)
                entry |= {"lo": 2 ** (fit.vertex - half), "hi": 2 ** (fit.vertex + half)}
            drifts += [{**drift(name, fits, noise, quantile, axis), "df": df}] if len(fits) > 1 else []
        return optima, drifts

    def fit(self, arm: Arm) -> tuple[Json, Parabola | None]:
        """The entry of one size; no parabola where the least is at the edge or the curve does not bend upwards."""
        grid, at = arm.grid, arm.grid.index(arm.best_lr)
        entry: Json = {
            "lr": None, "lo": None, "hi": None, "least_at": arm.best_lr, "loss": arm.mean, "place": "interior",
            "wider": None, "seeds": len(arm.best_values), "rates": len(grid),
        }  # fmt: skip
        if at in (0, len(grid) - 1):
            return {**entry, "place": "edge"}, None
        fit, wider = (
            parabola(arm, grid[max(0, at - reach) : at + reach + 1]) for reach in (self.around, self.around + 1)
        )
        if fit is None:
            return {**entry, "place": "flat"}, None
        return {**entry, "lr": 2**fit.vertex, "wider": 2**wider.vertex if wider else None}, fit


METHODS = (
    "Loss against log2 of the learning rate was fitted by a parabola through the {rates} rates around the least mean, "
    "with a level of its own for each seed; seeds run over the same rates. Noise is pooled over the {axis}s of a "
    "parametrization, intervals of an optimum and of the drift (weighted least squares of log2 optimum on log2 {axis}) "
    "are at {level} by the delta method and Student's t. Under muP (Yang et al. 2022, arXiv:2203.03466; depth: Yang et "
    "al. 2023, arXiv:2310.02244) the drift should be 0."
)


def axis_of(runs: Sequence[Run]) -> Axis:
    """`depth` if the runs have one width and several depths, else `width`."""
    widths = {width_of(run.config["model"]) for run in runs}
    depths = {run.config["model"].get("depth") for run in runs}
    return "depth" if len(depths) > len(widths) == 1 else "width"


def place_of(run: Run, axis: Axis) -> tuple[str, int]:
    """The parametrization and the size of a run."""
    model = run.config["model"]
    target = str((model.get("parametrization") or {}).get("_target_", "MuP"))
    size = model["depth"] if axis == "depth" else width_of(model)
    return target.rsplit(".", 1)[-1].removesuffix("Parametrization"), size


MUP = "MuP"  # the name of the class


def label_of(parametrization: str) -> str:
    """A parametrization, the name of a class, as texts and figures call it."""
    return {"MuP": "muP", "Standard": "standard parametrization"}.get(parametrization, parametrization)


def name_of(place: tuple[str, int], axis: Axis) -> str:
    return f"{place[0]}, {axis} {place[1]}"


def parabola(arm: Arm, rates: Sequence[float]) -> Parabola | None:
    """Least-squares parabola in log2 of the rates; None unless it is convex and has residual degrees of freedom."""
    points = [(lr, seed, loss) for lr in rates for seed, loss in arm.values_by_rate[lr].items() if math.isfinite(loss)]
    fit = fit_parabola(np.log2([lr for lr, _, _ in points]), [loss for _, _, loss in points],
                       [seed for _, seed, _ in points], center=math.log2(arm.best_lr))  # fmt: skip
    return fit if fit is not None and fit.df > 0 and fit.curvature > 0 else None


def drift(name: str, fits: Mapping[int, Parabola], noise: float, quantile: float, axis: Axis) -> Json:
    """The drift of the optimum: the slope of its log2 on log2 size, in doublings of the rate per doubling of the size.

    `cost` is the excess loss in nats of the largest model at the optimum of the smallest, by the largest's parabola;
    its interval is that of the distance between the two optima.
    """
    x = np.log2(np.array(list(fits), dtype=float))
    y = np.array([fit.vertex for fit in fits.values()])
    # Noise of exactly 0, as in synthetic rows, would give infinite weights.
    weights = 1 / np.array([max(fit.spread(noise), 1e-9) for fit in fits.values()]) ** 2
    middle = (weights * x).sum() / weights.sum()
    across = (weights * (x - middle) ** 2).sum()
    slope = float((weights * (x - middle) * y).sum() / across)
    half = quantile * float(across**-0.5)
    small, large = fits[min(fits)], fits[max(fits)]
    apart = abs(small.vertex - large.vertex)
    off = quantile * float(np.hypot(small.spread(noise), large.spread(noise)))
    cost, least, most = (large.curvature * max(d, 0.0) ** 2 for d in (apart, apart - off, apart + off))
    return {
        "parametrization": name, "per_doubling": slope, "lo": slope - half, "hi": slope + half, "se": half / quantile,
        f"{axis}s": list(fits), "cost": cost, "cost_lo": least, "cost_hi": most,
    }  # fmt: skip


def drift_text(row: Row, axis: Axis = "width") -> str:
    """The drift of a parametrization and what it costs, as a sentence without a period."""
    sizes = row[f"{axis}s"]
    small, large, num = sizes[0], sizes[-1], len(sizes)
    factor = Estimate(2 ** row["per_doubling"], 2 ** row["lo"], 2 ** row["hi"], num, "")
    cost = Estimate(row["cost"], row["cost_lo"], row["cost_hi"], num, "nats per token")
    return (
        f"With {label_of(row['parametrization'])} the best learning rate is multiplied by {factor.text('.2f').strip()} "
        f"for each doubling of the {axis} from {small} to {large}; at the best rate of {axis} {small}, the loss of "
        f"{axis} {large} is {cost.text('.4f')} above that at its own best rate"
    )


def questions(drifts: Sequence[Row], waiting: str, axis: Axis = "width") -> list[Question]:
    """Returns the claims that the rate transfers under muP, and that it moves down under others relative to muP.

    It transfers where it moves by less than half a doubling per doubling of the size.
    """
    rows = {row["parametrization"]: row for row in drifts}
    unit = "doublings of the rate"
    method = "parabolas in log rate; Student's t, noise pooled over sizes"
    asked = []
    for name, row in rows.items():
        base = rows.get(MUP)
        sides = [row] if name == MUP else [row, base] if base is not None else []
        if not sides:
            continue
        of, against = {"parametrization": name}, {"parametrization": MUP}
        text = f"under muP, the best rate moves by less than half a doubling for each doubling of the {axis}"
        claim = Claim(of=of, measure="drift", direction="within", margin=0.5)
        if name != MUP:
            text = f"with the {label_of(name)}, the best rate falls more for each doubling of the {axis} than under muP"
            claim = Claim(of=of, against=against, measure="drift")
        at = partial(drift_estimate, sides, unit=unit)
        asked.append(Question(claim=claim, text=text, at=at, unit=unit, problem=waiting, method=method))
    return asked


def drift_estimate(sides: Sequence[Row], level: float, unit: str) -> Estimate:
    """Returns the drift of a parametrization, or of the first of two minus that of the second."""
    value = sides[0]["per_doubling"] - sum(row["per_doubling"] for row in sides[1:])
    half = student_quantile(min(row["df"] for row in sides), level) * math.hypot(*(row["se"] for row in sides))
    return estimate_around(value, half, min(row["df"] for row in sides), unit)


def edge_warnings(row: Row, axis: Axis = "width") -> list[dict[str, str]]:
    """A warning where the optimum of a size was not found; none where it was."""
    reasons = {
        "edge": "the least loss is at the edge of the grid, lr = {:g}: widen the grid",
        "flat": "no convex parabola fits the loss around lr = {:g}, or no point is left to estimate its noise",
    }
    if row["place"] not in reasons:
        return []
    text = f"{name_of((row['parametrization'], row[axis]), axis)}: {reasons[row['place']].format(row['least_at'])}"
    return [{"code": row["place"], "text": text}]


def tuning_figure(arms: Arms, axis: Axis) -> object:
    """Loss vs learning rate, a line for each size and a panel for each parametrization."""
    from kleiber.charts.series import seed_lines as lines
    from kleiber.charts.theme import pointed, values_axis
    from kleiber.studies.compare.figures import losses_of

    tables = [
        pd.DataFrame(losses_of({f"{axis} {size}": arm})).assign(panel=label_of(name))
        for (name, size), arm in arms.items()
    ]
    rows = pd.concat(tables, ignore_index=True)
    x = values_axis("lr", "learning rate", rows["lr"], "~g")
    note = "points: seeds; lines: means over seeds"
    names, panels = list(dict.fromkeys(rows["series"])), list(dict.fromkeys(rows["panel"]))
    title, y = "Validation loss vs learning rate", pointed(VALIDATION_LOSS, "lower")
    if len(panels) == 1:
        title, rows = f"{title} under {panels[0]}", rows.drop(columns="panel")
    return lines(rows, x, y, names, title, subtitle=note)


def optimum_figure(optima: Sequence[Row], axis: Axis, level: float) -> object:
    """The optimal learning rate with its interval vs the size, a line for each parametrization."""
    from kleiber.charts.series import line_chart

    rows = pd.DataFrame(optima).dropna(subset="lo").rename(columns={"lr": "mean"})
    names = [label_of(name) for name in rows["parametrization"]]
    rows = rows.assign(half=(rows["hi"] - rows["lo"]) / 2, parametrization=names)
    title = f"Optimal learning rate vs {axis}" + f" under {names[0]}" * (len(set(names)) == 1)
    note = f"points: the vertex of a parabola through the losses; bars: its {percent(level)} interval"
    return line_chart(
        rows, axis, AXIS_TITLES[axis], "parametrization", title, value="optimal learning rate", log=True, subtitle=note
    )
