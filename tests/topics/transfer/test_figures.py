"""The figures of the transfer study."""

import json
import math

import pandas as pd
import pytest

from kleiber_topics.transfer.figures import bounded, cell_text, constant_note, largest_texts, metric_note
from kleiber_topics.transfer.transfer import Transfer

from .transfer_runs import paired_runs


@pytest.mark.slow
def test_every_figure_is_drawn(tmp_path):
    pytest.importorskip("altair")
    level = 0.8
    built = Transfer(level=level).analyze(paired_runs(tmp_path)).figures
    assert list(built) == ["gaps", "texts", "labels", "transferred"]
    drawn = {name: json.dumps(make().to_dict()) for name, make in built.items()}
    assert all(f"bars: {level:.0%} intervals" in drawn[name] for name in ("gaps", "transferred"))
    assert "toy, masked" in drawn["texts"] and all("toy" in text for text in drawn.values())
    assert '"from scratch"' not in drawn["texts"], "its line is labelled beside the panel and not in the legend"
    assert "arrow up: at least" in drawn["transferred"] and "1M bytes" in drawn["gaps"]


def test_an_undecided_gain_is_in_parentheses():
    assert cell_text({"value": 1e-5, "lo": -0.1, "hi": 0.1}) == "(0.000)"
    assert cell_text({"value": 0.1, "lo": 0.05, "hi": 0.15}) == "+0.100"
    assert cell_text({"value": -0.1, "lo": -0.15, "hi": -0.05}) == "\N{MINUS SIGN}0.100"
    assert cell_text({"value": 0.1, "lo": -0.05, "hi": 0.25}) == "(+0.100)"
    assert cell_text({"value": 0.1, "lo": None, "hi": None}) == "(+0.100)", "without an interval nothing is decided"


def test_effective_data_stays_on_the_learning_curve_of_the_control_and_a_bound_has_no_interval():
    row = {"least": 0.1, "most": 10.0}
    above = bounded({**row, "factor": float("inf"), "lo": 2.0, "hi": float("inf")})
    assert (above["value"], above["bound"]) == (10.0, "at least") and above["tip"] > 10.0
    below = bounded({**row, "factor": 0.0, "lo": 0.0, "hi": 0.5})
    assert (below["value"], below["bound"]) == (0.1, "at most") and below["tip"] < 0.1
    assert all(math.isnan(each[end]) for each in (above, below) for end in ("lo", "hi"))
    estimate = bounded({**row, "factor": 3.0, "lo": None, "hi": 20.0})
    assert (estimate["lo"], estimate["hi"]) == (3.0, 10.0) and math.isnan(estimate["tip"])


def test_a_note_names_the_metric_of_each_task_and_why_a_correlation_is_0():
    rows = pd.DataFrame(
        {"task": ["sst2", "trec", "cola"], "metric": ["accuracy", "accuracy", "mcc"], "score": [0.5, 0.5, 0.0]}
    )
    assert metric_note(rows) == "score: accuracy, CoLA Matthews correlation"
    assert "one class" in constant_note(rows) and constant_note(rows.assign(score=0.1)) == ""


def test_the_largest_text_of_each_domain_stands_for_it():
    starts = [{"start": name} for name in ("docs/1M", "docs/250k", "code/250k")]
    assert [row["start"] for row in largest_texts(starts)] == ["docs/1M", "code/250k"]
