"""Figures and pages are written whole, inside their folder, whatever their texts and names are."""

import pytest

pytest.importorskip("altair")

import altair
import pandas as pd

from kleiber.records.figures import write_figure, write_page
from kleiber.records.regular_files import DamagedFile


def chart(text: str) -> altair.Chart:
    return altair.Chart(pd.DataFrame({"x": [text], "y": [1.0]}), title=text).mark_bar().encode(x="x:N", y="y:Q")


def test_a_figure_is_a_vector_and_a_picture(tmp_path):
    write_figure(chart("loss"), tmp_path, "loss.v2")
    assert (tmp_path / "loss.v2.svg").read_text().startswith("<svg") and "loss" in (
        tmp_path / "loss.v2.svg"
    ).read_text()
    assert (tmp_path / "loss.v2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["\x00\x1b[31m\x9b", "\uffff", "</svg><script>alert(1)</script>", "\u202e"])
def test_a_text_that_xml_does_not_have_is_drawn(tmp_path, text):
    write_figure(chart(text), tmp_path, "figure")
    svg = (tmp_path / "figure.svg").read_text()
    assert "<script" not in svg and "\x1b" not in svg and svg.rstrip().endswith("</svg>")


@pytest.mark.parametrize("name", ["../figure", "/figure", "a/../../figure"])
def test_no_name_of_a_figure_leads_out_of_its_folder(tmp_path, name):
    (tmp_path / "figures").mkdir()
    with pytest.raises(DamagedFile):
        write_figure(chart("loss"), tmp_path / "figures", name)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_a_page_makes_its_folder_and_follows_no_link(tmp_path):
    (tmp_path / "thesis.txt").write_text("my thesis")
    write_page(tmp_path / "a/b/page.html", "<html>é")
    assert (tmp_path / "a/b/page.html").read_text(encoding="utf-8") == "<html>é"
    (tmp_path / "page.html").symlink_to("thesis.txt")
    write_page(tmp_path / "page.html", "<html>")
    assert (tmp_path / "thesis.txt").read_text() == "my thesis"
