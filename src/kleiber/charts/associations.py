"""The figure of the words that stand near two groups of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from kleiber.charts.theme import KINDS, Chart, with_title

MOST = 40  # words of a figure: those that are most strongly associated with either group


def association_chart(rows: Sequence[Mapping[str, object]], groups: tuple[str, str], fdr: float) -> Chart:
    """Log-odds ratios of words with their intervals, from those of the first group to those of the second one.

    rows    term, count, log_odds, lo, hi and q, from the strongest of the first group to that of the second one
    groups  names of the groups
    fdr     words of q <= fdr are filled
    """
    half = MOST // 2
    shown = [*rows] if len(rows) <= MOST else [*rows[:half], *rows[-half:]]
    table = [{**row, "associated": float(str(row["q"])) <= fdr} for row in shown]
    base = alt.Chart(pd.DataFrame(table)).encode(
        y=alt.Y("term:N", title=None, sort=[str(row["term"]) for row in shown], axis=alt.Axis(labelLimit=200))
    )
    title = f"log-odds ratio (90 % interval): near {groups[1]} < 0 < near {groups[0]}"
    color = alt.condition("datum.associated", alt.value(KINDS[2]), alt.value(KINDS[1]))
    fill = alt.condition("datum.associated", alt.value(KINDS[2]), alt.value("white"))
    tips = ["term:N", "count:Q", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("log_odds", "lo", "hi", "q"))]
    layers = [
        alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(color="#888", strokeDash=[4, 3]).encode(x="x:Q"),
        base.mark_rule(strokeWidth=1.6).encode(x=alt.X("lo:Q", title=title), x2="hi:Q", color=color),
        base.mark_point(size=54, opacity=1, strokeWidth=1.6).encode(
            x="log_odds:Q", color=color, fill=fill, tooltip=tips
        ),
    ]
    subtitle = f"filled: differs from 0 at a false discovery rate of {fdr:.0%}"
    heading = f"Words near {groups[0]} against those near {groups[1]}"
    return with_title(alt.layer(*layers), heading, 30 + 16 * len(shown), subtitle)
