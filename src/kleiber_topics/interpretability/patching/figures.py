"""Figures of `kleiber eval --evals patching`: the restored share by layer and position, and by layer and head."""

from __future__ import annotations

import re
from collections.abc import Mapping

import altair as alt
import pandas as pd

from kleiber.charts import heat_map
from kleiber.types import Json

STREAM = re.compile(r"stream/layer(\d+)/(?:offset(\d+)|(end))")
PART = re.compile(r"(?:head/layer(\d+)/head(\d+)|(attention|mlp)/layer(\d+))")
END = "at the end"
CELL = (58, 26)


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """The charts of each table, under names that can be those of files."""
    charts: dict[str, alt.TopLevelMixin] = {}
    for data, scores in results["scores"].items():
        name = data.replace("/", "_")
        positions = stream_rows(scores)
        if not positions:  # no pair to patch
            continue
        charts[f"positions_{name}"] = restored_map(
            positions,
            "tokens behind the first difference",
            f"Share of the prediction restored by the stream, {data}",
        )
        parts = part_rows(scores)
        if parts:
            charts[f"heads_{name}"] = restored_map(
                parts, "patched at all positions", f"Share of the prediction restored by heads and layers, {data}"
            )
    return charts


def stream_rows(scores: Json) -> list[Json]:
    """A row for each layer and position of the stream."""
    rows: list[Json] = []
    for metric, score in scores.items():
        match = STREAM.fullmatch(metric)
        if match:
            layer = "embedding" if match[1] == "0" else f"block {match[1]}"
            rows.append({"layer": layer, "column": match[2] or END, **score})
    return rows


def part_rows(scores: Json) -> list[Json]:
    """A row for each head, and for attention and the MLP of each layer."""
    rows: list[Json] = []
    for metric, score in sorted(scores.items()):
        match = PART.fullmatch(metric)
        if match:
            column = f"head {match[2]}" if match[2] else {"attention": "all heads", "mlp": "MLP"}[match[3]]
            rows.append({"layer": f"block {int(match[1] or match[4]) + 1}", "column": column, **score})
    return rows


def restored_map(rows: list[Json], axis: str, title: str) -> alt.TopLevelMixin:
    """The restored share by layer, the first one at the bottom, and column."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    layers.sort(key=lambda layer: 0 if layer == "embedding" else int(layer.split()[1]))
    columns = list(dict.fromkeys(row["column"] for row in rows))
    columns.sort(key=lambda column: (not column.startswith("head"), not column.isdigit(), len(column), column))
    x = alt.X("column:N", title=axis, sort=columns, axis=alt.Axis(labelAngle=0, domain=False, ticks=False))
    y = alt.Y("layer:N", title=None, sort=layers[::-1], axis=alt.Axis(domain=False, ticks=False))
    tips = ["layer:N", "column:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("value", "lo", "hi")), "n:Q"]
    return heat_map(pd.DataFrame(rows), x, y, "restored", title, domain=(0, 1), cell=CELL, tips=tips)
