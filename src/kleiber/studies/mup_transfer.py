"""The study `mup_transfer`: the optimal learning rate at each width, and its drift with the width.

A parabola in log2 of the rate is fitted to the points around the least loss, with an intercept for each seed (seeds are
paired over rates). Its vertex is the optimum, with an interval by the delta method. An optimum at the edge of the grid
is not estimated, since the loss may be lower beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import width_of
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Count, Json

if TYPE_CHECKING:
    import altair as alt


class Parabola(NamedTuple):
    """loss = intercept of the seed + slope x + curvature x^2, with x = log2 of the rate less that of the least loss.

    center   log2 of the rate with the least loss
    unit     covariance of (slope, curvature) for noise of variance 1
    squares  sum of squared residuals, with `df` degrees of freedom
    """

    center: float
    slope: float
    curvature: float
    unit: np.ndarray
    squares: float
    df: int
    num_points: int

    @property
    def optimum(self) -> float:
        return self.center - self.slope / (2 * self.curvature)

    def spread(self, noise: float) -> float:
        """Standard deviation of the optimum by the delta method, for noise of that variance."""
        jacobian = np.array([-1 / (2 * self.curvature), self.slope / (2 * self.curvature**2)])
        return float(np.sqrt(noise * jacobian @ self.unit @ jacobian))


@dataclass(frozen=True, kw_only=True)
class MupTransfer(IntervalStudy):
    """The optimal learning rate by width and parametrization, its drift, and a figure.

    around  rates on each side of the least loss that the parabola is fitted to; a second fit with `around` + 1 shows
            how asymmetric the loss is
    """

    around: Count = 1

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the optimal learning rate at each width and its drift."""
        rows = points(runs)
        optima, drifts = self.optima(rows)
        headline = (
            "; ".join(drift_verdict(row)["text"] for row in drifts)
            or "The optimum was not found at two widths, so its drift cannot be estimated."
        )
        tables = {"Optima": optima, "Drift of the optimum": [{**row, "widths": str(row["widths"])} for row in drifts]}
        figures: Figures = {"transfer": lambda: figure(rows, optima)}
        return Findings(headline, verdicts(optima, drifts), tables, figures, methods=self.methods())

    def optima(self, rows: pd.DataFrame) -> tuple[list[Json], list[Json]]:
        """The optima by parametrization and width, and the drift by parametrization."""
        optima: list[Json] = []
        drifts: list[Json] = []
        for name, part in rows.groupby("parametrization"):
            estimates, drift = self._parametrization(str(name), pd.DataFrame(part))
            optima += estimates
            drifts += drift
        return optima, drifts

    def _parametrization(self, name: str, rows: pd.DataFrame) -> tuple[list[dict], list[dict]]:
        optima, fits = [], {}
        for width in sorted(int(width) for width in rows["width"].unique()):
            entry, fit = self._width(pd.DataFrame(rows[rows["width"] == width]))
            optima.append({"parametrization": name, "width": width, **entry})
            if fit is not None:
                fits[width] = fit
        df = sum(fit.df for fit in fits.values())
        if not df:
            return optima, []
        # Noise is taken to be the same at every width: two seeds alone would leave an interval as wide as the grid.
        noise = sum(fit.squares for fit in fits.values()) / df
        quantile = student_quantile(df, self.level)
        for entry in optima:
            if entry["width"] in fits:
                fit = fits[entry["width"]]
                half = quantile * fit.spread(noise)
                entry |= {"lo": 2 ** (fit.optimum - half), "hi": 2 ** (fit.optimum + half)}
        return optima, [drift(name, fits, noise, quantile)] if len(fits) > 1 else []

    def _width(self, rows: pd.DataFrame) -> tuple[Json, Parabola | None]:
        """The entry of one width; no parabola where the least is at the edge or the curve does not bend upwards."""
        levels = by_rate(rows)
        at = int(np.argmin(levels.to_numpy()))
        entry: Json = {
            "lr": None, "lo": None, "hi": None, "least_at": float(levels.index[at]), "loss": float(levels.iloc[at]),
            "place": "interior", "wider": None, "seeds": len(set(rows["seed"])), "rates": len(levels),
        }  # fmt: skip
        if at in (0, len(levels) - 1):
            return {**entry, "place": "edge"}, None
        fit = parabola(rows, levels.index[max(0, at - self.around) : at + self.around + 1], levels.index[at])
        wider = parabola(rows, levels.index[max(0, at - self.around - 1) : at + self.around + 2], levels.index[at])
        if fit is None:
            return {**entry, "place": "flat"}, None
        return {**entry, "lr": 2**fit.optimum, "wider": 2**wider.optimum if wider else None}, fit

    def methods(self) -> str:
        """A paragraph for a paper."""
        return (
            f"Loss against log2 of the learning rate was fitted by a parabola through the {2 * self.around + 1} rates "
            "around the least mean, with a level of its own for each seed; seeds run over the same rates. Noise is "
            "pooled over the widths of a parametrization, intervals of an optimum and of the drift (weighted least "
            f"squares of log2 optimum on log2 width) are at {self.level:.0%} by the delta method and Student's t. "
            "Under muP (Yang et al. 2022, arXiv:2203.03466) the drift should be 0."
        )


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each finished run: parametrization, width, rate, seed and loss; a run that diverged has infinite loss.

    Raises ValueError when no run has finished, and when a run has no validation loss or several.
    """
    rows = []
    for run in runs:
        if run.status not in ("finished", "diverged"):
            continue
        config, row = run.config, run.row()
        model = config["model"]
        target = str((model.get("parametrization") or {}).get("_target_", "MuP"))
        scaled = target.rsplit(".", 1)[-1].removesuffix("Parametrization")
        loss = float("inf") if run.status == "diverged" else row["loss"]
        rows.append(
            {"parametrization": scaled, "width": width_of(model), "lr": config["optimizer"]["lr"],
             "seed": config["seed"], "loss": loss, "run": run.name}
        )  # fmt: skip
    table = pd.DataFrame(rows)
    if not len(table) or bool(table["loss"].isna().any()):
        raise ValueError("this study needs finished runs with exactly one validation loss")
    return table.sort_values(["parametrization", "width", "lr", "seed"], ignore_index=True)


def by_rate(rows: pd.DataFrame) -> pd.Series:
    """Mean loss at each rate with runs of every seed; at all rates where there is no such rate."""
    pivot = rows.pivot_table(index="lr", columns="seed", values="loss")
    whole = pivot.dropna()
    return (whole if len(whole) else pivot).mean(axis=1)


def parabola(rows: pd.DataFrame, rates: pd.Index, center: float) -> Parabola | None:
    """Least-squares parabola over the given rates; None unless it is convex and has residual degrees of freedom."""
    chosen = pd.DataFrame(rows[rows["lr"].isin(list(rates)) & np.isfinite(rows["loss"])])
    seeds = sorted(chosen["seed"].unique())
    x = np.log2(chosen["lr"].to_numpy() / center)
    levels = np.array([[float(seed == other) for other in seeds] for seed in chosen["seed"]])
    design = np.column_stack([levels, x, x**2])
    df = len(x) - design.shape[1]
    if df < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    losses = chosen["loss"].to_numpy()
    solved, *_ = np.linalg.lstsq(design, losses, rcond=None)
    if solved[-1] <= 0:
        return None
    squares = float(((losses - design @ solved) ** 2).sum())
    unit = np.linalg.inv(design.T @ design)[-2:, -2:]
    return Parabola(float(np.log2(center)), float(solved[-2]), float(solved[-1]), unit, squares, df, len(x))


def drift(name: str, fits: dict[int, Parabola], noise: float, quantile: float) -> Json:
    """The drift of the optimum: the slope of its log2 on log2 width, in doublings of the rate per doubling of width.

    `cost` is the excess loss in nats of the widest model at the optimum of the narrowest, by the widest parabola; its
    interval is that of the distance between the two optima.
    """
    x = np.log2(np.array(list(fits), dtype=float))
    y = np.array([fit.optimum for fit in fits.values()])
    # Noise of exactly 0, as in synthetic rows, would give infinite weights.
    weights = 1 / np.array([max(fit.spread(noise), 1e-9) for fit in fits.values()]) ** 2
    middle = (weights * x).sum() / weights.sum()
    across = (weights * (x - middle) ** 2).sum()
    slope = float((weights * (x - middle) * y).sum() / across)
    half = quantile * float(across**-0.5)
    narrow, wide = fits[min(fits)], fits[max(fits)]
    apart = abs(narrow.optimum - wide.optimum)
    off = quantile * float(np.hypot(narrow.spread(noise), wide.spread(noise)))
    cost, least, most = (wide.curvature * max(d, 0.0) ** 2 for d in (apart, apart - off, apart + off))
    return {
        "parametrization": name, "per_doubling": slope, "lo": slope - half, "hi": slope + half,
        "widths": list(fits), "cost": cost, "cost_lo": least, "cost_hi": most,
    }  # fmt: skip


def verdicts(optima: Sequence[Json], drifts: Sequence[Json]) -> list[dict[str, str]]:
    warnings = [edge_warning(row) for row in optima]
    return [verdict for verdict in warnings if verdict] + [drift_verdict(row) for row in drifts]


def drift_verdict(row: Json) -> dict[str, str]:
    """The verdict on the drift: below half a doubling of the rate per doubling of the width the rate transfers."""
    narrow, wide = row["widths"][0], row["widths"][-1]
    text = (
        f"{row['parametrization']}: from width {narrow} to {wide} the best rate moves by {row['per_doubling']:+.2f} "
        f"[{row['lo']:+.2f}, {row['hi']:+.2f}] doublings per doubling of the width; training width {wide} at the best "
        f"rate of width {narrow} costs {row['cost']:.4f} [{row['cost_lo']:.4f}, {row['cost_hi']:.4f}] nats"
    )
    if max(abs(row["lo"]), abs(row["hi"])) <= 0.5:
        return {"code": "transfers", "level": "note", "text": text}
    if row["lo"] <= 0 <= row["hi"]:
        return {
            "code": "unsettled",
            "level": "warn",
            "text": f"{text}; the interval is too wide to tell whether it moves",
        }
    return {"code": "moves", "level": "warn", "text": text}


def edge_warning(row: Json) -> dict[str, str] | None:
    """A warning where the optimum of a width was not found; None where it was."""
    where = f"{row['parametrization']}, width {row['width']}"
    if row["place"] == "edge":
        text = f"{where}: the least loss is at the edge of the grid, lr = {row['least_at']:g}: widen the grid"
        return {"code": "edge", "level": "warn", "text": text}
    if row["place"] == "flat":
        text = (
            f"{where}: no convex parabola fits the loss around lr = {row['least_at']:g}, or no point is left to "
            "estimate its noise"
        )
        return {"code": "flat", "level": "warn", "text": text}
    return None


def figure(rows: pd.DataFrame, optima: Sequence[Json]) -> alt.TopLevelMixin:
    """Loss vs learning rate, a line for each width and a panel for each parametrization; rules mark the optima."""
    import altair as alt

    from kleiber.charts.theme import apply_theme, sequential_colors

    shown = pd.DataFrame(rows[np.isfinite(rows["loss"])])
    widths = sorted(int(width) for width in shown["width"].unique())
    color = alt.Color("width:O", sort=widths, scale=alt.Scale(range=sequential_colors(len(widths))), title="width")
    rates = sorted(float(rate) for rate in shown["lr"].unique())
    x = alt.X("lr:Q", title="learning rate", scale=alt.Scale(type="log", base=2, nice=False, padding=10))
    x = x.axis(alt.Axis(values=rates, format="~g", labelAngle=-40))
    y = alt.Y("loss:Q", title="validation loss (nats per token)", scale=alt.Scale(zero=False))
    base = alt.Chart(shown)
    lines = base.mark_line(strokeWidth=1.5).encode(
        x=x, y=alt.Y("mean(loss):Q", scale=alt.Scale(zero=False)), color=color
    )
    tip = ["run:N", "width:O", "lr:Q", "seed:O", alt.Tooltip("loss:Q", format=".4f")]
    dots = base.mark_point(filled=True, size=28).encode(x=x, y=y, color=color, tooltip=tip)
    panels = []
    for name in sorted(shown["parametrization"].unique()):
        panel = alt.datum.parametrization == name
        layers = [lines.transform_filter(panel), dots.transform_filter(panel)]
        bars = pd.DataFrame([row for row in optima if row["parametrization"] == name and row["lo"]])
        if len(bars):
            rules = alt.Chart(bars[["width", "lr", "lo", "hi"]])
            layers.append(rules.mark_rule(strokeDash=[4, 3]).encode(x="lr:Q", color=color))
        panels.append(alt.layer(*layers).properties(width=360, height=300, title=name))
    return apply_theme(alt.hconcat(*panels))
