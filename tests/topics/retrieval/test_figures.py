"""The figure of each data set, and escaped text on the page."""

from html_elements import adds_no_element
from topics.retrieval.stores import Copier, on_rows
from topics.retrieval.test_evaluation import FACTS, QUESTIONS, SMALL

from kleiber.evals.measure import to_json
from kleiber_topics.retrieval.evaluation import Retrieval
from kleiber_topics.retrieval.figures import LABELS, changes, page


def test_the_figures_and_the_page_show_what_was_retrieved():
    results = Retrieval(**SMALL, methods=["bm25"]).evaluate(on_rows(Copier(), QUESTIONS, ["a <i>7", *FACTS[1:]]))
    record = to_json(results)
    assert list(Retrieval().figures(record, None)) == ["retrieval_table"]
    html = Retrieval().page(record)
    assert "c 9" in html and "a &lt;i&gt;7" in html and "<i>" not in html


def test_a_line_for_each_method_over_the_sizes_of_the_store():
    score = {"value": -0.1, "lo": -0.2, "hi": 0.0, "n": 9}
    scores = {f"{method}/tokens{size}/difference": score for method in ("knn", "bm25") for size in (10, 100)}
    sizes = [{"asked": 10, "tokens": 12}, {"asked": 100, "tokens": 90}]
    chart = changes("text", {"loss": {"value": 2.0}, **scores}, sizes).to_dict()
    rows = next(rows for rows in chart["datasets"].values() if len(rows) == 6)
    lines = {(row["method"], row["tokens"]) for row in rows}
    assert lines == {
        (name, tokens) for name in ("without retrieval", "nearest neighbors", "BM25, in front") for tokens in (12, 90)
    }


def test_no_page_without_retrieved_text():
    assert page({"examples": {"text": []}}) == ""


def example_page(text: str) -> str:
    example = dict.fromkeys(("retrieved", "before", "target"), text)
    return page({"examples": {text: [{"method": next(iter(LABELS)), "nats": 1.0, "nats_with": 0.5, **example}]}})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(example_page)
