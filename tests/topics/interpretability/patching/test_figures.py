"""Streams and heads have a figure each."""

from kleiber_topics.interpretability.patching.evaluation import Patching
from kleiber_topics.interpretability.patching.figures import part_rows, stream_rows


def test_streams_and_heads_have_a_figure_each():
    value = {"value": 0.5, "lo": 0.4, "hi": 0.6, "n": 3}
    names = ["stream/layer0/offset0", "stream/layer1/end", "head/layer0/head1", "attention/layer0", "mlp/layer1"]
    scores = dict.fromkeys(names, value) | {"difference": value}
    assert [row["column"] for row in stream_rows(scores)] == ["0", "at the end"]
    assert {(row["layer"], row["column"]) for row in part_rows(scores)} == {
        ("block 1", "head 1"), ("block 1", "all heads"), ("block 2", "MLP"),
    }  # fmt: skip
    assert set(Patching().figures({"scores": {"rows": scores}}, None)) == {"positions_rows", "heads_rows"}
