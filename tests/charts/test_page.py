"""Text of any kind stays text on a page, and cells are written as people read numbers."""

import json

import pandas as pd
import pytest
from html_elements import HOSTILE, elements, shown_text

pytest.importorskip("altair")

from kleiber.charts.page import Cell, Link, cell, page_table, render_page, with_code
from kleiber.charts.series import line_chart


def page_of(text: str) -> str:
    """A page with this text in every place that takes text from data."""
    means = pd.DataFrame(
        {"D": [1e6, 2e6], "arm": text, "mean": [3.0, 2.5], "lo": 2.4, "hi": 3.1, "half": 0.1, "seeds": 2}
    )
    chart = line_chart(means, "D", text, "arm", text, value=text, subtitle=text)
    rows = [{text: text, "number": 12_000.0}]
    return render_page(
        text, {"figure": chart}, answer=text, notes=[text, text], verdicts=[{"level": "warn", "text": text}],
        tables={text: rows, "empty": []}, text=text, methods=text, details={text: rows},
    )  # fmt: skip


@pytest.mark.slow
def test_hostile_text_adds_no_element_and_no_attribute_to_a_page():
    page = page_of(HOSTILE)
    assert elements(page) == elements(page_of("harmless")) and len(elements(page)) > 20
    assert shown_text(page).count(HOSTILE) == 14, "the text itself is shown unchanged"
    specs = page.split("const specs = ", 1)[1].split(";\nfor", 1)[0]
    title = json.loads(specs)["figure"]["title"]
    assert title["subtitle"] == HOSTILE and " ".join(title["text"]) == HOSTILE
    assert not set("<>&\u2028") & set(specs)


def test_the_cells_of_a_page_have_four_digits_and_unknown_values_are_empty():
    table = page_table([{"a": "<b>", "n": 12_000.0}, {"a": None, "m": True, "n": float("nan")}])
    assert table.columns == ["a", "n", "m"]
    assert table.cells == [[Cell("<b>"), Cell("12,000", True), Cell("")], [Cell(""), Cell(""), Cell("yes")]]
    values = (1_234_567, 0.123456, 1234.5, 3e12, float("inf"))
    assert [cell(value).text for value in values] == ["1,234,567", "0.1235", "1234", "3e+12", "inf"]


def test_what_stands_between_backticks_is_code_and_all_else_is_escaped():
    assert with_code("add <rates>: `lrs=[<1>]`") == "add &lt;rates&gt;: <code>lrs=[&lt;1&gt;]</code>"


def test_rows_of_sentences_and_of_links_are_shown_one_cell_below_the_other_on_a_narrow_page():
    sentence = "a lower loss, by more than the noise of seeds, at equal training tokens"
    assert page_table([{"decision": "supported", "result": sentence}]).is_list
    assert page_table([{"run": Link("run", "run.html"), "loss": 2.0}]).is_list
    assert not page_table([{"result": sentence, "loss": 2.0}]).is_list
    assert not page_table([{"decision": "supported"}]).is_list
