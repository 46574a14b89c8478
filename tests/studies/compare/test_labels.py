"""Names of arms and measures as figures show them."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.labels import arm_labels, axis_label, label_of, readable, text_labels, unit_of
from kleiber.studies.compare.tables import metric_of


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_qk_norm", "no QK norm"), ("moe", "mixture of experts"), ("dense_total", "dense total"), ("mcc",
        "Matthews correlation"), ("lstm_8", "LSTM 8"), ("plain", "plain"), ("full", "full"), ("width 64", "width 64"),
        ("boolq", "BoolQ"), ("ag_news", "AG News"),
    ],
)  # fmt: skip
def test_names_have_spaces_and_known_terms_and_others_stay(name, text):
    assert readable(name) == text


def runs(folder, configs):
    for place, config in enumerate(configs):
        fake_run(folder / str(place), [{"name": "main", "tasks": ["domains"]}], config={"seed": 0, **config})
    return read_runs(folder)


def labels(folder, widths):
    """The labels of arms by their widths."""
    nodes = [{"study": {"arm": arm}, "model": {"width": width}} for arm, each in widths.items() for width in each]
    return arm_labels(runs(folder, nodes), lambda run: run.config["study"]["arm"])


def test_arms_are_called_by_their_width_where_a_name_ends_in_it(tmp_path):
    names = {"moe": [64], "moe_96": [96], "sizes": [32, 64], "lstm_8": [64]}
    assert labels(tmp_path / "some", names) == {
        "moe": "mixture of experts, width 64", "moe_96": "mixture of experts, width 96", "sizes": "sizes",
        "lstm_8": "LSTM 8, width 64",
    }  # fmt: skip
    assert labels(tmp_path / "none", {"moe": [64], "lstm_8": [64]}) == {"moe": "mixture of experts", "lstm_8": "LSTM 8"}


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([{"path": "domains", "config": "law"}] * 2, {"domains": "domains (law)"}),
        ([{"path": "domains", "config": "law"}, {"path": "domains", "config": "code"}], {}),
        ([{"path": "aps/glue", "config": "cola", "name": "cola"}, {"path": "text.txt", "config": None}], {}),
    ],
)
def test_texts_are_called_by_the_config_that_chooses_them(tmp_path, nodes, named):
    assert text_labels(runs(tmp_path, [{"data": node} for node in nodes])) == named


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        ("val/digits4/loss", "loss on sums of 4 digits (nats)"),
        ("eval/needle/recall/length96/accuracy", "accuracy on needle recall length 96"),
        ("val/sst2/accuracy", "accuracy on SST-2"),
    ],
)
def test_axes_name_measures_in_words(measure, text):
    assert axis_label(measure) == text


@pytest.mark.parametrize(
    ("measure", "label", "axis", "unit"),
    [
        ("val/sst2/accuracy", "accuracy (sst2)", "accuracy on SST-2", "accuracy"),
        ("latency/decode_p50_ms/1", "decode_p50_ms (latency, 1)", "decode p50 ms on latency, 1", "decode_p50_ms"),
        ("val/docs/loss/64", "loss (docs, 64)", "loss on docs, 64 (nats)", "nats"),
        ("eval/bias/docs/gap/female", "gap (bias/docs, female)", "gap on bias docs, female", "gap"),
        ("drift/docs/novel/0", "novel (drift/docs, 0)", "novel on drift docs, 0", "novel"),
        ("eval/x/docs/mine", "mine (x/docs)", "mine on x docs", "mine"),
    ],
)  # fmt: skip
def test_a_label_tells_the_metric_its_place_and_the_number_or_group_after_it(measure, label, axis, unit):
    assert (label_of(measure), axis_label(measure), unit_of(measure)) == (label, axis, unit)
    assert metric_of(measure) == unit.replace("_", " ").replace("nats", "loss")
