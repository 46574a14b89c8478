"""A figure is written as SVG and PNG into the folder, and through no link."""

import altair as alt
import pandas as pd
import pytest

from kleiber.records.figures import write_figure
from kleiber.records.regular_files import DamagedFile


@pytest.mark.slow
def test_a_figure_has_both_formats_and_no_way_out_of_its_folder(tmp_path):
    chart = alt.Chart(pd.DataFrame({"x": [1.0]})).mark_point().encode(x="x:Q")
    write_figure(chart, tmp_path, "one")
    assert (tmp_path / "one.svg").read_text().lstrip().startswith("<svg")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises((DamagedFile, ValueError)):
        write_figure(chart, tmp_path, "../two")
    assert not (tmp_path.parent / "two.svg").exists()


@pytest.mark.parametrize("text", ["\x00\x1b[31m\x9b", "\uffff", "</svg><script>alert(1)</script>", "\u202e"])
def test_a_text_that_xml_does_not_have_is_drawn(tmp_path, text):
    bars = alt.Chart(pd.DataFrame({"x": [text], "y": [1.0]}), title=text).mark_bar().encode(x="x:N", y="y:Q")
    write_figure(bars, tmp_path, "figure")
    svg = (tmp_path / "figure.svg").read_text()
    assert "<script" not in svg and "\x1b" not in svg and svg.rstrip().endswith("</svg>")
