"""Figures of `kleiber eval --evals routing`, drawn from its results and from the loads that the run logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from kleiber.charts.matrix import heat_map
from kleiber.charts.series import Marks, draw, end_names, lines
from kleiber.charts.theme import WIDTH, in_rows, kind_color, log_axis, reference_line, size_color
from kleiber.records.metrics import read_rows, rows_with
from kleiber.records.summary_file import read_summary
from kleiber.types import Json

LAYER = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))


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


def expert_map(rows: pd.DataFrame, title: str, legend: str, scale: alt.Scale | None = None) -> alt.TopLevelMixin:
    """A heat map of the column `value` over experts and layers, with the colors of `scale`."""
    x = alt.X("expert:O", title="expert", axis=alt.Axis(labelAngle=0))
    size = (WIDTH, 40 + 30 * len(set(rows["layer"])))
    return heat_map(rows, x, alt.Y("layer:O", title="layer"), legend, title, scale=scale, style="", size=size)


def cells(by_layer: Mapping[int, Sequence[float]], factor: float = 1.0) -> pd.DataFrame:
    """A table with a row for each layer and expert, and its value times a factor."""
    return pd.DataFrame(
        [
            {"layer": int(layer), "expert": expert, "value": factor * value}
            for layer, values in by_layer.items()
            for expert, value in enumerate(values or ())
        ]
    )


def load(record: Json) -> alt.TopLevelMixin:
    """Heat map of the load of each expert relative to a uniform load, by layer."""
    rows, scale = cells(record["load"], record["num_experts"]), alt.Scale(scheme="blueorange", domainMid=1.0)
    return expert_map(rows, "Load of the experts on held-out text", "load / uniform load", scale)


def removal(record: Json) -> alt.TopLevelMixin:
    """Change of the loss when an expert is removed, by layer."""
    rows = cells(record["redundancy"]["removal"])
    return expert_map(rows, "Increase of the loss when an expert is removed", "nats per token")


def specialization(record: Json) -> alt.TopLevelMixin:
    """Mutual information of expert and domain or token, by layer."""
    rows = pd.DataFrame([
        {"layer": int(layer), "kind": label, "value": value}
        for label, name in (("domain", "domain"), ("input token", "token"), ("next token", "next_token"))
        for layer, value in record["specialization"][name].items()
        if value is not None
    ])  # fmt: skip
    color = kind_color(list(dict.fromkeys(rows["kind"])), legend=alt.Legend(title="information about"))
    tips = ["layer:O", "kind:N", alt.Tooltip("value:Q", format=".4f")]
    y, table = alt.Y("value:Q", title="mutual information / entropy"), Marks(rows=rows, line=2, points=30, tips=tips)
    return lines([table], LAYER, y, "Specialization of experts by layer", color=color)


def similarity(record: Json) -> alt.TopLevelMixin:
    """Mean cosine similarity of the outputs of two experts, by layer."""
    rows = pd.DataFrame([{"layer": int(i), "value": v} for i, v in record["redundancy"]["alike"].items()])
    y, table = alt.Y("value:Q", title="mean cosine similarity of two experts"), Marks(rows=rows, line=1, points=60)
    return lines([table], LAYER, y, "Similarity of expert outputs by layer", height=200, reference=0.0)


def sensitivity(record: Json) -> alt.TopLevelMixin:
    """Share of tokens with other experts (top) and increase of the loss (bottom) vs noise; dashed lines: rounding."""
    kinds = {"free": "free routing", "frozen": "fixed experts"}
    draws = [(float(eps), draw) for eps, entry in record["sensitivity"]["noise"].items() for draw in entry["draws"]]
    flips = pd.DataFrame([{"eps": eps, "value": draw["flips"]} for eps, draw in draws])
    nats = pd.DataFrame([{"eps": eps, "kind": kinds[key], "value": draw[key]} for eps, draw in draws for key in kinds])
    x = log_axis("eps", "relative noise in the router weights", flips["eps"], room=2.4)
    share = alt.Y("value:Q", title="tokens with other experts", axis=alt.Axis(format=".1%", tickCount=5))
    loss = alt.Y("value:Q", title="increase of the loss (nats per token)", axis=alt.Axis(tickCount=5))
    means = nats.groupby(["kind", "eps"], as_index=False)["value"].mean()
    formats = {kind: entry["flips"] for kind, entry in record["sensitivity"]["rounding"].items()}
    rounding = [reference_line(share, level) for level in formats.values()]
    named = [{"eps": flips["eps"].min(), "kind": kind, "value": level} for kind, level in formats.items()]
    marks = {"mean": True, "line": 2.0, "points": 30}
    names = [Marks(rows=pd.DataFrame(named), name="kind", color="black")] if named else []
    top = draw([Marks(rows=flips, **marks), *names], x, share, behind=rounding)
    low = draw([Marks(rows=nats, **marks), end_names(means, "kind", "eps")], x, loss, kind_color(list(kinds.values())))
    panels = [top.properties(width=WIDTH, height=150), low.properties(width=WIDTH, height=200)]
    return in_rows(panels, "Routing changes and loss vs noise in the router weights", columns=1)


def saturation(record: Json) -> alt.TopLevelMixin:
    """Share of routing choices equal to those of the last checkpoint, by step and layer."""
    settled = record["settled"]
    rows = pd.DataFrame([
        {"step": step, "layer": f"layer {layer}", "value": value}
        for layer, values in settled["saturation"].items()
        for step, value in zip(settled["steps"], values, strict=True)
    ])  # fmt: skip
    y = alt.Y("value:Q", title="routing choices equal to the last checkpoint's", scale=alt.Scale(domain=[0, 1]))
    color = size_color(list(dict.fromkeys(rows["layer"])), alt.Legend(), "layer", "layer")
    table, x = Marks(rows=rows, line=2, points=30), alt.X("step:Q", title="optimizer step")
    return lines([table], x, y, "Router saturation by step", color=color)


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
    x, tableau = alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickCount=6)), alt.Scale(scheme="tableau20")
    y = alt.Y("value:Q", title="share of the load", axis=alt.Axis(tickCount=5, format=".0%"))
    shown = rows.assign(value=rows["share"], panel=[f"layer {layer}" for layer in rows["layer"]])
    table, color = Marks(rows=shown, line=1), alt.Color("expert:O", scale=tableau)
    title, size = "Load of each expert by optimizer step", {"width": WIDTH, "height": 110}
    return lines([table], x, y, title, color=color, panel="panel", columns=1, size=size)
