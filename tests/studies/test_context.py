"""The declaration of the study of contexts: what a longer one changes, by attention, data and position."""

import numpy as np
import pytest

from kleiber.records.catalog import read_runs

from .ablation_runs import copied
from .panels import declared, draw_all, plant, row, rows

KINDS = {"FullAttention": -0.1, "WindowAttention": -0.04, "NoMixing": 0.0}
CHANGE, LOSSES = "Loss at the longest context minus that at the shortest", "Loss by context"
PLACES = "Loss by position at the longest context"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    for kind, slope in KINDS.items():
        for context in (32, 128, 512):
            for seed in range(2):
                loss = 2.0 + slope * np.log2(context / 32) + 0.001 * seed
                metrics = {"val/builtin/docs/loss": loss, "val/recall/loss": loss - 1.0}
                metrics |= {f"eval/perplexity/builtin/docs/position/{at}": loss + 1 / at for at in (32, context)}
                model = {"context": context, "attention": {"_target_": f"kleiber.nn.{kind}"}}
                plant(folder, f"{kind}{context}", metrics, seed, model=model)
    return read_runs(folder)


@pytest.mark.slow
def test_each_attention_changes_the_loss_by_what_was_planted(runs):
    findings = declared("context").analyze(runs)
    for attention, value in (("full attention", -0.4), ("a window", -0.16), ("no attention", 0.0)):
        change = row(findings, CHANGE, attention=attention, data="builtin/docs")
        assert change["value"] == pytest.approx(value) and change["n"] == 2
    assert row(findings, CHANGE, attention="a window", data="associative recall")["value"] == pytest.approx(-0.16)
    assert "-0.4" in findings.answer and findings.claims == []


def test_losses_are_by_context_data_and_position(runs):
    findings = declared("context").analyze(runs)
    assert len(findings.tables[LOSSES]) == 2 * 3 * 3
    places = rows(findings, PLACES, attention="full attention")
    assert [each["position of the target (up to)"] for each in places] == [32, 512]
    assert {each["data"] for each in findings.tables[PLACES]} == {"builtin/docs"}


@pytest.mark.slow
def test_figures_have_a_panel_for_each_data_set_and_a_line_for_each_attention(runs):
    charts = draw_all(declared("context").analyze(runs))
    assert list(charts) == ["context", "position"]
    assert {panel["title"] for panel in charts["context"]["concat"]} == {"builtin/docs", "associative recall"}
    short = [run for run in runs if run.config["model"]["context"] == 32]
    assert list(declared("context").analyze(short).figures) == [], "one context and one position are no trend"


@pytest.mark.parametrize("change", [{"budget": {"tokens": "2M"}}, {"optimizer": {"lr": 0.5}}])
def test_two_runs_of_a_context_and_seed_are_refused(runs, change):
    with pytest.raises(ValueError, match=r"tokens|lr"):
        declared("context").analyze([*runs, copied(runs[0], "twin", **change)])
