"""Writes figures and pages into the folders of runs and studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.records.files import write_bytes, write_text
from kleiber.records.regular_files import path_inside

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart


def write_figure(chart: Chart, folder: Path, name: str) -> None:
    """Writes a chart to `folder`/NAME.svg and .png, and converts it only once for both."""
    from kleiber.charts.pictures import svg_to_png, to_svg

    svg = to_svg(chart)
    write_text(path_inside(folder, f"{name}.svg"), svg)
    write_bytes(path_inside(folder, f"{name}.png"), svg_to_png(svg))
