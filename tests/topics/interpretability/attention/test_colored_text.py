"""Colored text is escaped, and its colors are the layer and the probability."""

import re

import pytest
from html_elements import adds_no_element

from kleiber_topics.interpretability.attention.colored_text import colored_pages, colored_text, deciding_layer, span

LENS = {
    "loss": [3.0, 2.0, 1.0],
    "tokens": ["<b>", "&", "\n"],
    "probability": [[0.0, 0.1, 0.2], [0.5, 0.1, 0.2], [1.0, 0.1, 0.9]],
    "best": [["x", "x", "x"], ["<b>", "x", "x"], ["<b>", "x", "\n"]],
}


def shades(html: str) -> list[float]:
    return [float(share) for share in re.findall(r"rgba\(0, 114, 178, ([\d.]+)\)", html)]


def test_hostile_tokens_are_escaped():
    html = colored_pages({'<script>"': LENS})
    assert "<b>" not in html and "<script>" not in html and html.count("&lt;b&gt;") > 3


def test_the_color_is_the_deciding_layer_and_the_probability():
    html = colored_text("docs", **LENS)
    text, folded = html.split("<details>")
    assert shades(text.partition('<div class="lens">')[2]) == pytest.approx([0.55 * 2 / 3, 0.0, 0.55 / 3], abs=0.01)
    by_layer = [shades(part) for part in folded.split('<div class="lens-layer">')[1:]]
    expected = [[0.55 * p for p in layer] for layer in LENS["probability"]]
    assert by_layer == [pytest.approx(layer, abs=0.006) for layer in expected]
    assert "After block 2, loss 1.000 nats per token" in folded


@pytest.mark.parametrize(("best", "layer"), [("aaa", 0), ("xaa", 1), ("axa", 2), ("aax", None)])
def test_a_layer_decides_if_no_later_one_disagrees(best, layer):
    assert deciding_layer("a", list(best)) == layer


def test_line_breaks_are_shown_and_kept():
    assert "⏎\n" in span("\n", 0.5, "")


def test_no_text_no_page():
    assert colored_pages({}) == colored_pages({"docs": {**LENS, "tokens": []}}) == ""


def lens_page(text: str) -> str:
    lens = {"tokens": [text], "probability": [[0.5], [0.5]], "best": [[text], [text]], "loss": [1.0, 1.0]}
    return colored_pages({text: lens})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(lens_page)
