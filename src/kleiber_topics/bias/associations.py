"""The figure of the words that stand near two groups of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt

from kleiber.charts import Chart, estimates

MOST = 40  # words of a figure: those that are most strongly associated with either group
DIFFERS = ["", "undecided", "differs"]  # the series of points, whose colors are those of their places; the first: none


def association_chart(rows: Sequence[Mapping[str, object]], groups: tuple[str, str], fdr: float) -> Chart:
    """Log-odds ratios of words with their intervals, from those of the first group to those of the second one.

    rows    term, count, log_odds, lo, hi and q, from the strongest of the first group to that of the second one
    groups  names of the groups
    fdr     words of q <= fdr are filled
    """
    half = MOST // 2
    shown = [*rows] if len(rows) <= MOST else [*rows[:half], *rows[-half:]]
    table = [
        {**row, **by_difference(float(str(row["q"])) <= fdr), "name": row["term"], "value": row["log_odds"]}
        for row in shown
    ]
    return estimates(
        table, DIFFERS, f"log-odds ratio (90% interval): near {groups[1]} < 0 < near {groups[0]}",
        f"Words near {groups[0]} against those near {groups[1]}", zero=True, step=16, format=".3f",
        subtitle=f"filled: differs from 0 at a false discovery rate of {fdr:.0%}",
        tips=["count:Q", alt.Tooltip("q:Q", format=".3f")],
    )  # fmt: skip


def by_difference(differs: bool) -> dict[str, object]:
    """Returns the columns of an estimate that is filled where it differs from the reference, and hollow elsewhere."""
    return {"series": DIFFERS[1 + differs], "hollow": not differs}
