"""Names for plain data, so that a signature says what a dictionary is. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]  # an object read from JSON, or written to it
Config = Mapping[str, Any]  # a resolved config, or a node of one, as plain data
Row = Mapping[str, Any]  # one row of a table: values by column
