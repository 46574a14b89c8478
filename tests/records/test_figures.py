"""A figure is written as SVG and PNG into the folder, and through no link."""

import altair as alt
import pandas as pd
import pytest

from kleiber.records.figures import write_figure
from kleiber.records.regular_files import DamagedFile


def test_a_figure_has_both_formats_and_no_way_out_of_its_folder(tmp_path):
    chart = alt.Chart(pd.DataFrame({"x": [1.0]})).mark_point().encode(x="x:Q")
    write_figure(chart, tmp_path, "one")
    assert (tmp_path / "one.svg").read_text().lstrip().startswith("<svg")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises((DamagedFile, ValueError)):
        write_figure(chart, tmp_path, "../two")
    assert not (tmp_path.parent / "two.svg").exists()
