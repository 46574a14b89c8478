"""The files of a figure are those of altair."""

import pandas as pd
import pytest

pytest.importorskip("altair")

import altair as alt

from kleiber.charts.pictures import FONTS, READ_OUT, svg_to_png, to_svg
from kleiber.charts.theme import apply_theme


@pytest.mark.slow
def test_the_files_of_a_figure_are_those_of_altair_but_for_the_names_of_fonts_and_what_is_read_out(tmp_path):
    chart = apply_theme(alt.Chart(pd.DataFrame({"x": [1, 2], "y": [3, 5]})).mark_line().encode(x="x:Q", y="y:Q"))
    assert FONTS in to_svg(chart)
    ours = {
        ".svg": to_svg(chart).replace(FONTS, 'font-family="sans-serif"').encode(),
        ".png": svg_to_png(to_svg(chart)),
    }
    for ending, options in ((".svg", {}), (".png", {"scale_factor": 2})):
        chart.save(tmp_path / f"altair{ending}", **options)
        theirs = (tmp_path / f"altair{ending}").read_bytes()
        assert ours[ending] == (READ_OUT.sub("", theirs.decode()).encode() if ending == ".svg" else theirs), ending
    assert "aria-" not in to_svg(chart)
