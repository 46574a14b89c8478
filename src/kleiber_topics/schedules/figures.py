"""Figures of a law of schedules: observed and predicted loss along the fitted curves.

Only the first curves are drawn, and of a long one only some rows, so that a page stays small.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from kleiber.charts import Chart, Marks, kind_color, lines
from kleiber.types import Row

MOST_CURVES, MOST_ROWS = 6, 150  # drawn, and of each curve


def fitted(rows: Sequence[Row]) -> Chart:
    """Observed loss (points) and predicted loss (line) vs step, for the first curves."""
    table = pd.DataFrame(
        [{"run": row["run"], "step": row["at"]["step"], "observed": row["observed"], "predicted": row["value"]}
         for row in rows]
    )  # fmt: skip
    names = list(dict.fromkeys(table["run"]))[:MOST_CURVES]
    parts = [part.iloc[:: max(1, len(part) // MOST_ROWS)] for name, part in table.groupby("run") if name in names]
    shown = pd.concat(parts, ignore_index=True)
    tables = [
        Marks(rows=shown, value="observed", points=8, opacity=0.4, tips=["run:N", "step:Q", "observed:Q"]),
        Marks(rows=shown, value="predicted", line=1.6, tips=["run:N", "step:Q", "predicted:Q"]),
    ]
    x = alt.X("step:Q", title="optimizer step", axis=alt.Axis(format="~s"))
    y = alt.Y("predicted:Q", title="loss (nats per token)", scale=alt.Scale(zero=False))
    color = kind_color(names, "run", alt.Legend(orient="bottom", columns=1))
    return lines(tables, x, y, "Loss vs step", color=color, subtitle="points: observed; lines: the law")
