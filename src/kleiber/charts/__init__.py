"""Figures and pages: the theme of every figure, and the HTML page that shows figures and tables."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.charts.distribution import histogram
    from kleiber.charts.intervals import estimates
    from kleiber.charts.matrix import change_matrix, heat_map
    from kleiber.charts.page import render_page
    from kleiber.charts.series import Marks, line_chart, lines
    from kleiber.charts.theme import (
        GRAY,
        KINDS,
        Chart,
        Rows,
        format_count,
        in_rows,
        kind_color,
        loss_axis,
        over,
        pointed,
        span,
        values_axis,
    )

__all__, __getattr__ = lazy_exports(__name__, {}, __file__)
