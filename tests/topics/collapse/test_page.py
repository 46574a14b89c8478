"""The figure has a panel for each metric, and the page marks repeats and escapes text."""

import re

import pytest
from html_elements import adds_no_element

from kleiber_topics.collapse.evaluation import Degeneration
from kleiber_topics.collapse.page import TITLES, figures, sample_html, samples_html


def results(*names: str) -> dict:
    score = {"value": 0.5, "lo": 0.4, "hi": 0.6, "n": 10}
    scores = {f"{kind}/{metric}": score for kind in ("greedy", "sampled", "human") for metric in TITLES}
    pieces = [["<script>", False], ["a b c d", True]]
    samples = {"greedy": [{"prompt": "5 > 4", "pieces": pieces}], "sampled": [], "human": []}
    return {
        "scores": dict.fromkeys(names, scores),
        "details": {"unit": "word", "samples": dict.fromkeys(names, samples)},
    }


@pytest.mark.slow
def test_a_figure_for_each_data_set_with_a_panel_for_each_metric():
    charts = figures(results("builtin/docs", "code"))
    assert list(charts) == ["degeneration_builtin_docs", "degeneration_code"]
    chart = charts["degeneration_builtin_docs"].to_dict()
    assert len(chart["concat"]) == len(TITLES) and "builtin/docs" in chart["title"]["text"]
    titles = [panel["title"]["text"] for panel in chart["concat"]]
    assert "longest repeated span (words)" in titles and not any("_" in title for title in titles)
    assert list(Degeneration().figures(results("docs"), None)) == ["degeneration_docs"]


@pytest.mark.slow
def test_a_metric_that_only_some_texts_have_is_drawn_for_those():
    record = results("docs")
    scores = {name: score for name, score in record["scores"]["docs"].items() if name != "greedy/rep_2"}
    charts = figures({**record, "scores": {"docs": {k: v for k, v in scores.items() if not k.endswith("mauve")}}})
    assert len(charts["degeneration_docs"].to_dict()["concat"]) == len(TITLES) - 1


def test_repeats_are_marked_and_every_text_is_escaped():
    html = samples_html(results("a<b")["details"])
    assert "<script>" not in html and "&lt;script&gt;" in html and "5 &gt; 4" in html and "a&lt;b" in html
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", html) == ["a b c d"]
    assert html.count("<h3>") == 1, "kinds without samples have no heading"
    assert Degeneration().page(results("docs")) == samples_html(results("docs")["details"])
    assert "<mark" not in sample_html("x", [("y", False)])


def sample_page(text: str) -> str:
    samples = [{"prompt": text, "pieces": [[text, False], [text, True]]}]
    return samples_html({"samples": {text: {"greedy": samples}}})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(sample_page)
