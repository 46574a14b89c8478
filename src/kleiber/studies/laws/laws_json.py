"""laws.json, the record of a fitted law: computes its estimates with intervals, writes and reads it.

Every estimate has one interval: percentiles of bootstrap refits if there are any (`uncertainty.Draws.method`),
otherwise the profile likelihood. A parameter whose profile stays flat on one side is not identified; neither is a
derived quantity that changes along that flat profile, nor any estimate beside a term that was dropped. The format is
`law.schema.json` in this folder; an unknown number is null, never NaN.

A laws.json that somebody wrote is data. It is validated as a whole before anything is computed from it, and it may only
name laws of the catalog: a file of code that it names is run only if the user gives the same name again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from kleiber.records.files import write_text
from kleiber.records.regular_files import DamagedFile, read_bytes
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Law, Linear, from_file
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.uncertainty import Draws, Profile, interval
from kleiber.studies.laws.variance_components import VarianceComponents
from kleiber.studies.laws.verdicts import Verdict, narrow_input
from kleiber.types import Json, NonNegative, Positive, Row

SCHEMA = Path(__file__).with_name("law.schema.json")
VANISHED = 1e-3  # an interval that begins below this fraction of the value counts as including 0
MAX_BYTES = 2**25  # of a laws.json
MOST_PROBLEMS = 5  # an error lists at most this many problems of a file
SCHEMAS = ("kleiber.law/1", "kleiber.laws/1")
MOVED = 0.5  # largest change of an identified derived quantity along a flat profile, in widths of its interval


def parameters(
    model: NoiseModel, draws: Draws | None, profiled: Mapping[str, Profile], level: float
) -> dict[str, Json]:
    """Returns value, interval, interval method and identifiability of each parameter; an open interval end is None."""
    fitted, entries = model.fit, {}
    narrow, undetermined = narrow_input(fitted), fitted.undetermined()
    method = draws.method if draws else "profile" if model.clusters is None else "cluster t"
    ends = dict(zip(fitted.law.params, np.transpose(interval(draws.values, level)), strict=True)) if draws else {}
    for at, (name, value) in enumerate(fitted.params.items()):
        profile = profiled.get(name)
        if profile is None:
            entries[name] = _estimate(0.0, 0.0, None, "its term was fitted to 0 and dropped")
            continue
        lo, hi = ends.get(name, (profile.lo, profile.hi))
        # Where refits leave the range of numbers, a profile rises although the rows do not determine the parameter.
        flat = "the rows do not determine it" if depends(undetermined[:, at]) else profile.reason or _dropped(fitted)
        reason = flat or (narrow if name == "E" else "") or _vanishing(fitted, name, value, lo)
        lo, hi = (float(end) if np.isfinite(end) and not flat else None for end in (lo, hi))
        entries[name] = _estimate(value, lo, hi, reason, method)
    for name, value in fitted.law.fixed.items():
        entries[name] = {"value": value, "lo": None, "hi": None, "identified": True, "fixed": True}
    return entries


def _estimate(value: float | None, lo: float | None, hi: float | None, reason: str, method: str | None = None) -> Json:
    """Returns the entry of a fitted quantity; it has a method if it has an end of an interval."""
    entry: Json = {"value": value, "lo": lo, "hi": hi, "identified": not reason, "reason": reason}
    return entry | ({} if method is None or lo is hi is None else {"method": method})


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
        without = (np.nan, np.nan) if draws else (value[0], value[0])  # no refits were asked for
        lo, hi = (float(end) for end in (interval(sampled[name], level) if name in sampled else without))
        if fitted.dropped:
            reason = _dropped(fitted)
        elif depends(undetermined[name]):
            reason = "the rows do not determine it"
        elif not np.isfinite(np.array([lo, hi, value[0]])).all():
            reason = "its interval could not be computed"
        else:
            moving = [flat for flat, path in along.items() if _outside(path[name], lo, hi)]
            reason = f"it depends on {', '.join(moving)}, which is not identified" if moving else ""
        point = float(value[0]) if np.isfinite(value[0]) else None
        ends = (lo, hi) if draws and not reason else (None, None)
        entries[name] = _estimate(point, *ends, reason, draws.method if draws else None)
    return entries


def _dropped(fitted: Fit) -> str:
    """Returns that a term was dropped, or "". The other estimates hold only if it is 0, and their refits keep it so."""
    return f"the term of {', '.join(fitted.dropped)} was fitted to 0 and dropped" if fitted.dropped else ""


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
    try:
        write_text(path, json.dumps(without_nonfinite(record), indent=1, allow_nan=False) + "\n")
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


class RecordPart(BaseModel):
    """Base class of the parts of laws.json; keys that no reader needs are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class Objective(RecordPart):
    """Loss function and scale of the fit."""

    kind: Literal["huber", "lad", "squared"]
    delta: Positive | None
    space: Literal["log", "log10", "linear"]
    value: FiniteFloat


class Estimate(RecordPart):
    """A parameter; `fixed` if it was not fitted."""

    value: FiniteFloat
    fixed: bool = False
    identified: bool = True


class HeldOut(RecordPart):
    """A test on rows that the law was not fitted to: its mean error and those of naive forecasts."""

    name: str = ""
    along: str = ""
    cut: FiniteFloat | None = None
    mare: FiniteFloat | None
    naive: dict[str, FiniteFloat | None] = {}


class Refits(RecordPart):
    """How the refits `draws` were made."""

    method: Literal["cluster t", "cluster bootstrap", "bootstrap"]


