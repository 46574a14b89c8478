"""Names of arms and measures as figures show them."""

import pytest

from kleiber.studies.compare.labels import axis_label, label_of, readable, unit_of
from kleiber.studies.compare.tables import metric_of


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_qk_norm", "no QK norm"), ("moe", "mixture of experts"), ("dense_total", "dense total"), ("mcc",
        "Matthews correlation"), ("lstm_8", "LSTM 8"), ("plain", "plain"), ("full", "full"), ("width 64", "width 64"),
    ],
)  # fmt: skip
def test_names_have_spaces_and_known_terms_and_others_stay(name, text):
    assert readable(name) == text


@pytest.mark.parametrize(
    ("measure", "label", "axis", "unit"),
    [
        ("val/sst2/accuracy", "accuracy (sst2)", "accuracy on sst2", "accuracy"),
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
