"""Figures of `kleiber eval --evals routing`, drawn from its results and from the loads that the run logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from kleiber.charts.theme import PALETTE, WIDTH, apply_theme, kind_color, log_axis, with_title
from kleiber.records.metrics import read_rows, rows_with
from kleiber.records.summary_file import read_summary
from kleiber.types import Json, Row


def figures(record: Json, folder: Path | None) -> dict[str, alt.TopLevelMixin]:
    """The figures of the results `record`, by name; without those for which it has no numbers.

    folder  of the run, whose logged loads are drawn; None for a model without a run
    """
    charts: dict[str, alt.TopLevelMixin] = {
        "load": load(record),
        "specialization": specialization(record),
        "similarity": similarity(record),
    }
    if record["sensitivity"]:
        charts["sensitivity"] = sensitivity(record)
    if any(record["redundancy"]["removal"].values()):
        charts["removal"] = removal(record)
    if record["settled"]["steps"]:
        charts["saturation"] = saturation(record)
    logged = logged_loads(folder) if folder else None
    if logged is not None and len(logged):
        charts["load_over_time"] = load_over_time(logged)
    return charts


def heat_map(rows: pd.DataFrame, value: str, title: str, legend: str, scale: alt.Scale) -> alt.TopLevelMixin:
    """A heat map of the column `value` over experts and layers, with the colors of `scale`."""
    chart = alt.Chart(rows).mark_rect().encode(
        x=alt.X("expert:O", title="expert", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer"),
        color=alt.Color(f"{value}:Q", title=legend, scale=scale),
        tooltip=["layer:O", "expert:O", alt.Tooltip(f"{value}:Q", format=".4f")],
    )  # fmt: skip
    return with_title(chart, title, height=40 + 30 * len(set(rows["layer"])))


def cells(by_layer: Mapping[int, Sequence[float]], name: str) -> pd.DataFrame:
    """A table with a row for each layer and expert, and its value in the column `name`."""
    return pd.DataFrame(
        [
            {"layer": int(layer), "expert": expert, name: value}
            for layer, values in by_layer.items()
            for expert, value in enumerate(values or ())
        ]
    )


def load(record: Json) -> alt.TopLevelMixin:
    """Heat map of the load of each expert relative to a uniform load, by layer."""
    rows = cells(record["load"], "share")
    rows["relative"] = rows["share"] * record["num_experts"]
    scale = alt.Scale(scheme="blueorange", domainMid=1.0)
    return heat_map(rows, "relative", "Load of the experts on held-out text", "load / uniform load", scale)


def removal(record: Json) -> alt.TopLevelMixin:
    """Change of the loss when an expert is removed, by layer."""
    rows = cells(record["redundancy"]["removal"], "nats")
    scale = alt.Scale(scheme=PALETTE)
    return heat_map(rows, "nats", "Increase of the loss when an expert is removed", "nats per token", scale)


def specialization(record: Json) -> alt.TopLevelMixin:
    """Mutual information of expert and domain or token, by layer."""
    special = record["specialization"]
    rows = pd.DataFrame(
        [
            {"layer": int(layer), "by": label, "share": value}
            for label, name in (("domain", "domain"), ("input token", "token"), ("next token", "next_token"))
            for layer, value in special[name].items()
            if value is not None
        ]
    )
    chart = alt.Chart(rows).mark_line(point=True)
    return with_title(
        chart.encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="mutual information / entropy"),
            color=alt.Color("by:N", title="information about"),
            tooltip=["layer:O", "by:N", alt.Tooltip("share:Q", format=".4f")],
        ),
        "Specialization of experts by layer",
    )


def similarity(record: Json) -> alt.TopLevelMixin:
    """Mean cosine similarity of the outputs of two experts, by layer."""
    rows = pd.DataFrame([{"layer": int(i), "cosine": v} for i, v in record["redundancy"]["alike"].items()])
    chart = alt.Chart(rows).mark_bar(color="#456")
    x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))
    y = alt.Y("cosine:Q", title="mean cosine similarity of two experts")
    return with_title(chart.encode(x=x, y=y), "Similarity of expert outputs by layer", height=200)


def sensitivity(record: Json) -> alt.TopLevelMixin:
    """Share of tokens with other experts (top) and increase of the loss (bottom) vs noise; dashed lines: rounding."""
    kinds = {"free": "free routing", "frozen": "fixed experts"}
    draws = [(float(eps), draw) for eps, entry in record["sensitivity"]["noise"].items() for draw in entry["draws"]]
    flips = pd.DataFrame([{"eps": eps, "flips": draw["flips"]} for eps, draw in draws])
    nats = pd.DataFrame([{"eps": e, "kind": kinds[key], "nats": d[key]} for e, d in draws for key in kinds])
    x = log_axis("eps", "relative noise in the router weights", flips["eps"], room=2.4)
    share = alt.Axis(format=".1%", tickCount=5)
    above = alt.Chart(flips).encode(x=x, y=alt.Y("flips:Q", title="tokens with other experts", axis=share))
    top = above.mark_point(filled=True, size=30) + above.mark_line().encode(y="mean(flips):Q")
    color = kind_color(list(kinds.values()))
    title = "increase of the loss (nats per token)"
    below = alt.Chart(nats).encode(x=x, color=color, y=alt.Y("nats:Q", title=title, axis=alt.Axis(tickCount=5)))
    ends = alt.Chart(nats[nats["eps"] == nats["eps"].max()]).encode(x=x, color=color, y="mean(nats):Q", text="kind:N")
    low = below.mark_point(filled=True, size=30) + below.mark_line().encode(y="mean(nats):Q")
    low += ends.mark_text(align="left", dx=8, fontSize=11)
    top += rounding_lines(record["sensitivity"]["rounding"])
    panels = (top.properties(width=WIDTH, height=150), low.properties(width=WIDTH, height=200))
    return apply_theme(alt.vconcat(*panels, title="Routing changes and loss vs noise in the router weights"))


def rounding_lines(rounding: Row) -> alt.LayerChart | alt.FacetChart:
    """A labeled dashed line at the share of changed choices, for each format that the weights are rounded to."""
    lines = pd.DataFrame([{"kind": kind, "flips": entry["flips"]} for kind, entry in rounding.items()])
    base = alt.Chart(lines).encode(y="flips:Q")
    names = base.mark_text(align="left", dx=4, dy=-6, fontSize=10).encode(x=alt.value(4), text="kind:N")
    return base.mark_rule(strokeDash=[4, 3], color="#777") + names


def saturation(record: Json) -> alt.TopLevelMixin:
    """Share of routing choices equal to those of the last checkpoint, by step and layer."""
    settled = record["settled"]
    rows = pd.DataFrame(
        [
            {"step": step, "layer": layer, "overlap": value}
            for layer, values in settled["saturation"].items()
            for step, value in zip(settled["steps"], values, strict=True)
        ]
    )
    chart = alt.Chart(rows).mark_line(point=True)
    y = alt.Y("overlap:Q", title="routing choices equal to the last checkpoint's", scale=alt.Scale(domain=[0, 1]))
    x = alt.X("step:Q", title="optimizer step")
    return with_title(chart.encode(x=x, y=y, color="layer:O"), "Router saturation by step")


def logged_loads(folder: Path) -> pd.DataFrame:
    """Share of each expert by step, as the run logged it.

    Of several stages, the rows of the last one, preceded by those of its trunk.
    """
    rows = rows_with(read_rows(folder), "moe/load/")
    last = rows[-1].get("stage") if rows else None
    logged = [row for row in rows if row.get("stage") == last]
    stages = (read_summary(folder) or {}).get("stages", [])
    trunk = next((stage.get("trunk") for stage in stages if stage["name"] == last), None)
    before = [row for row in rows if trunk and row.get("stage") == trunk and row["step"] < logged[0]["step"]]
    return pd.DataFrame(
        [
            {"step": row["step"], "layer": int(key.split("/")[2]), "expert": int(key.split("/")[3]), "share": value}
            for row in [*before, *logged]
            for key, value in row.items()
            if key.startswith("moe/load/")
        ]
    )


def load_over_time(rows: pd.DataFrame) -> alt.TopLevelMixin:
    """Load of each expert by optimizer step, a panel for each layer."""
    lines = alt.Chart(rows).mark_line(strokeWidth=1).encode(
        x=alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickCount=6)),
        y=alt.Y("share:Q", title="share of the load", axis=alt.Axis(tickCount=5, format=".0%")),
        color=alt.Color("expert:O", scale=alt.Scale(scheme="tableau20")),
    )  # fmt: skip
    panels = lines.properties(width=WIDTH, height=110).facet(row=alt.Row("layer:O", title="layer"))
    return apply_theme(panels.properties(title="Load of each expert by optimizer step"))
