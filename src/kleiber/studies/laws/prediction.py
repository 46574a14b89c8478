"""Predictions of a fitted law: value, confidence interval, prediction interval of a new run, distance from the rows.

A law is an approximation, and its error grows outside the fitted rows; resampling the rows does not reveal this misfit.
It is modeled as a relative error whose standard deviation grows with the distance in decades to the power .75. Its
prior was estimated from tables of the literature and of this project (benchmarks/bands.py), and backtests of the table
update it. The prediction interval of a new run includes this misfit, the uncertainty of the parameters and the noise of
a run.

Only the content of laws.json is needed, so a law can be evaluated, or compared with new rows, long after its fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.problem import Problem
from kleiber.studies.laws.table import DERIVED, Table, cells
from kleiber.studies.laws.uncertainty import Draws, interval, percent
from kleiber.studies.laws.variance_components import VarianceComponents
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

EXPECTED = (
    0.041  # prior relative error one decade outside the rows; calibrated so that 90 % intervals contain 90 % of runs
)
WEIGHT = 2.0  # weight of the prior, in independent runs
FEW_PER_CUT = 2.0  # the rows above one cut count as at most this many runs, since they share the error of one fit
POWER = 0.75  # power of the distance in decades with which the error grows
NEAR = 0.1  # smaller distances in decades count as this distance
MAX_DECADES = 3.0  # the farthest published extrapolation that held (2.6 decades, arXiv:2403.08540)


@dataclass(frozen=True)
class Evidence:
    """Errors of one backtest on the rows above its cut.

    rows      positions in the whole table
    cluster   trunk, or size, of each row
    error     log(observed / predicted) of each row
    variance  variance of the error that parameter uncertainty and the noise of runs explain
    decades   distance of each row from the fitted rows
    """

    rows: NDArray[np.intp]
    cluster: NDArray
    error: Array
    variance: Array
    decades: Array

    def keep(self, mask: NDArray[np.bool_]) -> Evidence:
        """Returns the evidence of the rows in a mask."""
        return Evidence(self.rows[mask], self.cluster[mask], self.error[mask], self.variance[mask], self.decades[mask])

    @property
    def weights(self) -> Array:
        """Returns the weight of each row, (rows,), in units of independent runs.

        Every cluster has the same sum of weights, divided equally among its rows. The sum over all rows is the number
        of clusters, at most FEW_PER_CUT.
        """
        _, member, count = np.unique(self.cluster, return_inverse=True, return_counts=True)
        return min(len(count), FEW_PER_CUT) / len(count) / count[member]


@dataclass(frozen=True)
class Misfit:
    """The relative error of the law one decade outside the rows, as a standard deviation updated by backtests."""

    evidence: Sequence[Evidence] = field(default_factory=tuple)

    @property
    def num_runs(self) -> int:
        """Number of distinct runs that were predicted."""
        return len({name for evidence in self.evidence for name in evidence.cluster.tolist()})

    @property
    def at_one_decade(self) -> float:
        """Root mean square of the prior and of the errors beyond what parameter uncertainty and noise explain."""
        total, weight = WEIGHT * EXPECTED**2, WEIGHT
        for evidence in self.evidence:
            weights = evidence.weights
            beyond = np.maximum(evidence.error**2 - evidence.variance, 0.0) / np.maximum(evidence.decades, NEAR) ** (
                2 * POWER
            )
            total += float((weights * beyond).sum())
            weight += float(weights.sum())
        return float(np.sqrt(total / weight))

    def within(self, train: NDArray[np.bool_]) -> Misfit:
        """Returns the misfit estimated only from the rows in the mask `train`."""
        kept = []
        for evidence in self.evidence:
            mask = train[evidence.rows]
            if mask.any():
                kept.append(evidence.keep(mask))
        return Misfit(tuple(kept))


def widen_interval(
    value: Array, lo: Array, hi: Array, at_one_decade: float, decades: Array, level: float
) -> tuple[Array, Array]:
    """Widens the interval [lo, hi] of `value` by the misfit at a distance; both add in quadrature on the log scale.

    Intervals that contain values <= 0 are widened on the linear scale.
    """
    extra = float(ndtri((1 + level) / 2)) * at_one_decade * np.maximum(decades, 0.0) ** POWER
    with np.errstate(all="ignore"):
        below, above = np.hypot(np.log(value / lo), extra), np.hypot(np.log(hi / value), extra)
        low, high = value * np.exp(-below), value * np.exp(above)
        flat_low, flat_high = value - np.hypot(value - lo, extra * value), value + np.hypot(hi - value, extra * value)
    inside = (lo <= value) & (value <= hi)
    positive = inside & (lo > 0)
    low, high = np.where(positive, low, flat_low), np.where(positive, high, flat_high)
    return np.where(inside, low, lo), np.where(inside, high, hi)


def decades_outside(domain: Mapping[str, Sequence[float]], at: Mapping[str, Array | float]) -> Array:
    """Returns the distance of points from the fitted rows in decades: the largest over inputs and compute, 0 inside."""
    far = np.zeros(np.shape(next(iter(at.values()), 0.0)))
    for name, (lo, hi) in domain.items():
        if name in at and lo > 0:
            value = np.asarray(at[name], dtype=np.float64)
            with np.errstate(all="ignore"):
                beyond = np.where(value > 0, np.maximum(np.log10(value / hi), np.log10(lo / value)), 0.0)
            far = np.maximum(far, beyond)
    return far


def distance_text(decades: float, farthest: str | None = None) -> str:
    """Returns how far a point lies from the fitted rows, such as `5 times beyond the fitted range of C`.

    farthest  the input, or C for compute, of which that is the distance
    """
    times = 10**decades
    if times < 1.005:
        return "within the fitted range"
    of = "" if farthest is None else f" of {farthest}"
    return f"{times:{',.0f' if times >= 10 else '.2g'}} times beyond the fitted range{of}"


def predict(record: Row, law: Law, at: Mapping[str, float], max_decades: float = MAX_DECADES) -> Json:
    """Predicts at one point from an entry of laws.json.

    Returns value; lo and hi, its confidence interval if the law holds; run_lo and run_hi, the prediction interval of a
    new run; decades, the distance from the rows; and farthest, its input (None inside). If any input or C
    is more than `max_decades` outside the rows, the value is None and `refused` gives the reason. lo and hi are None if
    the rows do not determine the value. Raises ValueError for a missing, unknown, non-positive or contradictory input.
    """
    wrong = [name for name in at if not (0 < at[name] < np.inf if name in "NDCM" else np.isfinite(at[name]))]
    if wrong:
        raise ValueError(f"predict {wrong[0]}={at[wrong[0]]:g} must be a finite number > 0")
    full = complete_point(at)
    missing = [name for name in law.inputs if name not in full]
    derived = ("N", "D", "C") if missing else ("N", "D", "C", "M")  # from M = D/N alone follows neither of them
    unread = [name for name in at if name not in (*law.inputs, *derived)]
    if unread:
        raise ValueError(
            f"predict {unread[0]}={at[unread[0]]:g}: {unread[0]} is no input of law {law.name!r}; its inputs are "
            f"{', '.join(law.inputs)}"
        )
    if missing:
        raise ValueError(
            f"a prediction of the law {law.name} needs {', '.join(law.inputs)}: add "
            + " and ".join(f"{name}=..." for name in missing)
        )
    check_consistent(at, full, law.inputs)
    answer = start_answer(record, at, full, max_decades)
    if "refused" in answer:
        return answer
    decades = answer["decades"]
    inputs = {name: np.array([full[name]]) for name in law.inputs}
    values = fitted_values(record)
    answer["value"] = float(law.predict(inputs, values)[0, 0])
    if not np.isfinite(answer["value"]):
        raise ValueError(f"predict {dict(at)}: law {law.name!r} is not finite at this point")
    draws = np.array(record["draws"])
    undetermined = np.array(record.get("untold", ())).reshape(-1, len(law.params))
    if len(draws) and not depends(law.predict(inputs, undetermined)[:, 0]):
        fitted = _empty_fit(law, inputs, record, values)
        refits = Draws(
            fitted, draws, record["bootstrap"]["method"], VarianceComponents(**record["noise"]), record["residual_sd"]
        )
        flat = np.array(record.get("flat", ())).reshape(-1, len(law.params))
        along = law.predict(inputs, flat)[:, 0]
        answer["method"] = refits.method
        lo, hi = interval(refits.predict(inputs)[:, 0], record["level"])
        answer |= {"lo": float(min([lo, *along])), "hi": float(max([hi, *along]))}
        ends = interval(refits.predict_runs(inputs)[:, 0], record["level"])
        beside = replace(refits, values=flat).run_intervals(inputs, record["level"])
        laws = np.array([answer["value"], *along])
        lo, hi = (np.array([end, *others[:, 0]]) for end, others in zip(ends, beside, strict=True))
        rate = record["misfit"]["at_one_decade"]
        lows, highs = widen_interval(laws, lo, hi, rate, np.array(decades), record["level"])
        answer |= {"run_lo": float(lows.min()), "run_hi": float(highs.max())}
    return answer


def _empty_fit(law: Law, inputs: Mapping[str, Array], record: Row, values: Array) -> Fit:
    """Returns the fit of a record without its rows, which suffices to add noise on the scale of the residuals."""
    objective = record["objective"]
    active = np.ones(len(law.params), dtype=bool)
    problem = Problem(
        law, inputs, np.ones(1), objective["kind"], objective["delta"] or 1e-3, objective["space"], active
    )
    return Fit(problem, values[0])


def complete_point(at: Mapping[str, float]) -> dict[str, float]:
    """Adds to a point the inputs that follow from the others: C = 6 N D, D = C/(6 N), M = D/N."""
    full = {name: float(value) for name, value in at.items()}
    for role, (parts, rule) in DERIVED.items():
        if role not in full and all(part in full for part in parts):
            full[role] = rule(*(full[part] for part in parts))
    return full


def check_consistent(at: Mapping[str, float], full: Mapping[str, float], inputs: Sequence[str]) -> None:
    """Raises ValueError for a value of a point that differs by over 1 % from that which follows from the others.

    full    the point with `complete_point`
    inputs  of the law, which may count them in other ways, such as C with the FLOPs of attention
    """
    for role, (parts, rule) in DERIVED.items():
        if role in at and role not in inputs and all(part in full for part in parts):
            follows = rule(*(full[part] for part in parts))
            if not np.isclose(at[role], follows, rtol=0.01, atol=0):
                others = " and ".join(f"{part}={full[part]:g}" for part in parts)
                raise ValueError(
                    f"predict {role}={at[role]:g} contradicts {others}, from which {role}={follows:g} follows: remove "
                    f"{role}, which is no input of the law"
                )


def compare_with_rows(record: Row, law: Law, table: Table, max_decades: float) -> Json:
    """Compares a recorded law with rows that it was not fitted to, averaged over seeds.

    cells   a list in order of compute, if it is known, of:
            at, target (mean over runs), number of runs, and the fields of `predict`
    mare    mean |value / target - 1|;  bias  mean of value / target - 1
    coverage, run_coverage   fraction of the cells in the confidence interval and in the prediction interval, or None

    Raises ValueError for rows more than `max_decades` outside the fitted rows.
    """
    inputs, member = table.inputs(law), cells(table.inputs(law))
    predictions = []
    for cell in np.unique(member):
        in_cell = member == cell
        at = {name: float(column[in_cell][0]) for name, column in inputs.items()}
        prediction = predict(record, law, at, max_decades)
        if "refused" in prediction:
            point = ", ".join(f"{name}={value:g}" for name, value in at.items())
            raise ValueError(f"{point}: {prediction['refused']}; add --force to predict anyway")
        compute = float(table.columns["C"][in_cell].mean()) if "C" in table.columns else float(len(predictions))
        predictions.append(
            {**prediction, "target": float(table.target[in_cell].mean()), "runs": int(in_cell.sum()), "order": compute}
        )
    predictions.sort(key=lambda row: row["order"])
    errors = np.array([row["value"] / row["target"] - 1 for row in predictions])
    return {
        "cells": predictions, "mare": float(np.abs(errors).mean()), "bias": float(errors.mean()),
        "coverage": _coverage(predictions, "lo", "hi"), "run_coverage": _coverage(predictions, "run_lo", "run_hi"),
    }  # fmt: skip


def _coverage(predictions: list[Json], low: str, high: str) -> float | None:
    """Returns the fraction of the cells whose target lies between two fields of the prediction, or None."""
    if any(row.get(low) is None for row in predictions):
        return None
    return float(np.mean([row[low] <= row["target"] <= row[high] for row in predictions]))


def fitted_values(record: Row) -> NDArray[np.float64]:
    """Returns the fitted parameters in order, (1, params), as `Law.predict` takes them."""
    return np.array([[entry["value"] for entry in record["params"].values() if not entry.get("fixed")]])


def comparison_lines(comparison: Row, level: float) -> list[str]:
    """Returns the printed lines of `prediction.compare_with_rows`: one for each cell, then the errors."""
    out = [
        f"{prediction_line(cell, level)}; observed {cell['target']:.6g} ({cell['runs']} run{'s' * (cell['runs'] != 1)})"
        for cell in comparison["cells"]
    ]
    text = f"{len(out)} cells: error {comparison['mare']:.2%}, bias {comparison['bias']:+.2%}"
    if comparison["coverage"] is None:
        return [*out, f"{text}, no intervals"]
    covers = f"{percent(level)} confidence interval contains {comparison['coverage']:.0%} of them"
    return [*out, f"{text}; {covers}, prediction interval {comparison['run_coverage']:.0%}"]


def start_answer(record: Row, at: Mapping[str, float], full: Mapping[str, float], max_decades: float) -> Json:
    """The answer of a prediction at a point, yet without a value; `refused` says why there will be none.

    full  `at` with the inputs that follow from it
    """
    far = {name: float(decades_outside({name: ends}, full)) for name, ends in record["domain"].items()}
    farthest = max(far, key=far.__getitem__, default=None)
    decades = 0.0 if farthest is None else far[farthest]
    answer: Json = {"at": dict(at), "value": None, "lo": None, "hi": None, "decades": decades}
    answer["farthest"] = farthest if decades else None
    if decades > max_decades:
        place = f"{decades:.1f} decades outside the rows in {farthest}"
        answer["refused"] = f"{place}, above the limit of {max_decades:g}"
    return answer


def prediction_line(prediction: Row, level: float) -> str:
    """Formats a prediction of `predict` as a line: the point, the value, its two intervals, and how far the point lies
    beyond the fitted range."""
    at = ", ".join(f"{name}={value:g}" for name, value in prediction["at"].items())
    if "refused" in prediction:
        return f"{at}: refused, since it is {prediction['refused']}"
    far = distance_text(prediction["decades"], prediction["farthest"])
    if prediction["lo"] is None:
        return f"{at}: {prediction['value']:.6g}, no interval (not identified), {far}"
    run = format_interval(prediction["run_lo"], prediction["run_hi"], ".5g")
    band = f"{percent(level)} prediction interval of a new run {run}"
    law = f"confidence interval if the law holds {format_interval(prediction['lo'], prediction['hi'], '.5g')}"
    return f"{at}: {prediction['value']:.6g}   {band}, {law}, {far}"
