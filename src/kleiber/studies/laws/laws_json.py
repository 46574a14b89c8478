"""laws.json, the record of a fitted law: computes its estimates with intervals, writes and prints it.

Every estimate has one interval: percentiles of bootstrap refits if there are any (`uncertainty.Draws.method`),
otherwise the profile likelihood. A parameter whose profile stays flat on one side is not identified; neither is a
derived quantity that changes along that flat profile. The format is `law.schema.json` in this folder; an unknown number
is null, never NaN. `law_file` reads it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kleiber.studies.laws import verdicts
from kleiber.studies.laws.backtest import NAIVE_LABELS
from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Linear
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.table import NOT_FINITE
from kleiber.studies.laws.uncertainty import Draws, Profile, interval
from kleiber.types import Json, Row

SCHEMA = Path(__file__).with_name("law.schema.json")
VANISHED = 1e-3  # an interval that begins below this fraction of the value counts as including 0
MOVED = 0.5  # largest change of an identified derived quantity along a flat profile, in widths of its interval


def parameters(
    model: NoiseModel, draws: Draws | None, profiled: Mapping[str, Profile], level: float
) -> dict[str, Json]:
    """Returns value, interval, interval method and identifiability of each parameter; an open interval end is None."""
    fitted, entries = model.fit, {}
    narrow = verdicts.narrow_input(fitted)
    method = draws.method if draws else "profile" if model.clusters is None else "cluster t"
    ends = dict(zip(fitted.law.params, np.transpose(interval(draws.values, level)), strict=True)) if draws else {}
    for name, value in fitted.params.items():
        profile = profiled.get(name)
        if profile is None:
            reason = "its term was fitted to 0 and dropped"
            entries[name] = {"value": 0.0, "lo": 0.0, "hi": None, "identified": False, "reason": reason}
            continue
        lo, hi = ends.get(name, (profile.lo, profile.hi))
        reason = profile.reason or (narrow if name == "E" else "") or _vanishing(fitted, name, value, lo)
        lo, hi = (float(end) if np.isfinite(end) and not profile.reason else None for end in (lo, hi))
        entries[name] = {"value": value, "lo": lo, "hi": hi, "identified": not reason, "reason": reason}
        if lo is not None or hi is not None:
            entries[name]["method"] = method
    for name, value in fitted.law.fixed.items():
        entries[name] = {"value": value, "lo": None, "hi": None, "identified": True, "fixed": True}
    return entries


def _vanishing(fitted: Fit, name: str, value: float, lo: float) -> str:
    """Returns why a term whose interval begins at 0 is not identified, or ""."""
    kind = fitted.law.params[name]
    if isinstance(kind, Linear) and kind.log and lo < VANISHED * value:
        return f"its interval begins at {lo:.2g}, so it cannot be distinguished from 0"
    return ""


def derived(fitted: Fit, draws: Draws | None, profiled: Mapping[str, Profile], level: float) -> dict[str, Json]:
    """Returns value, interval, interval method and identifiability of each derived quantity."""
    entries: dict[str, Json] = {}
    sampled, undetermined = draws.derive() if draws else {}, fitted.law.derive(fitted.undetermined())
    along = {name: fitted.law.derive(path) for name, path in flat_paths(profiled).items()}
    for name, value in fitted.law.derive(fitted.values).items():
        lo, hi = (float(end) for end in (interval(sampled[name], level) if name in sampled else (np.nan, np.nan)))
        reason = ""
        if fitted.dropped:
            reason = f"the term of {', '.join(fitted.dropped)} was fitted to 0 and dropped"
        elif depends(undetermined[name]):
            reason = "the rows do not determine it"
        elif not np.isfinite(np.array([lo, hi, value[0]])).all():
            reason = "its interval could not be computed"
        else:
            moving = [flat for flat, path in along.items() if _outside(path[name], lo, hi)]
            if moving:
                reason = f"it depends on {', '.join(moving)}, which is not identified"
        entries[name] = {
            "value": float(value[0]) if np.isfinite(value[0]) else None,
            "lo": None if reason else lo, "hi": None if reason else hi,
            "identified": not reason, "reason": reason,
        }  # fmt: skip
        if draws and not reason:
            entries[name]["method"] = draws.method
    return entries


def flat_paths(profiled: Mapping[str, Profile]) -> dict[str, Array]:
    """Returns the parameters along each flat profile, by the name of the profiled parameter."""
    return {name: profile.path for name, profile in profiled.items() if profile.reason and len(profile.path)}


def _outside(path: Array, lo: float, hi: float) -> bool:
    """Returns whether a path leaves the interval by more than half of its width."""
    room = MOVED * (hi - lo)
    return bool(np.isfinite(path).any() and ((path < lo - room) | (path > hi + room)).any())


def write(record: Row, path: str | Path) -> None:
    """Writes a record, or a collection of records by group, as JSON; never leaves a partly written file."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        part.write_text(json.dumps(without_nonfinite(record), indent=1, allow_nan=False) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"--json {path} cannot be written: {error.strerror}") from error


