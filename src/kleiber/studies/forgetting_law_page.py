"""The page and the figures of the law of forgetting: the curve of replay, growth with new text, observed against fitted."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kleiber.studies.forgetting_page import number, table
from kleiber.studies.law import find
from kleiber.studies.plots import PALETTE, curve, human, sized

FORGETTING = "forgetting F (nats per token)"


def figures(record: Mapping[str, Any]) -> dict[str, Any]:
    rows = pd.DataFrame(record["rows"])
    rows["series"] = [f"N {human(n)}, M {m:g}" for n, m in zip(rows["N"], rows["M"], strict=True)]
    return {"replay": replay(rows, record), "tokens": tokens(rows), "fit": observed(rows, record)}


def fitted(record: Mapping[str, Any], rows: pd.DataFrame) -> np.ndarray:
    law = find(record["main"]["law"])
    return curve(law, record["main"], **{name: rows[name].to_numpy(dtype=float) for name in law.inputs})


def replay(rows: pd.DataFrame, record: Mapping[str, Any]) -> Any:
    """F against the replayed share where the new text is longest, the law as lines; what is tolerated is the rule."""
    longest = rows[rows["steps"] == rows["steps"].max()]
    shares = np.linspace(0, longest["p"].max(), 60)
    parts = []
    for name, one in longest.groupby("series"):
        line = pd.DataFrame([one.iloc[0]] * len(shares)).assign(p=shares, series=name)
        parts.append(line.assign(F=fitted(record, line)))
    color = alt.Color("series:N", title=None, scale=alt.Scale(scheme=PALETTE))
    x = alt.X("p:Q", title="replayed share of the tokens", axis=alt.Axis(format="%"))
    y = alt.Y("F:Q", title=FORGETTING)
    tip = ["series:N", "p:Q", "n:Q", alt.Tooltip("F:Q", format=".4f")]
    points = alt.Chart(longest).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tip)
    lines = alt.Chart(pd.concat(parts)).mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color)
    rule = alt.Chart(pd.DataFrame({"F": [record["critical"]["tolerate"]]})).mark_rule(strokeDash=[5, 4], color="#888")
    return sized(lines + points + rule.encode(y=y), "Forgetting against replay, longest fine-tuning")


def tokens(rows: pd.DataFrame) -> Any:
    """F against the tokens of new text, without replay."""
    plain = rows[rows["p"] == 0]
    ticks = sorted(plain["D"].unique())
    text = "datum.value >= 1e9 ? format(datum.value, '.0e') : format(datum.value, '.3~s')"
    axis, scale = alt.Axis(values=ticks, labelExpr=text), alt.Scale(type="log", nice=False, padding=14)
    x = alt.X("D:Q", title="tokens of new text", scale=scale, axis=axis)
    color = alt.Color("series:N", title=None, scale=alt.Scale(scheme=PALETTE))
    tip = ["series:N", "D:Q", alt.Tooltip("F:Q", format=".4f")]
    chart = alt.Chart(plain).mark_line(point=True).encode(x=x, y=alt.Y("F:Q", title=FORGETTING), color=color, tooltip=tip)
    return sized(chart, "Forgetting against new text, no replay")


def observed(rows: pd.DataFrame, record: Mapping[str, Any]) -> Any:
    """Every cell of the grid against the law; the line is equality."""
    shown = rows.assign(law=fitted(record, rows))
    ends = [float(shown[["F", "law"]].min().min()), float(shown[["F", "law"]].max().max())]
    color = alt.Color("p:Q", title="replayed", scale=alt.Scale(scheme=PALETTE), legend=alt.Legend(format="%"))
    x, y = alt.X("law:Q", title="F of the law (nats)"), alt.Y("F:Q", title="F observed (nats)")
    tip = ["series:N", "D:Q", "p:Q", alt.Tooltip("F:Q", format=".4f"), alt.Tooltip("law:Q", format=".4f")]
    points = alt.Chart(shown).mark_point(filled=True, size=46).encode(x=x, y=y, color=color, tooltip=tip)
    equal = alt.Chart(pd.DataFrame({"law": ends, "F": ends})).mark_line(color="#888", strokeDash=[5, 4])
    return sized(equal.encode(x=x, y=y) + points, "Observed against fitted")


def page(found: Mapping[str, Any], record: Mapping[str, Any], charts: Mapping[str, Any]) -> str:
    from kleiber.studies.command import lines
    from kleiber.studies.report import STYLE, scripts

    specs = json.dumps({name: chart.to_dict() for name, chart in charts.items()}).replace("</", "<\\/")
    places = "".join(f'<div id="{name}"></div>' for name in charts)
    draw = f"const specs = {specs}; for (const [id, spec] of Object.entries(specs)) vegaEmbed('#' + id, spec, "
    draw += "{renderer: 'svg', actions: false});"
    told = "".join(
        f'<div class="verdict {one["level"]}">{html.escape(one["level"])}: {html.escape(one["text"])}</div>'
        for one in found["verdicts"]
    )
    fits = "".join(
        f"<h2>{html.escape(name)}</h2><pre>{html.escape(said(one, lines))}</pre>"
        for name, one in {"The law of replay": record["main"], **record["beside"]}.items()
    )
    missing = f"<p>Missing: {html.escape(', '.join(found['missing']))}</p>" if found["missing"] else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(found["study"])}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(found['study'])}</h1><p><b>{html.escape(found['headline'])}</b></p>"
        f"<p>{html.escape(found['runs'])}, {found['seconds'] / 60:.0f} minutes of processes.</p>{missing}{told}"
        f'<div class="charts">{places}</div>{fits}<h2>The grid</h2>{rows_table(record)}'
        f'<script type="module">{scripts()}\n{draw}</script></html>'
    )


def said(one: Mapping[str, Any], lines: Any) -> str:
    return f"not fitted: {one['refused']}" if "refused" in one else "\n".join(lines(one))


def rows_table(record: Mapping[str, Any]) -> str:
    rows = [
        [human(one["N"]), f"{one['M']:g}", f"{one['D']:,.0f}", f"{one['p']:g}", str(one["n"]), number(one["F"], ".4f"),
         number(one["peak"], ".4f"), number(one["target"], ".4f")]
        for one in record["rows"]
    ]  # fmt: skip
    return table(["N", "tokens per parameter", "new tokens", "replayed", "seeds", "F", "peak F", "target loss"], rows)
