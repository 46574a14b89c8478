"""laws.json: what a fit leaves behind, written whole or not at all, and read back for predictions.

The form is `law.schema.json` beside this file. It refuses NaN: an unknown number is null.

The printed form of a law's record: estimates with their intervals, backtests, predictions and verdicts in lines.

It refuses to print a number without an interval or the words "not identified". It imports nothing heavy.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA = Path(__file__).with_name("law.schema.json")


def write(record: Mapping[str, Any], path: str | Path) -> None:
    """Write a record (or a `--by` collection of them) as JSON, by way of a temporary file and a rename."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        part.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"--json {path}: cannot be written: {error.strerror}") from error


def fitted_values(record: Mapping[str, Any]) -> NDArray[np.float64]:
    """The values of the parameters that were fitted, in order, (1, params): where the record's law is evaluated."""
    return np.array([[entry["value"] for entry in record["params"].values() if not entry.get("fixed")]])


def finite(value: Any) -> Any:
    """The same structure with every NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read(path: str | Path) -> dict[str, Any]:
    """A record from laws.json; ValueError when the file is absent, is not JSON or has another schema."""
    try:
        record = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema not in ("kleiber.law/1", "kleiber.laws/1"):
        raise ValueError(f"{path}: schema {schema!r}, expected 'kleiber.law/1' (written by `kleiber fit --json`)")
    return record


def lines(entry: Mapping[str, Any]) -> list[str]:
    """The printed form of a record: one line per parameter, backtest, prediction and verdict."""
    level, goal = percent(entry["level"]), entry["objective"]
    delta = f", delta {goal['delta']:g}" if goal["delta"] else ""
    out = [f"{entry['law']}: {entry['formula']}   ({entry['source']})"]
    out.append(
        f"{entry['n']} rows, {len(entry['excluded'])} excluded; "
        f"{goal['kind']}{delta} in {goal['space']}: {goal['value']:.6g}"
        + (f", residuals over {goal['sigma']}" if goal["sigma"] else "")
    )
    out += [
        f"  {name:<10} {_estimate(value, level)}" for name, value in {**entry["params"], **entry["derived"]}.items()
    ]
    out.append(f"residual rms {entry['residual_rms']:.3g} ({goal['space']}); intervals {_kind(entry)}")
    if "at" in entry:
        out.append(_objective_at(entry))
    for one in entry["approaches"]:
        out.append(f"  approach {one['approach']}: a = {one['a']:.4f}, {level} [{one['lo']:.4f}, {one['hi']:.4f}]")
    for one in entry["accounting"]:
        text = f"a = {one['a']:.4f}, {level} [{one['lo']:.4f}, {one['hi']:.4f}], shift {one['shift']:+.4f}"
        out.append(f"  {one['convention']}, approach {one['approach']}: {text}")
    for test in entry["backtests"]:
        naive = ", ".join(f"{name} {value:.2%}" for name, value in test["naive"].items())
        held = test["coverage"]
        runs = f"{test['n_runs']} independent run{'s' * (test['n_runs'] > 1)}"
        covers = (
            "no intervals" if held is None else f"{level} band (+-{test['half_width']:.1%}) held {held:.0%} of {runs}"
        )
        out.append(
            f"  backtest {test['along']} = {test['cut']:.3g}: {test['n_train']} -> {test['n_test']} rows, "
            f"error {test['mare']:.2%}, bias {test['bias']:+.2%}, {covers}; naive: {naive}"
        )
    for one in entry.get("ranking", ()):
        out.append(
            f"  ranked {one['law']}: error {one['mare']:.2%} on the {one['n_test']} largest, AIC {one['aic']:.1f}"
        )
    for one in entry.get("with_without", ()):
        numbers = ", ".join(f"{name} {short(value)}" for name, value in one.items() if isinstance(value, Mapping))
        out.append(f"  {one['suspects']} the suspects (n = {one['n']}), {level}: {numbers}")
    out += [f"  {prediction_line(one, entry['level'])}" for one in entry["predictions"]]
    return out + [f"{verdict['level']}: {verdict['text']} [{verdict['code']}]" for verdict in entry["verdicts"]]


def intervals_by(entry: Mapping[str, Any]) -> str:
    """How the intervals of a record were made, for its methods."""
    used = entry["bootstrap"]
    if not used:
        return "by profile likelihood"
    how = {
        "cluster t": "with the variances of the noise between and within trunks redrawn by their degrees of freedom",
        "cluster bootstrap": "to whole trunks resampled",
        "bootstrap": "to resampled rows, or with noise of their variance where rows are few",
    }[used["method"]]
    return f"percentiles of {used['draws']} refits {how}"


def band_rate(entry: Mapping[str, Any]) -> str:
    """The misfit that bands hold, for the methods."""
    misfit = entry["misfit"]
    return (
        f"the uncertainty of the parameters, the noise of a run, and a misfit of {misfit['at_one_decade']:.1%} of the "
        f"loss at one decade beyond the rows ({misfit['expected']:.1%} before this table's own backtests)"
    )


def percent(level: float) -> str:
    """`90%`, `99.5%`."""
    return f"{100 * level:.6g}%"


def _objective_at(entry: Mapping[str, Any]) -> str:
    """The objective at given parameters, beside that of the fit."""
    given, goal = entry["at"], entry["objective"]
    point = ", ".join(f"{name}={value:g}" for name, value in given["params"].items())
    rms = f"residual rms {given['residual_rms']:.3g} (fit {entry['residual_rms']:.3g})"
    return f"at {point}: {goal['kind']} {given['value']:.6g} (fit {goal['value']:.6g}), {rms}"


def _estimate(value: Mapping[str, Any], level: str) -> str:
    point = "-" if value["value"] is None else f"{value['value']:.6g}"
    if value.get("fixed"):
        return f"{point}   fixed"
    if not value["identified"]:
        return f"not identified ({value.get('reason') or 'no interval'}; least objective at {point})"
    return f"{point}   {level} [{value['lo']:.5g}, {value['hi']:.5g}]"


def short(value: Mapping[str, Any]) -> str:
    """An estimate with its interval, or the words for why it has none."""
    if value.get("fixed"):
        return f"{value['value']:.4g} (fixed)"
    if not value["identified"] or value["value"] is None:
        return "not identified" + ("" if value["value"] is None else f" (least objective at {value['value']:.4g})")
    return f"{value['value']:.4g} [{value['lo']:.4g}, {value['hi']:.4g}]"


def _kind(entry: Mapping[str, Any]) -> str:
    used = entry["bootstrap"]
    if used:
        return f"by {used['method']} ({used['draws']} refits)"
    return "by profile" + (", rescaled to the noise of trunks" if "cluster t" in _methods(entry) else "")


def held_lines(found: Mapping[str, Any], level: float) -> list[str]:
    """The printed form of a law against rows: a line a cell, then the errors."""
    out = [f"{prediction_line(one, level)}; found {one['target']:.6g} ({one['runs']} runs)" for one in found["cells"]]
    text = f"{len(out)} cells: error {found['mare']:.2%}, bias {found['bias']:+.2%}"
    if found["coverage"] is None:
        return [*out, f"{text}, no intervals"]
    held = f"{percent(level)} interval of the law covers {found['coverage']:.0%}, "
    held += f"that of one run {found['run_coverage']:.0%}"
    return [*out, f"{text}; {held}"]


def prediction_line(one: Mapping[str, Any], level: float) -> str:
    at = ", ".join(f"{name}={value:g}" for name, value in one["at"].items())
    if "refused" in one:
        return f"{at}: refused, {one['refused']}"
    far = f"{one['decades']:.2f} decades outside the rows"
    if one["lo"] is None:
        return f"{at}: {one['value']:.6g}, interval not identified, {far}"
    band = f"{percent(level)} band of a new run [{one['run_lo']:.5g}, {one['run_hi']:.5g}]"
    return f"{at}: {one['value']:.6g}   {band}, of the law if it holds [{one['lo']:.5g}, {one['hi']:.5g}], {far}"


def _methods(entry: Mapping[str, Any]) -> set[str]:
    """The methods behind the intervals of a record."""
    return {value["method"] for value in {**entry["params"], **entry["derived"]}.values() if "method" in value}