def without_nonfinite(record: Row) -> Json:
    """Returns the record with every NaN and infinity replaced by None, at any depth."""
    return {str(key): _finite(entry) for key, entry in record.items()}


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return without_nonfinite(value)
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines(entry: Row) -> list[str]:
    """Returns the printed lines of a record: estimates, approaches, backtests, predictions and verdicts."""
    level, goal = percent(entry["level"]), entry["objective"]
    delta = f", delta {goal['delta']:g}" if goal["delta"] else ""
    errors = f", residuals in units of the standard errors {goal['sigma']}" if goal["sigma"] else ""
    out = [
        f"{entry['law']}: {entry['formula']}   ({entry['source']})",
        f"{rows_fitted(entry)}, {len(entry['excluded'])} excluded; {goal['kind']} loss{delta} on the "
        f"{goal['space']} scale: {goal['value']:.6g}{errors}",
    ]
    out += _not_finite_lines(entry["excluded"])
    estimates = {**entry["params"], **entry["derived"]}
    out += [f"  {name:<10} {_estimate_line(value, level)}" for name, value in estimates.items()]
    out.append(
        f"residual rms {entry['residual_rms']:.3g} in {goal['space']} space; intervals {_interval_method(entry)}"
    )
    if "at" in entry:
        out.append(_objective_at(entry))
    for exponent in [*entry["approaches"], *entry["accounting"]]:
        counting = f"{exponent['convention']}, " if "convention" in exponent else ""
        shift = f", shift {exponent['shift']:+.4f}" if "shift" in exponent else ""
        ends = f"{level} [{exponent['lo']:.4f}, {exponent['hi']:.4f}]"
        out.append(f"  {counting}approach {exponent['approach']}: a = {exponent['a']:.4f}, {ends}{shift}")
    out += [_backtest_line(test, level) for test in entry["backtests"]]
    for rank in entry.get("ranking", ()):
        error = f"error {rank['mare']:.2%} on the {rank['n_test']} held-out rows of largest compute"
        out.append(f"  ranking {rank['law']}: {error}, AIC {rank['aic']:.1f}")
    for other in entry.get("with_without", ()):
        numbers = ", ".join(
            f"{name} {format_estimate(value)}" for name, value in other.items() if isinstance(value, Mapping)
        )
        out.append(f"  {other['suspects']} the suspects (n = {other['n']}), {level}: {numbers}")
    out += [f"  {prediction_line(prediction, entry['level'])}" for prediction in entry["predictions"]]
    return out + [f"{verdict['level']}: {verdict['text']} [{verdict['code']}]" for verdict in entry["verdicts"]]


def rows_fitted(entry: Row) -> str:
    """Returns how many rows were fitted, and how many were pooled into them if the table is large."""
    if entry.get("pooled"):
        return f"{entry['pooled']:,} rows pooled into {entry['n']:,} cells"
    return f"{entry['n']} rows fitted"


def _not_finite_lines(excluded: Sequence[Row]) -> list[str]:
    """Returns the printed lines of the rows that were excluded since a number is missing, by role (up to ten rows)."""
    rules = dict.fromkeys(row["rule"] for row in excluded if row["rule"].startswith(NOT_FINITE))
    lines_by_rule = []
    for rule in rules:
        rows = [str(row["row"]) for row in excluded if row["rule"] == rule]
        rest = f" and {len(rows) - verdicts.LISTED} others" if len(rows) > verdicts.LISTED else ""
        lines_by_rule.append(
            f"  excluded, {rule}: row{'s' * (len(rows) > 1)} {', '.join(rows[: verdicts.LISTED])}{rest}"
        )
    return lines_by_rule


def _backtest_line(test: Row, level: str) -> str:
    """Returns the printed line of one backtest: errors, coverage and the errors of the naive predictors."""
    runs = f"{test['n_runs']} independent run{'s' * (test['n_runs'] > 1)}"
    covers = "no intervals"
    if test["coverage"] is not None:
        covers = f"{level} prediction interval (+-{test['half_width']:.1%}) contains {test['coverage']:.0%} of {runs}"
    naive = ", ".join(f"{NAIVE_LABELS[name]} {value:.2%}" for name, value in test["naive"].items())
    return (
        f"  backtest at {test['along']} = {test['cut']:.3g}: {test['n_train']} rows below, {test['n_test']} above, "
        f"error {test['mare']:.2%}, bias {test['bias']:+.2%}, {covers}; naive predictors: {naive}"
    )


