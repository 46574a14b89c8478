"""Reads a law that somebody wrote down: laws.json, and the functions FILE.py:FUNCTION that a command line names.

A laws.json is data. It is validated as a whole before anything is computed from it, and it may only name laws of the
catalog: a file of code that it names is run only if the user gives the same name again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.law import Law, from_file
from kleiber.studies.laws.variance_components import VarianceComponents
from kleiber.types import Json, Row

NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
MOST_PROBLEMS = 5  # an error lists at most this many problems of a file
SCHEMAS = ("kleiber.law/1", "kleiber.laws/1")


class Part(BaseModel):
    """Base class of the parts of laws.json; keys that no reader needs are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Objective(Part):
    """Loss function and scale of the fit."""

    kind: Literal["huber", "lad", "squared"]
    delta: Positive | None
    space: Literal["log", "log10", "linear"]
    value: FiniteFloat


class Estimate(Part):
    """A parameter; `fixed` if it was not fitted."""

    value: FiniteFloat
    fixed: bool = False


class Refits(Part):
    """How the refits `draws` were made."""

    method: Literal["cluster t", "cluster bootstrap", "bootstrap"]


class MisfitRate(Part):
    """Relative error of the law one decade outside the rows."""

    at_one_decade: NonNegative


class LawRecord(Part):
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

    @model_validator(mode="after")
    def check_draws(self) -> LawRecord:
        """Raises ValueError for draws of another number of parameters, and for draws without method or noise."""
        fitted = [name for name, estimate in self.params.items() if not estimate.fixed]
        for name, rows in (("draws", self.draws), ("untold", self.untold), ("flat", self.flat)):
            if any(len(row) != len(fitted) for row in rows):
                raise ValueError(f"each row of {name} must have a number for each of {', '.join(fitted)}")
        if self.draws and None in (self.bootstrap, self.noise, self.residual_sd):
            raise ValueError("with draws, none of bootstrap, noise and residual_sd may be null")
        return self


class LawRecords(Part):
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
        content = Content.validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): it must be a file written by `kleiber fit --json`"
        ) from error
    except ValidationError as error:
        raise ValueError(f"{path}: {_problems(error)}; create the file with `kleiber fit --json`") from None
    try:
        for record in content.laws.values() if isinstance(content, LawRecords) else [content]:
            law_of(record.model_dump(by_alias=True), law)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content.model_dump(by_alias=True)


def _problems(error: ValidationError) -> str:
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
    form = law_by_option(name)
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
