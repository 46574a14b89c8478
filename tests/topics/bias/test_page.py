"""The figure marks biased groups, and texts of a data set are escaped."""

import numpy as np
import pytest
from html_elements import adds_no_element

from kleiber.types import Json
from kleiber_topics.bias.evaluation import score_items
from kleiber_topics.bias.items import Item
from kleiber_topics.bias.page import figures, groups_html


def results(*types: str) -> Json:
    items = [Item("a", "b", None, bias_type) for bias_type in types for _ in range(20)]
    by_item = np.array([[1.0 if item.bias_type == types[0] else i % 2, 0.5] for i, item in enumerate(items)])
    scores, groups = score_items(items, by_item, 0.1)
    named = {name: score.to_json() for name, score in scores.items()}
    return {"scores": {"d/e": named}, "details": {"fdr": 0.1, "groups": {"d/e": groups}}}


def test_the_figure_has_all_groups_and_fills_the_biased_ones():
    (name, chart), *rest = figures(results("age", "race")).items()
    assert name == "bias_d_e" and not rest
    drawn = next(rows for rows in chart.to_dict()["datasets"].values() if len(rows) > 1)
    assert [(row["label"], bool(row["biased"])) for row in drawn] == [
        ("all groups (40)", False), ("age (20)", True), ("race (20)", False),
    ]  # fmt: skip


@pytest.mark.slow
def test_subsets_are_shown_without_a_test():
    items = [Item("a", "b", None, "gender", subset="xy"[i % 2]) for i in range(20)]
    scores, groups = score_items(items, np.array([[i % 2, 0.5] for i in range(20)]), 0.1)
    named = {name: score.to_json() for name, score in scores.items()}
    case = {"scores": {"d": named}, "details": {"fdr": 0.1, "groups": {"d": groups}}}
    drawn = next(rows for rows in figures(case)["bias_d"].to_dict()["datasets"].values() if len(rows) > 1)
    assert "subsets, which are not tested" in str(figures(case)["bias_d"].to_dict()["title"])
    assert "subsets" not in str(figures(results("age"))["bias_d_e"].to_dict()["title"])
    assert [row["label"] for row in drawn] == ["all groups (20)", "gender (20)", "x (10)", "y (10)"]
    assert "<td>y</td><td>10</td><td>1.000 [0.741, 1.000]</td><td></td><td></td><td></td>" in groups_html(case)


def test_the_table_escapes_names_and_has_both_values():
    html = groups_html(results("<script>", "race"))
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "<td>1.9e-06</td><td>3.8e-06</td><td>yes</td>" in html


def groups(text: str) -> str:
    group = {"bias_type": text, "n": 9, "value": 0.5, "lo": 0.4, "hi": 0.6, "p": 0.1, "q": 0.1, "biased": True}
    return groups_html({"details": {"fdr": 0.1, "groups": {text: [group]}}})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(groups)
