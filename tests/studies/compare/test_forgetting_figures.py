"""Figures of arms that fine-tune common bases: what they show and leave out, and what they say of it."""

import json

import pandas as pd
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.compare import forgetting_figures as forms
from kleiber.studies.compare.rows import CELL
from kleiber.studies.forgetting import Forgetting

from .. import adapter_runs, mixture_runs
from ..comparisons import write_study


@pytest.mark.slow
def test_the_figures_of_a_comparison_show_every_method(tmp_path):
    write_study(tmp_path, seeds=2)
    figures = Forgetting().analyze(read_runs(tmp_path)).figures
    assert set(figures) == {"pareto", "matched", "differences", "trajectory", "tuning", "matrix"}
    for name, draw in figures.items():
        arms = {"replay", "L2-SP"} if name == "differences" else {"plain fine-tuning", "replay", "L2-SP"}
        assert arms <= set(json.dumps(draw().to_dict()).split('"')), name


def test_the_losses_of_tasks_are_named_by_their_texts(tmp_path):
    write_study(tmp_path, seeds=2)
    record = Forgetting().compare(read_runs(tmp_path))
    texts = {"code": "domains (code)"}
    chart = forms.task_losses(record["rows"], record["chosen"][CELL], record["order"], texts, record["new"], "note")
    (cells,) = chart.to_dict()["datasets"].values()
    assert {cell["task"] for cell in cells} == {"old text: docs", "new text: domains (code)"}
    assert cells[0]["arm"] == "before"
    losses = [cell["value"] for cell in cells if cell["task"].startswith("old") and cell["arm"] != "before"]
    assert losses == sorted(losses), "arms are sorted by the losses of the old text"


def test_figures_say_which_arms_never_reach_the_target_loss_and_where_they_are_shown():
    note = forms.chosen_note("plain fine-tuning", 2.678, 0.02, ["LoRA", "EWC"])
    assert "target loss 2.68; LoRA and EWC never do: at the lowest loss" in note
    assert forms.never([]) == [] and forms.never(["EWC"]) == ["not shown: EWC, never at the target loss"]
    pairs = forms.chosen_note("full fine-tuning", None, 0.005, [])
    assert "weaker of it and full fine-tuning, plus 0.5%" in pairs and "never" not in pairs


def test_ranks_have_colors_from_dark_to_light_and_the_reference_is_black():
    colors = forms.arm_colors(["full", "rank 1", "rank 16"])
    assert [*colors] == ["full fine-tuning", "LoRA, rank 1", "LoRA, rank 16"]
    assert colors["full fine-tuning"] == "#000000" and len(set(colors.values())) == 3


@pytest.mark.parametrize("kind", [adapter_runs, pytest.param(mixture_runs, marks=pytest.mark.slow)])
def test_figures_name_every_arm_by_its_label(kind, tmp_path):
    (adapter_runs.adapter_runs if kind is adapter_runs else kind.write_study)(tmp_path)
    built = {
        name: json.dumps(make().to_dict())
        for name, make in Forgetting(**kind.OPTIONS).analyze(read_runs(tmp_path)).figures.items()
    }
    moe = kind is mixture_runs
    assert set(built) == {"pareto", "differences", "tuning", "matrix"} | (
        {"matched", "trajectory", "loads"} if moe else set()
    )
    for name, drawn in built.items():
        assert ("mixture of experts, router frozen" if moe else "rank 16") in drawn, name
    assert "layer 1" in built.get("loads", "layer 1")


def test_settings_far_beyond_the_frontiers_are_counted_and_not_drawn():
    rows = [("full", 1.0, 0.2, True), ("full", 1.2, 0.1, True), ("rank 1", 1.3, 0.1, True), ("rank 1", 3.0, 2.0, False)]
    points = pd.DataFrame(rows, columns=["method", "target", "F", "best"]).assign(F_sd=0.01, lr=0.1, n=3, setting="")
    drawn = forms.frontier(points, ["full", "rank 1"]).to_dict()
    assert "outside the axes: 1 of LoRA, rank 1" in str(drawn["title"]["subtitle"])
    assert "all 1 of LoRA" in str(forms.outside(pd.Series(["LoRA", "full"]), pd.Series([False, True])))
    assert max(row["target"] for table in drawn["datasets"].values() for row in table if "target" in row) == 1.3
    assert "target loss 1.1" in str(forms.frontier(points, ["full", "rank 1"], 1.1).to_dict()["title"]["subtitle"])
    near = forms.frontier(points, ["rank 1", "full"], 1.0).to_dict()
    assert '"domain": ["full fine-tuning"], "range": ["square"]' in json.dumps(near), (
        "a method outside has no entry, and its symbol"
    )


def test_every_setting_inside_the_axes_is_drawn():
    rows = [("full", 1.0, 0.2, True), ("full", 1.06, 0.1, True), ("rank 1", 1.062, 0.15, False)]
    points = pd.DataFrame(rows, columns=["method", "target", "F", "best"]).assign(F_sd=0.0, lr=0.1, n=3, setting="")
    drawn = forms.frontier(points, ["full", "rank 1"], 1.0).to_dict()  # settings up to 1.06 are near
    assert "outside the axes" not in str(drawn["title"]["subtitle"])
    assert 1.062 in {row.get("target") for table in drawn["datasets"].values() for row in table}