def intervals_by(entry: Row) -> str:
    """Returns how the intervals of a record were computed, for the paragraph on methods."""
    used = entry["bootstrap"]
    if not used:
        return "by profile likelihood"
    how = {
        "cluster t": "to tables simulated with noise between and within trunks (with variances drawn anew)",
        "cluster bootstrap": "to resampled trunks",
        "bootstrap": "to resampled rows, or to rows with simulated noise if there are few rows",
    }[used["method"]]
    return f"percentiles of {used['draws']} refits {how}"


def band_rate(entry: Row) -> str:
    """Returns what prediction intervals of new runs include, for the paragraph on methods."""
    misfit = entry["misfit"]
    return (
        "the uncertainty of the parameters, the noise of a run, and a misfit of the law, "
        f"{misfit['at_one_decade']:.1%} of the loss one decade outside the rows ({misfit['expected']:.1%} before it is "
        "updated by the backtests)"
    )


def percent(level: float) -> str:
    """Formats a confidence level: `90%`, `99.5%`."""
    return f"{100 * level:.6g}%"


def _objective_at(entry: Row) -> str:
    """Returns the printed line of the objective at the parameters of --at, compared with the fit."""
    at_values, goal = entry["at"], entry["objective"]
    point = ", ".join(f"{name}={value:g}" for name, value in at_values["params"].items())
    rms = f"residual rms {at_values['residual_rms']:.3g} (fit {entry['residual_rms']:.3g})"
    return f"at {point}: {goal['kind']} loss {at_values['value']:.6g} (fit {goal['value']:.6g}), {rms}"


def _estimate_line(estimate: Row, level: str) -> str:
    point = "-" if estimate["value"] is None else f"{estimate['value']:.6g}"
    if estimate.get("fixed"):
        return f"{point}   fixed"
    if not estimate["identified"]:
        return f"not identified ({estimate.get('reason') or 'no interval'}; best fit at {point})"
    return f"{point}   {level} [{estimate['lo']:.5g}, {estimate['hi']:.5g}]"


def format_estimate(estimate: Row) -> str:
    """Formats an estimate with its interval, or "not identified"."""
    if estimate.get("fixed"):
        return f"{estimate['value']:.4g} (fixed)"
    if not estimate["identified"] or estimate["value"] is None:
        point = "" if estimate["value"] is None else f" (best fit at {estimate['value']:.4g})"
        return f"not identified{point}"
    return f"{estimate['value']:.4g} [{estimate['lo']:.4g}, {estimate['hi']:.4g}]"


def _interval_method(entry: Row) -> str:
    used = entry["bootstrap"]
    if used:
        return f"by {used['method']} ({used['draws']} refits)"
    methods = {estimate.get("method") for estimate in [*entry["params"].values(), *entry["derived"].values()]}
    return "by profile likelihood" + (", widened for the noise that trunks share" if "cluster t" in methods else "")


def comparison_lines(comparison: Row, level: float) -> list[str]:
    """Returns the printed lines of `prediction.compare_with_rows`: one for each cell, then the errors."""
    out = [
        f"{prediction_line(cell, level)}; observed {cell['target']:.6g} ({cell['runs']} runs)"
        for cell in comparison["cells"]
    ]
    text = f"{len(out)} cells: error {comparison['mare']:.2%}, bias {comparison['bias']:+.2%}"
    if comparison["coverage"] is None:
        return [*out, f"{text}, no intervals"]
    covers = f"{percent(level)} confidence interval contains {comparison['coverage']:.0%} of them"
    return [*out, f"{text}; {covers}, prediction interval {comparison['run_coverage']:.0%}"]


def prediction_line(prediction: Row, level: float) -> str:
    """Formats a prediction of `predict` as a line: the point, the value, its two intervals, and how many decades the
    point lies outside the fitted rows."""
    at = ", ".join(f"{name}={value:g}" for name, value in prediction["at"].items())
    if "refused" in prediction:
        return f"{at}: refused, since it is {prediction['refused']}"
    far = f"{prediction['decades']:.2f} decades outside the rows"
    if prediction["lo"] is None:
        return f"{at}: {prediction['value']:.6g}, no interval (not identified), {far}"
    band = f"{percent(level)} prediction interval of a new run [{prediction['run_lo']:.5g}, {prediction['run_hi']:.5g}]"
    law = f"confidence interval if the law holds [{prediction['lo']:.5g}, {prediction['hi']:.5g}]"
    return f"{at}: {prediction['value']:.6g}   {band}, {law}, {far}"