class MisfitRate(RecordPart):
    """Relative error of the law one decade outside the rows."""

    at_one_decade: NonNegative


class OptimumRow(RecordPart):
    """The group of a law of optimal hyperparameters, and the curvature of its loss around the optimum."""

    N: Positive
    D: Positive
    curvature: list[list[FiniteFloat]] | None


class LawRecord(RecordPart):
    """What a prediction needs of the record of one law (law.schema.json describes all of it)."""

    schema_name: Literal["kleiber.law/1"] = Field(alias="schema")
    law: str
    objective: Objective
    params: dict[str, Estimate]
    level: Annotated[float, Field(gt=0, lt=1)]
    domain: dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    draws: list[list[FiniteFloat]]
    bootstrap: Refits | None
    noise: VarianceComponents | None
    residual_sd: NonNegative | None
    misfit: MisfitRate
    untold: list[list[FiniteFloat]] = []
    flat: list[list[FiniteFloat]] = []
    scatter: dict[str, NonNegative] | None = None
    optima: list[OptimumRow] = []
    verdicts: list[Verdict] = []
    n: int = 0
    backtests: list[HeldOut] = []
    holdouts: list[HeldOut] = []

    @model_validator(mode="after")
    def check_draws(self) -> LawRecord:
        """Raises ValueError for draws of another number of parameters, and for draws without method or noise."""
        fitted = [name for name, estimate in self.params.items() if not estimate.fixed]
        for name, rows in (("draws", self.draws), ("untold", self.untold), ("flat", self.flat)):
            if any(len(row) != len(fitted) for row in rows):
                raise ValueError(f"each row of {name} must have a number for each of {', '.join(fitted)}")
        if self.draws and self.scatter is None and None in (self.bootstrap, self.noise, self.residual_sd):
            raise ValueError("with draws, none of bootstrap, noise and residual_sd may be null")
        return self


class LawRecords(RecordPart):
    """One law for each value of the column `by`."""

    schema_name: Literal["kleiber.laws/1"] = Field(alias="schema")
    by: str
    laws: dict[str, LawRecord]


Content = TypeAdapter(Annotated[LawRecord | LawRecords, Field(discriminator="schema_name")])


def read(path: str | Path, law: str | None = None) -> Json:
    """Reads laws.json: one record, or a collection of records by group; only keys that were validated remain.

    law  FILE.py:FUNCTION, the function that the records may name, since the user trusts it

    Raises ValueError for a missing file, invalid JSON, missing or wrong keys, and a law that is not in the catalog.
    """
    try:
        content = Content.validate_json(read_bytes(Path(path), MAX_BYTES))
    except DamagedFile as error:
        raise ValueError(
            f"{path} cannot be read ({error.reason}): it must be a file written by `kleiber fit --json`"
        ) from None
    except ValidationError as error:
        raise ValueError(f"{path}: {problems(error)}; create the file with `kleiber fit --json`") from None
    try:
        for record in content.laws.values() if isinstance(content, LawRecords) else [content]:
            law_of(record.model_dump(by_alias=True), law)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content.model_dump(by_alias=True)


def problems(error: ValidationError) -> str:
    """Returns what is wrong with which keys of a file, for the first problems."""
    details = error.errors(include_url=False, include_input=False)
    problems = [_problem(detail["loc"], detail["type"], detail["msg"]) for detail in details]
    rest = len(problems) - MOST_PROBLEMS
    return "; ".join(problems[:MOST_PROBLEMS]) + (f"; and {rest} others" if rest > 0 else "")


def _problem(place: tuple[int | str, ...], kind: str, message: str) -> str:
    """Returns one problem: the path of its key within the file, and what is wrong there."""
    if kind.startswith("union_tag"):
        return f"schema must be {' or '.join(map(repr, SCHEMAS))}"
    names = ".".join(str(part) for part in place if part not in SCHEMAS)
    if kind == "missing":
        return f"{names} is missing"
    return f"{names}: {message}" if names else message


def law_of(record: Row, law: str | None = None) -> Law:
    """Returns the law of a record of laws.json, with its fixed parameters.

    law  FILE.py:FUNCTION, the function that the record may name, since the user trusts it

    Raises ValueError for a law outside the catalog that is not `law`, and if the record has other parameters.
    """
    name = record["law"]
    if ".py:" in name and name != law:
        raise ValueError(
            f"its law {name!r} is a function in a file, which is not run because a laws.json names it; if you trust "
            f"this file of code, add --law {name}"
        )
    if law is not None and name != law:
        raise ValueError(f"--law {law} differs from the law {name!r} of the record; remove --law")
    form = law_by_option(name).for_params(record["params"])
    names = [*form.params]
    if sorted(record["params"]) != sorted(names):
        raise ValueError(
            f"params {', '.join(record['params'])} must be those of the law {name!r}: {', '.join(names)}; it was "
            "written by another version, so fit the law again"
        )
    form = form.fix({key: estimate["value"] for key, estimate in record["params"].items() if estimate.get("fixed")})
    fitted = [key for key, estimate in record["params"].items() if not estimate.get("fixed")]
    if fitted != list(form.params):
        raise ValueError(f"params must be in the order of the law {name!r}: {', '.join(form.params)}")
    return form


def law_by_option(name: str) -> Law:
    """Returns the law that the user names: one of the catalog, or the function of FILE.py:FUNCTION, which is run."""
    return from_file(name) if ".py:" in name else find(name)
