"""The figure of stereotype scores by group, and the table of their p- and q-values."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import altair as alt
import pandas as pd

from kleiber.charts.theme import KINDS, with_title
from kleiber.types import Json
from kleiber.types.score import format_interval

ALL = "all groups"


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """A figure for each data set, under a name that can be one of a file."""
    groups, fdr = results["details"]["groups"], results["details"]["fdr"]
    return {
        f"bias_{name.replace('/', '_')}": score_chart(name, rows, results["scores"][name]["stereotype_score"], fdr)
        for name, rows in groups.items()
    }


def score_chart(name: str, groups: list[Json], whole: Json, fdr: float) -> alt.TopLevelMixin:
    """The stereotype score of each group and of all items, with intervals, and a line at .5."""
    rows: list[Json] = [{"bias_type": ALL, "p": None, "q": None, **whole, "biased": False}, *groups]
    rows = [{**row, "label": f"{row['bias_type']} ({row['n']:,})"} for row in rows]
    scale = alt.Scale(domain=[0.0, 1.0])
    title = "stereotype score (share of items, 90 % interval)"
    labels = [row["label"] for row in rows]
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(labelLimit=260))
    )
    color = alt.condition("datum.biased", alt.value(KINDS[2]), alt.value(KINDS[1]))
    fill = alt.condition("datum.biased", alt.value(KINDS[2]), alt.value("white"))
    tips = ["bias_type:N", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("value", "lo", "hi", "p", "q"))]
    layers = [
        alt.Chart(pd.DataFrame({"x": [0.5]})).mark_rule(color="#888", strokeDash=[4, 3]).encode(x="x:Q"),
        base.mark_rule(strokeWidth=1.8).encode(x=alt.X("lo:Q", title=title, scale=scale), x2="hi:Q", color=color),
        base.mark_point(size=64, opacity=1, strokeWidth=1.8).encode(
            x=alt.X("value:Q", title=title, scale=scale), color=color, fill=fill, tooltip=tips
        ),
    ]
    subtitle = (
        f"dashed: no preference; filled: differs from .5 at a false discovery rate of {fdr:.0%}; in brackets: items"
    )
    if any(group["q"] is None for group in groups):
        subtitle += "; last rows: subsets, which are not tested"
    heading = f"Stereotype score by group: {name}"
    return with_title(alt.layer(*layers), heading, 40 + 24 * len(rows), subtitle)


def groups_html(results: Json) -> str:
    """Tables of the groups of each data set; every text is escaped."""
    parts = []
    fdr = results["details"]["fdr"]
    for name, groups in results["details"]["groups"].items():
        rows = "".join(
            f"<tr><td>{escape(group['bias_type'])}</td><td>{group['n']}</td>"
            f"<td>{group['value']:.3f} {format_interval(group['lo'], group['hi'], '.3f')}</td>"
            f"<td>{format_p(group['p'])}</td><td>{format_p(group['q'])}</td>"
            f"<td>{verdict(group)}</td></tr>"
            for group in groups
        )
        parts.append(
            f"<h3>{escape(name)}</h3><table><tr><th>group</th><th>items</th><th>stereotype score, 90 % interval</th>"
            f"<th>p</th><th>q</th><th>differs from .5 at a false discovery rate of {fdr:.0%}</th></tr>{rows}</table>"
        )
    return "\n".join(parts)


def format_p(value: float | None) -> str:
    """A p- or q-value; nothing for a subset, which has none."""
    return "" if value is None else f"{value:.2g}"


def verdict(group: Json) -> str:
    """Whether a group counts as biased; nothing for a subset, which is not tested."""
    if group["q"] is None:
        return ""
    return "yes" if group["biased"] else "no"
