"""The figures of `kleiber eval --evals routing`: from its numbers and the run's rows to altair charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from kleiber.charts.theme import PALETTE, WIDTH, dressed, kinds_color, log_axis, sized
from kleiber.records.summary import having, read, read_rows
from kleiber.types import Json, Row


def figures(record: Json, folder: Path | None) -> Json:
    """What can be drawn of what was found."""
    charts = {"load": load(record), "specialisation": specialisation(record), "similarity": similarity(record)}
    if record["sensitivity"]:
        charts["sensitivity"] = sensitivity(record)
    if any(record["redundancy"]["removal"].values()):
        charts["removal"] = removal(record)
    if record["settled"]["steps"]:
        charts["saturation"] = saturation(record)
    over = history(folder) if folder else None
    if over is not None and len(over):
        charts["load_over_time"] = load_over_time(over)
    return charts


def heat(
    rows: pd.DataFrame, value: str, title: str, legend: str, scheme: str = PALETTE, middle: float | None = None
) -> alt.TopLevelMixin:
    """A heat map of `value` over layers and experts."""
    colors: Any = scheme
    scale = alt.Scale(scheme=colors) if middle is None else alt.Scale(scheme=colors, domainMid=middle)
    chart = alt.Chart(rows).mark_rect()
    return sized(
        chart.encode(
            x=alt.X("expert:O", title="expert", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer"),
            color=alt.Color(f"{value}:Q", title=legend, scale=scale),
            tooltip=["layer:O", "expert:O", alt.Tooltip(f"{value}:Q", format=".4f")],
        ),
        title,
        height=40 + 30 * len(set(rows["layer"])),
    )


def cells(by_layer: Mapping[int, Sequence[float]], name: str) -> pd.DataFrame:
    """A row for each layer and expert with its value."""
    return pd.DataFrame(
        [
            {"layer": int(layer), "expert": expert, name: value}
            for layer, values in by_layer.items()
            for expert, value in enumerate(values or ())
        ]
    )


def load(record: Json) -> alt.TopLevelMixin:
    rows = cells(record["load"], "share")
    rows["relative"] = rows["share"] * record["num_experts"]
    return heat(rows, "relative", "Load of the experts on held-out text", "of the uniform share", "blueorange", 1.0)


def removal(record: Json) -> alt.TopLevelMixin:
    rows = cells(record["redundancy"]["removal"], "nats")
    return heat(rows, "nats", "Loss when an expert is removed", "nats per token")


def specialisation(record: Json) -> alt.TopLevelMixin:
    """Mutual information of expert and domain or token, by layer."""
    special = record["specialisation"]
    rows = pd.DataFrame(
        [
            {"layer": int(layer), "by": label, "share": value}
            for label, name in (("domain", "domain"), ("input token", "token"), ("next token", "next_token"))
            for layer, value in special[name].items()
            if value is not None
        ]
    )
    chart = alt.Chart(rows).mark_line(point=True)
    return sized(
        chart.encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="mutual information, share of the entropy"),
            color=alt.Color("by:N", title="expert and"),
            tooltip=["layer:O", "by:N", alt.Tooltip("share:Q", format=".4f")],
        ),
        "Specialization of experts by layer",
    )


def similarity(record: Json) -> alt.TopLevelMixin:
    """Mean cosine similarity of the outputs of two experts, by layer."""
    rows = pd.DataFrame([{"layer": int(i), "cosine": v} for i, v in record["redundancy"]["alike"].items()])
    chart = alt.Chart(rows).mark_bar(color="#456")
    x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))
    y = alt.Y("cosine:Q", title="mean cosine of two experts' outputs")
    return sized(chart.encode(x=x, y=y), "Similarity of experts on the same tokens, by layer", height=200)


def sensitivity(record: Json) -> alt.TopLevelMixin:
    """Flips above and the change of the loss below, against the noise; what rounding flips as dashed lines."""
    kinds = {"free": "routing free", "frozen": "choice frozen"}
    draws = [(float(eps), draw) for eps, entry in record["sensitivity"]["noise"].items() for draw in entry["draws"]]
    flips = pd.DataFrame([{"eps": eps, "flips": draw["flips"]} for eps, draw in draws])
    nats = pd.DataFrame([{"eps": e, "kind": kinds[key], "nats": d[key]} for e, d in draws for key in kinds])
    x = log_axis("eps", "relative noise on the router's weights", flips["eps"], room=2.4)
    share = alt.Axis(format=".1%", tickCount=5)
    above = alt.Chart(flips).encode(x=x, y=alt.Y("flips:Q", title="choices that change", axis=share))
    top = above.mark_point(filled=True, size=30) + above.mark_line().encode(y="mean(flips):Q")
    color = kinds_color(list(kinds.values()))
    title = "change of the loss (nats per token)"
    below = alt.Chart(nats).encode(x=x, color=color, y=alt.Y("nats:Q", title=title, axis=alt.Axis(tickCount=5)))
    ends = alt.Chart(nats[nats["eps"] == nats["eps"].max()]).encode(x=x, color=color, y="mean(nats):Q", text="kind:N")
    low = below.mark_point(filled=True, size=30) + below.mark_line().encode(y="mean(nats):Q")
    low += ends.mark_text(align="left", dx=8, fontSize=11)
    top += rounded(record["sensitivity"]["rounding"], x)
    parts = (top.properties(height=150), low.properties(height=200))
    return dressed(alt.vconcat(*(part.properties(width=WIDTH) for part in parts), title="Gating sensitivity"))


def rounded(rounding: Row, x: alt.X) -> alt.LayerChart | alt.FacetChart:
    """A dashed line for each way of rounding the router's weights, named."""
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
    y = alt.Y("overlap:Q", title="choices that are the last checkpoint's", scale=alt.Scale(domain=[0, 1]))
    return sized(chart.encode(x=alt.X("step:Q"), y=y, color="layer:O"), "Router saturation")


def history(folder: Path) -> pd.DataFrame:
    """Shares of the experts by step, as the run logged them; of several stages, of the last and the trunk under it."""
    rows = having(read_rows(folder), "moe/load/")
    last = rows[-1].get("stage") if rows else None
    logged = [row for row in rows if row.get("stage") == last]
    stages = (read(folder / "summary.json") or {}).get("stages", [])
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
    return dressed(panels.properties(title="Load of each expert over training"))
