"""laws.json, the record of a fitted law: its estimates with their intervals, the file, and the printed form.

Every number has one interval, by the method that suits the rows: percentiles of refits where there are any
(`uncertainty.Draws.method`), the profile of the objective otherwise. A parameter whose profile never rises on one side
is not identified, nor is a derived quantity that moves with it. The format is `law.schema.json` beside this file; a
number that is not known is null, never NaN.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kleiber.studies.laws import verdicts
from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Linear
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.uncertainty import Draws, Profile, interval
from kleiber.types import Json, Row

SCHEMA = Path(__file__).with_name("law.schema.json")
VANISHED = 1e-3  # an interval that begins below this share of the value includes 0
MOVED = 0.5  # widths of its interval that a flat parameter may move a derived quantity which is identified


def parameters(
    model: NoiseModel, draws: Draws | None, profiled: Mapping[str, Profile], level: float
) -> dict[str, Json]:
    """Value, interval, its method and identifiability by parameter; None for an open end of an interval."""
    fitted, entries = model.fit, {}
    narrow = verdicts.narrow_input(fitted)
    method = draws.method if draws else "profile" if model.clusters is None else "cluster t"
    ends = dict(zip(fitted.law.params, np.transpose(interval(draws.values, level)), strict=True)) if draws else {}
    for name, value in fitted.params.items():
        profile = profiled.get(name)
        if profile is None:
            reason = "dropped at 0"
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
    """Why a term whose interval begins at 0 is not identified."""
    kind = fitted.law.params[name]
    if isinstance(kind, Linear) and kind.log and lo < VANISHED * value:
        return f"its interval begins at {lo:.2g}: not distinguishable from 0"
    return ""


def derived(fitted: Fit, draws: Draws | None, profiled: Mapping[str, Profile], level: float) -> dict[str, Json]:
    """Value, interval, its method and identifiability of each quantity that follows from the parameters."""
    entries: dict[str, Json] = {}
    sampled, undetermined = draws.derive() if draws else {}, fitted.law.derive(fitted.undetermined())
    along = {name: fitted.law.derive(path) for name, path in flat_paths(profiled).items()}
    for name, value in fitted.law.derive(fitted.values).items():
        lo, hi = (float(end) for end in (interval(sampled[name], level) if name in sampled else (np.nan, np.nan)))
        reason = ""
        if fitted.dropped:
            reason = f"{', '.join(fitted.dropped)} was dropped at 0"
        elif depends(undetermined[name]):
            reason = "the rows do not determine it"
        elif not np.isfinite(np.array([lo, hi, value[0]])).all():
            reason = "no interval"
        else:
            moving = [flat for flat, path in along.items() if _outside(path[name], lo, hi)]
            if moving:
                reason = f"{', '.join(moving)} is not identified and moves it"
        entries[name] = {
            "value": float(value[0]) if np.isfinite(value[0]) else None,
            "lo": None if reason else lo, "hi": None if reason else hi,
            "identified": not reason, "reason": reason,
        }  # fmt: skip
        if draws and not reason:
            entries[name]["method"] = draws.method
    return entries


def flat_paths(profiled: Mapping[str, Profile]) -> dict[str, Array]:
    """All parameters along each flat profile, by the name of the parameter that it does not identify."""
    return {name: profile.path for name, profile in profiled.items() if profile.reason and len(profile.path)}


def _outside(path: Array, lo: float, hi: float) -> bool:
    """Whether a path leaves the interval by more than half of its width."""
    room = MOVED * (hi - lo)
    return bool(np.isfinite(path).any() and ((path < lo - room) | (path > hi + room)).any())


def write(record: Row, path: str | Path) -> None:
    """Writes a record, or a `--by` collection of them, as JSON; a file is there whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        part.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written: {error.strerror}") from error


