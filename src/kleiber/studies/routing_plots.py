"""The figures of `kleiber eval --evals routing`: from its numbers and the run's rows to altair charts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from kleiber.metrics import having, read_rows
from kleiber.studies.dress import PALETTE, sized


def figures(found: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """What can be drawn of what was found."""
    made = {"load": load(found), "specialisation": specialisation(found), "similarity": similarity(found)}
    if found["sensitivity"]:
        made["sensitivity"] = sensitivity(found)
    if any(found["redundancy"]["removal"].values()):
        made["removal"] = removal(found)
    if found["settled"]["steps"]:
        made["saturation"] = saturation(found)
    over = history(folder) if folder else None
    if over is not None and len(over):
        made["load_over_time"] = load_over_time(over)
    return made


def heat(
    rows: pd.DataFrame, value: str, title: str, what: str, scheme: str = PALETTE, middle: float | None = None
) -> Any:
    colors: Any = scheme
    scale = alt.Scale(scheme=colors) if middle is None else alt.Scale(scheme=colors, domainMid=middle)
    chart = alt.Chart(rows).mark_rect()
    return sized(
        chart.encode(
            x=alt.X("expert:O", title="expert", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer"),
            color=alt.Color(f"{value}:Q", title=what, scale=scale),
            tooltip=["layer:O", "expert:O", alt.Tooltip(f"{value}:Q", format=".4f")],
        ),
        title,
        height=40 + 30 * len(set(rows["layer"])),
    )


def cells(by_layer: Mapping[Any, Any], name: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"layer": int(layer), "expert": expert, name: value}
            for layer, values in by_layer.items()
            for expert, value in enumerate(values or ())
        ]
    )


def load(found: Mapping[str, Any]) -> Any:
    rows = cells(found["load"], "share")
    rows["relative"] = rows["share"] * found["num_experts"]
    return heat(rows, "relative", "Load of the experts on held-out text", "of the uniform share", "blueorange", 1.0)


def removal(found: Mapping[str, Any]) -> Any:
    rows = cells(found["redundancy"]["removal"], "nats")
    return heat(rows, "nats", "Loss when an expert is removed", "nats per token")


def specialisation(found: Mapping[str, Any]) -> Any:
    special = found["specialisation"]
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
        "What experts specialise in",
    )


def similarity(found: Mapping[str, Any]) -> Any:
    rows = pd.DataFrame([{"layer": int(i), "cosine": v} for i, v in found["redundancy"]["alike"].items()])
    chart = alt.Chart(rows).mark_bar(color="#456")
    x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))
    y = alt.Y("cosine:Q", title="mean cosine of two experts' outputs")
    return sized(chart.encode(x=x, y=y), "How alike experts are on the same tokens", height=200)


def sensitivity(found: Mapping[str, Any]) -> Any:
    """Flips above, loss change below, against the noise; rounding as points at the size of its error."""
    kinds = (("free", "routing free"), ("frozen", "choice frozen"))
    rows, flips = [], []
    for eps, entry in found["sensitivity"]["noise"].items():
        for draw in entry["draws"]:
            rows += [{"eps": float(eps), "routing": name, "nats": draw[key]} for key, name in kinds]
            flips.append({"eps": float(eps), "flips": draw["flips"]})
    x = alt.X("eps:Q", title="relative noise on the router's weights", scale=alt.Scale(type="log"))
    one = alt.Chart(pd.DataFrame(flips)).encode(x=x, y=alt.Y("flips:Q", title="tokens with other experts"))
    top = one.mark_point() + one.mark_line().encode(y=alt.Y("mean(flips):Q", title="tokens with other experts"))
    two = alt.Chart(pd.DataFrame(rows)).encode(x=x, color=alt.Color("routing:N", title=None))
    title = "loss change (nats per token)"
    low = two.mark_point().encode(y=alt.Y("nats:Q", title=title)) + two.mark_line().encode(
        y=alt.Y("mean(nats):Q", title=title)
    )
    return sized_parts(alt.vconcat(top.properties(width=420, height=150), low.properties(width=420, height=200)))


def sized_parts(chart: Any) -> Any:
    return chart.properties(title="Gating sensitivity").configure_view(stroke=None).configure_title(anchor="start")


def saturation(found: Mapping[str, Any]) -> Any:
    settled = found["settled"]
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
    """Shares of the experts by step, as the run logged them; of a run of several stages, of the last."""
    rows = having(read_rows(folder), "moe/load/")
    rows = [row for row in rows if row.get("stage") == rows[-1].get("stage")]
    return pd.DataFrame(
        [
            {"step": row["step"], "layer": int(key.split("/")[2]), "expert": int(key.split("/")[3]), "share": value}
            for row in rows
            for key, value in row.items()
            if key.startswith("moe/load/")
        ]
    )


def load_over_time(rows: pd.DataFrame) -> Any:
    chart = alt.Chart(rows).mark_line(strokeWidth=1).encode(
        x=alt.X("step:Q", title="optimizer step"),
        y=alt.Y("share:Q", title="share of the load"),
        color=alt.Color("expert:O", scale=alt.Scale(scheme="tableau20")),
    )  # fmt: skip
    return (
        chart.properties(width=420, height=110)
        .facet(row=alt.Row("layer:O", title="layer"))
        .properties(title="Load of each expert over training")
        .configure_view(stroke=None)
    )
