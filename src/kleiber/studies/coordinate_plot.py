"""The figure of `kleiber check mup`: size of activations against width, a panel a layer, a row a parametrisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes coordinates.png and coordinates.html (which needs no network) into `folder`. Flat lines are right."""
    import altair as alt
    import pandas as pd

    from kleiber.studies.dress import PALETTE, dressed

    folder.mkdir(parents=True, exist_ok=True)
    shown = pd.DataFrame(rows)
    layers = list(dict.fromkeys(shown["layer"]))
    widths = sorted(int(width) for width in shown["width"].unique())
    x = alt.X("width:Q", title="width", scale=alt.Scale(type="log", base=2, nice=False, padding=8))
    chart = (
        alt.Chart(shown)
        .mark_line(point=True, strokeWidth=1.4)
        .encode(
            x=x.axis(alt.Axis(values=widths)),
            y=alt.Y("rms:Q", title="rms of an entry", scale=alt.Scale(type="log", nice=False, padding=8)),
            color=alt.Color("step:O", scale=alt.Scale(scheme=PALETTE), title="step"),
            tooltip=["layer:N", "width:O", "step:O", alt.Tooltip("rms:Q", format=".4f")],
        )
        .properties(width=150, height=150)
        .facet(
            column=alt.Column("layer:N", sort=layers, title=None),
            row=alt.Row("parametrization:N", sort=list(dict.fromkeys(shown["parametrization"])), title=None),
        )
        .resolve_scale(y="independent")
    )
    chart = dressed(chart)
    picture, page = folder / "coordinates.png", folder / "coordinates.html"
    chart.save(picture, scale_factor=2)
    chart.save(page, inline=True, embed_options={"renderer": "svg", "actions": False})
    return [picture, page]