def finite(value: Any) -> Any:
    """The same structure with every NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read(path: str | Path) -> Json:
    """Reads a record from laws.json; ValueError when the file is absent, is not JSON or has another schema."""
    try:
        record = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema not in ("kleiber.law/1", "kleiber.laws/1"):
        raise ValueError(f"{path}: schema {schema!r}, expected 'kleiber.law/1' (`kleiber fit --json` writes one)")
    return record


def lines(entry: Row) -> list[str]:
    """The printed form of a record: a line for each estimate, approach, backtest, prediction and verdict."""
    level, goal = percent(entry["level"]), entry["objective"]
    delta = f", delta {goal['delta']:g}" if goal["delta"] else ""
    errors = f", residuals divided by {goal['sigma']}" if goal["sigma"] else ""
    out = [
        f"{entry['law']}: {entry['formula']}   ({entry['source']})",
        f"{entry['n']} rows fitted, {len(entry['excluded'])} excluded; {goal['kind']} loss{delta} on the "
        f"{goal['space']} scale: {goal['value']:.6g}{errors}",
    ]
    estimates = {**entry["params"], **entry["derived"]}
    out += [f"  {name:<10} {_estimate_line(value, level)}" for name, value in estimates.items()]
    out.append(f"residual rms {entry['residual_rms']:.3g} ({goal['space']}); intervals {_interval_method(entry)}")
    if "at" in entry:
        out.append(_objective_at(entry))
    for exponent in [*entry["approaches"], *entry["accounting"]]:
        counting = f"{exponent['convention']}, " if "convention" in exponent else ""
        shift = f", shift {exponent['shift']:+.4f}" if "shift" in exponent else ""
        ends = f"{level} [{exponent['lo']:.4f}, {exponent['hi']:.4f}]"
        out.append(f"  {counting}approach {exponent['approach']}: a = {exponent['a']:.4f}, {ends}{shift}")
    out += [_backtest_line(test, level) for test in entry["backtests"]]
    for rank in entry.get("ranking", ()):
        error = f"error {rank['mare']:.2%} on the {rank['n_test']} rows of largest compute"
        out.append(f"  ranking {rank['law']}: {error}, AIC {rank['aic']:.1f}")
    for other in entry.get("with_without", ()):
        numbers = ", ".join(f"{name} {short(value)}" for name, value in other.items() if isinstance(value, Mapping))
        out.append(f"  {other['suspects']} the suspects (n = {other['n']}), {level}: {numbers}")
    out += [f"  {prediction_line(prediction, entry['level'])}" for prediction in entry["predictions"]]
    return out + [f"{verdict['level']}: {verdict['text']} [{verdict['code']}]" for verdict in entry["verdicts"]]


def _backtest_line(test: Row, level: str) -> str:
    """Errors, coverage and naive errors of one backtest."""
    runs = f"{test['n_runs']} independent run{'s' * (test['n_runs'] > 1)}"
    covers = "no intervals"
    if test["coverage"] is not None:
        covers = f"{level} band (+-{test['half_width']:.1%}) covers {test['coverage']:.0%} of {runs}"
    naive = ", ".join(f"{name.replace('_', ' ')} {value:.2%}" for name, value in test["naive"].items())
    return (
        f"  backtest {test['along']} = {test['cut']:.3g}: {test['n_train']} rows below, {test['n_test']} above, "
        f"error {test['mare']:.2%}, bias {test['bias']:+.2%}, {covers}; naive predictors: {naive}"
    )


def intervals_by(entry: Row) -> str:
    """How the intervals of a record were computed, for a methods paragraph."""
    used = entry["bootstrap"]
    if not used:
        return "by profile likelihood"
    how = {
        "cluster t": "with the variances of the noise between and within trunks redrawn by their degrees of freedom",
        "cluster bootstrap": "to whole trunks resampled",
        "bootstrap": "to resampled rows, or with noise of their variance where rows are few",
    }[used["method"]]
    return f"percentiles of {used['draws']} refits {how}"


def band_rate(entry: Row) -> str:
    """What the bands of new runs contain, for a methods paragraph."""
    misfit = entry["misfit"]
    return (
        f"the uncertainty of the parameters, the noise of a run, and a misfit of {misfit['at_one_decade']:.1%} of the "
        f"loss at one decade beyond the rows ({misfit['expected']:.1%} before this table's backtests)"
    )


def percent(level: float) -> str:
    """`90%`, `99.5%`."""
    return f"{100 * level:.6g}%"


def _objective_at(entry: Row) -> str:
    """The objective at the parameters of --at, compared with that of the fit."""
    at_values, goal = entry["at"], entry["objective"]
    point = ", ".join(f"{name}={value:g}" for name, value in at_values["params"].items())
    rms = f"residual rms {at_values['residual_rms']:.3g} (fit {entry['residual_rms']:.3g})"
    return f"at {point}: {goal['kind']} loss {at_values['value']:.6g} (fit {goal['value']:.6g}), {rms}"


def _estimate_line(estimate: Row, level: str) -> str:
    point = "-" if estimate["value"] is None else f"{estimate['value']:.6g}"
    if estimate.get("fixed"):
        return f"{point}   fixed"
    if not estimate["identified"]:
        return f"not identified ({estimate.get('reason') or 'no interval'}; least objective at {point})"
    return f"{point}   {level} [{estimate['lo']:.5g}, {estimate['hi']:.5g}]"


def short(estimate: Row) -> str:
    """An estimate with its interval, or why it has none."""
    if estimate.get("fixed"):
        return f"{estimate['value']:.4g} (fixed)"
    if not estimate["identified"] or estimate["value"] is None:
        point = "" if estimate["value"] is None else f" (least objective at {estimate['value']:.4g})"
        return f"not identified{point}"
    return f"{estimate['value']:.4g} [{estimate['lo']:.4g}, {estimate['hi']:.4g}]"


def _interval_method(entry: Row) -> str:
    used = entry["bootstrap"]
    if used:
        return f"by {used['method']} ({used['draws']} refits)"
    methods = {estimate.get("method") for estimate in [*entry["params"].values(), *entry["derived"].values()]}
    return "by profile likelihood" + (", rescaled to the noise of trunks" if "cluster t" in methods else "")


def comparison_lines(comparison: Row, level: float) -> list[str]:
    """The printed form of a law compared with rows (`prediction.compare_with_rows`): a line a cell, then the errors."""
    out = [
        f"{prediction_line(cell, level)}; observed {cell['target']:.6g} ({cell['runs']} runs)"
        for cell in comparison["cells"]
    ]
    text = f"{len(out)} cells: error {comparison['mare']:.2%}, bias {comparison['bias']:+.2%}"
    if comparison["coverage"] is None:
        return [*out, f"{text}, no intervals"]
    covers = f"{percent(level)} interval of the law covers {comparison['coverage']:.0%} of them"
    return [*out, f"{text}; {covers}, band of a new run {comparison['run_coverage']:.0%}"]


def prediction_line(prediction: Row, level: float) -> str:
    """The printed form of one prediction: point, value, band of a new run, interval, distance from the rows."""
    at = ", ".join(f"{name}={value:g}" for name, value in prediction["at"].items())
    if "refused" in prediction:
        return f"{at}: refused, {prediction['refused']}"
    far = f"{prediction['decades']:.2f} decades outside the rows"
    if prediction["lo"] is None:
        return f"{at}: {prediction['value']:.6g}, interval not identified, {far}"
    band = f"{percent(level)} band of a new run [{prediction['run_lo']:.5g}, {prediction['run_hi']:.5g}]"
    law = f"of the law if it holds [{prediction['lo']:.5g}, {prediction['hi']:.5g}]"
    return f"{at}: {prediction['value']:.6g}   {band}, {law}, {far}"
