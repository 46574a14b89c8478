"""laws.json: what a fit leaves behind, written whole or not at all, and read back for predictions.

The form is `law.schema.json` beside this file. It refuses NaN: an unknown number is null.
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
