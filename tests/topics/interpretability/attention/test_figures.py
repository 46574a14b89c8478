"""A figure for each metric that was measured, with every head in it."""

from kleiber_topics.interpretability.attention.figures import figures, head_rows

HEADS = {
    "docs": {"sink": {"0": [0.1, 0.2], "1": [0.3, 0.9]}, "max_logit": {"0": [1.0, 2.0], "1": [3.0, 40.0]}},
    "repeated_tokens": {"induction": {"0": [0.1, 0.2], "1": [0.3, 0.9]}},
}


def test_heads_are_rows():
    rows = head_rows(HEADS, "max_logit")
    assert rows.loc[rows["value"].idxmax()].to_dict() == {"data": "docs", "layer": 1, "head": 1, "value": 40.0}
    assert len(rows) == 4 and not len(head_rows(HEADS, "entropy"))


def test_each_measured_metric_has_a_figure():
    charts = figures({"details": {"heads": HEADS, "lens": {"docs": {"loss": [3.0, 2.0, 1.5]}}}})
    assert list(charts) == ["max_logit", "sink", "induction", "logit_lens"]
    specs = {name: chart.to_dict() for name, chart in charts.items()}
    color = specs["sink"]["spec"]["layer"][0]["encoding"]["color"]
    assert color["scale"]["domain"] == [0, 1.0] and specs["sink"]["title"].endswith("by layer and head")
    assert "'embedding'" in str(specs["logit_lens"])
    assert list(figures({"details": {"heads": HEADS, "lens": {}}})) == ["max_logit", "sink", "induction"]
