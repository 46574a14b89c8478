"""The figure of stereotype scores by group, and the table of their p- and q-values."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import altair as alt

from kleiber.charts import estimates
from kleiber.types import Json, format_interval
from kleiber_topics.bias.associations import DIFFERS, by_difference

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
    rows = [{**row, **by_difference(row["biased"]), "name": row["label"], "reference": 0.5} for row in rows]
    note = f"dashed: no preference; filled: differs from 0.5 at a false discovery rate of {fdr:.0%}; in brackets: items"
    if any(group["q"] is None for group in groups):
        note += "; last rows: subsets, which are not tested"
    return estimates(
        rows, DIFFERS, "stereotype score (share of items, 90% interval)", f"Stereotype score by group: {name}", step=24,
        domain=(0, 1), subtitle=note, format=".3f",
        tips=[alt.Tooltip(f"{key}:Q", format=".3f") for key in ("p", "q")],
    )  # fmt: skip


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
