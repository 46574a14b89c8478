"""Predictions of a law of optimal hyperparameters: the optimum at N and D, and what a choice costs.

Only the content of laws.json is needed. The interval of the law is that of its refits; the band of a new size also has
the scatter of the fitted optima around the law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kleiber.studies.laws.hyperparameters import HyperparameterLaw
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.optima import INSIDE, Group, Optimum, optima_of
from kleiber.studies.laws.prediction import (
    MAX_DECADES,
    check_consistent,
    complete_point,
    decades_outside,
    distance_text,
    fitted_values,
    start_answer,
)
from kleiber.studies.laws.uncertainty import interval, interval_ends, percent
from kleiber.types import Json, Row
from kleiber.types.score import format_interval


def point_inputs(N: float, D: float) -> dict[str, Array]:
    """Returns the inputs of the power laws at one point."""
    return {"N": np.array([N]), "D": np.array([D]), "M": np.array([D / N])}


def band(draws: Array, sd: float, level: float) -> tuple[float, float]:
    """Returns the interval of draws of a hyperparameter with added noise, whose standard deviation in log is `sd`."""
    noise = np.random.default_rng(0).normal(size=len(draws)) * sd
    lo, hi = interval(draws * np.exp(noise), level)
    return float(lo), float(hi)


def predict(record: Row, form: HyperparameterLaw, at: Mapping[str, float], max_decades: float = MAX_DECADES) -> Json:
    """Predicts the optimal hyperparameters at one point N, D from an entry of laws.json.

    at  N and D (or C or M in place of one of them), and optionally a value of every hyperparameter

    Returns the optimum of each hyperparameter, by its name: value; lo and hi, the interval of the law; run_lo and
    run_hi, the band of the optimum of a new size. `value`, `lo`, `hi`, `run_lo` and `run_hi` of the answer itself are
    those of the learning rate. If `at` has hyperparameters, `excess` is the relative excess loss there, by the
    curvature of the nearest fitted group, with its interval. Raises ValueError for a missing, unknown, non-positive or
    contradictory input.
    """
    allowed = ("N", "D", "C", "M", *form.axes)
    if unread := [name for name in at if name not in allowed]:
        raise ValueError(
            f"predict {unread[0]}={at[unread[0]]:g}: {unread[0]} is no input of law {form.name!r}; its inputs are "
            f"{', '.join(allowed)}"
        )
    if wrong := [name for name, value in at.items() if not 0 < value < np.inf]:
        raise ValueError(f"predict {wrong[0]}={at[wrong[0]]:g} must be a finite number > 0")
    full = complete_point({name: value for name, value in at.items() if name not in form.axes})
    if "N" not in full and {"C", "D"} <= set(full):
        full["N"] = full["C"] / (6 * full["D"])
    if "D" not in full and {"N", "M"} <= set(full):
        full["D"] = full["N"] * full["M"]
    if missing := [name for name in ("N", "D") if name not in full]:
        raise ValueError(
            f"a prediction of the law {form.name} needs N, D: add {' and '.join(f'{name}=...' for name in missing)}"
        )
    check_consistent(at, full, form.inputs)
    chosen = [axis for axis in form.axes if axis in at]
    if chosen and len(chosen) < len(form.axes):
        missing = [axis for axis in form.axes if axis not in at]
        raise ValueError(f"predict {dict(at)}: the excess loss needs every hyperparameter; add {', '.join(missing)}")
    answer = start_answer(record, at, full, max_decades)
    if "refused" in answer:
        return answer
    inputs, values = point_inputs(full["N"], full["D"]), fitted_values(record)
    draws = np.array(record["draws"]).reshape(-1, len(form.params))
    for axis in form.axes:
        answer[axis] = _optimum(form, axis, inputs, values, draws, record)
    answer |= answer["lr"]
    if chosen:
        answer["excess"] = _excess(record, form, inputs, [at[axis] for axis in form.axes], values, draws)
    return answer | ({"method": record["bootstrap"]["method"]} if len(draws) else {})


def _optimum(
    form: HyperparameterLaw, axis: str, inputs: Mapping[str, Array], values: Array, draws: Array, record: Row
) -> Json:
    """Returns value, interval and band of one hyperparameter; None for the ends without refits."""
    drawn = form.optimum(axis, inputs, draws)[:, 0]
    value: Json = {"value": float(form.optimum(axis, inputs, values)[0, 0]), **interval_ends(drawn, record["level"])}
    if not len(draws):
        return value
    run_lo, run_hi = band(drawn, record["scatter"][axis], record["level"])
    return value | {"run_lo": min(run_lo, value["lo"]), "run_hi": max(run_hi, value["hi"])}


def _excess(
    record: Row, form: HyperparameterLaw, inputs: Mapping[str, Array], chosen: Sequence[float], values: Array,
    draws: Array,
) -> Json:  # fmt: skip
    """Returns the relative excess loss of chosen hyperparameters, by the curvature of the nearest group."""
    rows = [row for row in record["optima"] if row["curvature"] is not None]
    if not rows:
        return {"value": None, "lo": None, "hi": None}
    N, D = float(inputs["N"][0]), float(inputs["D"][0])
    nearest = min(rows, key=lambda row: np.log(row["N"] / N) ** 2 + np.log(row["D"] / D) ** 2)
    curvature = np.array(nearest["curvature"])

    def cost(parameters: Array) -> Array:
        best = np.column_stack([form.optimum(axis, inputs, parameters)[:, 0] for axis in form.axes])
        away = np.log(np.array(chosen)) - np.log(best)
        return np.expm1(np.einsum("di,ij,dj->d", away, curvature, away))

    return {"value": float(cost(values)[0]), **interval_ends(cost(draws), record["level"])}


def compare_group(
    fit: Optimum, form: HyperparameterLaw, values: Array, draws: Array, scatter: Mapping[str, float], level: float
) -> Json:
    """Returns the hyperparameters that a law chooses for a group, their excess loss there, and whether bands hold.

    covered  fraction of the hyperparameters whose optimum is inside its band, which includes the optimum's own
             uncertainty; None without an optimum or draws
    """
    group = fit.group
    inputs = point_inputs(group.N, group.D)
    point = np.array([form.optimum(axis, inputs, values)[0, 0] for axis in form.axes])
    inside = []
    for j, axis in enumerate(form.axes):
        if fit.place == INSIDE and len(draws):
            sd = float(np.hypot(scatter[axis], fit.cov[j, j] ** 0.5))
            lo, hi = band(form.optimum(axis, inputs, draws)[:, 0], sd, level)
            inside.append(lo <= np.exp(fit.log[j]) <= hi)
    excess = group.excess(np.log(point))
    return {
        "N": group.N, "D": group.D, **dict(zip(form.axes, point.tolist(), strict=True)),
        "excess": excess if np.isfinite(excess) else None,
        "covered": float(np.mean(inside)) if inside else None,
    }  # fmt: skip


def summarize(chosen: Sequence[Row]) -> Json:
    """Returns mean and largest excess loss of the chosen hyperparameters, and the fraction of bands that hold.

    n_scored  number of groups whose sweep contains the choice, which alone have an excess loss
    """
    excess = [row["excess"] for row in chosen if row["excess"] is not None]
    covered = [row["covered"] for row in chosen if row["covered"] is not None]
    mean = float(np.mean(excess)) if excess else None
    return {"mare": mean, "bias": mean, "worst": max(excess, default=None), "n_scored": len(excess),
            "coverage": float(np.mean(covered)) if covered else None}  # fmt: skip


def compare_with_sweep(
    record: Row, form: HyperparameterLaw, groups: Sequence[Group], max_decades: float = MAX_DECADES
) -> Json:
    """Compares a recorded law with a sweep that it was not fitted to: the cost of its choice in each group.

    Returns the summary of `summarize` and `groups`, a row for each group as in `compare_group`. Raises ValueError for a
    group more than `max_decades` outside the fitted rows.
    """
    for group in groups:
        decades = float(decades_outside(record["domain"], complete_point({"N": group.N, "D": group.D})))
        if decades > max_decades:
            raise ValueError(
                f"N={group.N:g}, D={group.D:g}: {decades:.1f} decades outside the rows, above the limit of "
                f"{max_decades:g}; add --force to predict anyway"
            )
    draws = np.array(record["draws"]).reshape(-1, len(form.params))
    values, scatter = fitted_values(record), record["scatter"]
    chosen = [compare_group(fit, form, values, draws, scatter, record["level"]) for fit in optima_of(groups)]
    return summarize(chosen) | {"groups": chosen}


def prediction_line(prediction: Row, level: float) -> str:
    """Formats a prediction of `predict` as a line."""
    at = ", ".join(f"{name}={value:g}" for name, value in prediction["at"].items())
    if "refused" in prediction:
        return f"{at}: refused, since it is {prediction['refused']}"
    parts = [_axis_text(axis, prediction[axis], level) for axis in ("lr", "batch", "decay") if axis in prediction]
    if "excess" in prediction:
        excess = prediction["excess"]
        ends = "" if excess["lo"] is None else f" {percent(level)} {format_interval(excess['lo'], excess['hi'], '.2%')}"
        parts.append("excess loss unknown" if excess["value"] is None else f"excess loss {excess['value']:.2%}{ends}")
    far = distance_text(prediction["decades"], prediction["farthest"])
    return f"{at}: {'; '.join(parts)}; {far}"


def _axis_text(axis: str, estimate: Row, level: float) -> str:
    if estimate["lo"] is None:
        return f"{axis} {estimate['value']:.4g}, no interval (not identified)"
    return (
        f"{axis} {estimate['value']:.4g}   {percent(level)} band of the optimum of a new size "
        f"{format_interval(estimate['run_lo'], estimate['run_hi'], '.4g')}, of the law "
        f"{format_interval(estimate['lo'], estimate['hi'], '.4g')}"
    )


def group_line(row: Row) -> str:
    """Formats the choice of a law in one group, and its excess loss."""
    chosen = ", ".join(f"{axis} {row[axis]:.4g}" for axis in ("lr", "batch", "decay") if axis in row)
    cost = "outside the sweep" if row["excess"] is None else f"excess loss {row['excess']:.3%}"
    return f"N={row['N']:g}, D={row['D']:g}: {chosen}: {cost}"


def outside_text(count: int, scored: int) -> str:
    """Formats how many of `count` choices of a law are outside their sweeps; "" for none."""
    return f"; choices outside their sweeps: {count - scored} of {count}" if scored < count else ""


def summary_line(test: Row, count: int) -> str:
    """Formats the mean and largest excess loss of a law's choices in `count` groups."""
    if test["mare"] is None:
        return f"{count} groups: every choice is outside its sweep"
    bands = "" if test["coverage"] is None else f", bands contain {test['coverage']:.0%} of the optima"
    bands += outside_text(count, test["n_scored"])
    return f"{count} groups: excess loss {test['mare']:.2%} on average, {test['worst']:.2%} at most{bands}"
