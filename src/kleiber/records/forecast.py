"""forecast.json: the loss that `kleiber plan` expects of a run before it is trained, and whether it came out inside.

A file is {schema: "kleiber.forecast/1", config_hash, written, command, overrides, hours, devices, params, tokens, lr,
batch_tokens, predicted: {value, lo, hi, law_lo, law_hi, level, decades}, law: {name, formula, source, runs_hash},
speed: {tokens_per_s, seconds, source}}. It belongs to the run with the same `config_hash`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from kleiber.records.regular_files import read_bytes

SCHEMA = "kleiber.forecast/1"
FILE = "forecast.json"
PATTERN = "forecast*.json"
HASH = 8  # characters of the hash of a config that name a run
MAX_BYTES = 2**20
MOST_FILES = 100  # that are read in a folder


class Predicted(BaseModel):
    """The expected loss with the interval of a new run."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    value: FiniteFloat
    lo: FiniteFloat
    hi: FiniteFloat
    level: Annotated[float, Field(gt=0, lt=1)]


class Forecast(BaseModel):
    """What a comparison needs of a forecast."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    schema_name: Literal["kleiber.forecast/1"] = Field(alias="schema")
    config_hash: str
    written: AwareDatetime
    predicted: Predicted

    def precedes(self, started: str) -> bool:
        """Whether it was written before a time in ISO format, to the second, as runs record when they started."""
        return self.written.replace(microsecond=0) <= datetime.fromisoformat(started)

    def contains(self, loss: float) -> bool:
        """Whether a loss is inside the interval."""
        return self.predicted.lo <= loss <= self.predicted.hi


def find_forecast(config_hash: str, folders: Iterable[Path]) -> Forecast | None:
    """Returns the first forecast*.json in these folders that belongs to a run; None without one.

    Files that are no forecasts are ignored.
    """
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.glob(PATTERN))[:MOST_FILES]:
            try:
                forecast = Forecast.model_validate_json(read_bytes(path, MAX_BYTES))
            except (ValidationError, OSError, ValueError):
                continue
            if forecast.config_hash[:HASH] == config_hash[:HASH]:
                return forecast
    return None
