"""Names of arms and measures as figures show them."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.labels import arm_labels, axis_label, label_of, text_labels, unit_of
from kleiber.types.score import Score


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
    ("measure", "axis"),
    [
        (Score(0.1, label="loss", unit="nats per token"), "validation loss (nats per token)"),
        (Score(0.1, label="accuracy on SST-2"), "accuracy on SST-2"),
        (Score(0.1, label="bits per byte on docs", unit="bits per byte"), "bits per byte on docs"),
        (Score(0.1, label="loss on docs", unit="nats per token"), "loss on docs (nats per token)"),
    ],
)
def test_an_axis_has_the_unit_of_a_measure_where_its_label_has_not(measure, axis):
    assert axis_label(measure) == axis and (label_of(measure), unit_of(measure)) == (measure.label, measure.unit)
