"""Learning-rate sensitivities that are known, runs that diverged, and attention logits from logged rows."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from fake_run import fake_run
from studies.panels import declared, draw_all, row, rows

from kleiber.records.catalog import read_runs
from kleiber_topics.stability.sensitivity import measures_of

RATES = (0.01, 0.1, 1.0)
UNIFORM = math.log(256)
LOSSES = {  # by arm and width: at each rate, of seed 0; None diverged
    ("plain", 32): (2.0, 3.0, None), ("plain", 64): (1.9, 4.0, 9.0),
    ("qk_norm", 32): (2.0, 2.1, 2.9), ("qk_norm", 64): (1.9, 2.0, 2.8),
}  # fmt: skip


def expected(losses) -> float:
    """The mean over rates of min(L, L0) - L*."""
    known = [min(UNIFORM, UNIFORM if loss is None else loss) for loss in losses]
    return sum(loss - min(known) for loss in known) / len(known)


@pytest.fixture
def runs(tmp_path):
    design = {"arms": {"plain": {"a": 1}, "qk_norm": {"a": 2}}}
    for (arm, width), losses in LOSSES.items():
        for lr, loss in zip(RATES, losses, strict=True):
            for seed in (0, 1, 2):
                config = {
                    "model": {"width": width}, "optimizer": {"lr": lr}, "seed": seed, "study": {"arm": arm},
                    "data": {"tokenizer": "bytes"}, "design": design,
                }  # fmt: skip
                stages = [] if loss is None else [{"metrics": {"val/docs/loss": loss + 0.1 * seed}, "lr": lr}]
                names = ("stability/attention_logit/0", "stability/attention_logit/1")
                logits = [{"step": step, names[0]: step * lr, names[1]: 5 * lr} for step in (1, 9)]
                status = {} if loss is not None else {"status": "diverged"}
                folder = tmp_path / f"{arm}{width}-{lr}-{seed}"
                fake_run(folder, stages, config=config, seed=seed, rows=logits, **status)
    return read_runs(tmp_path)


@pytest.mark.slow
def test_the_sensitivity_is_the_mean_excess_loss_and_divergence_counts_as_uniform_predictions(runs):
    findings = declared("stability").analyze(runs)
    for (arm, width), losses in LOSSES.items():
        place = {"arm": {"plain": "plain", "qk_norm": "QK-norm"}[arm], "width": width}
        values = {each["measure"]: each for each in rows(findings, "Learning-rate sensitivity", **place)}
        sensitivity = values["learning-rate sensitivity"]
        assert sensitivity["value"] == pytest.approx(expected(losses), abs=0.08)  # seeds shift what is not capped
        assert sensitivity["n"] == 3 and values["best learning rate"]["value"] == 0.01
        lost = {("plain", 32): 1 / 3, ("plain", 64): 1 / 3}.get((arm, width), 0)
        assert values["runs no better than uniform predictions"]["value"] == pytest.approx(lost)


@pytest.mark.slow
def test_arms_are_compared_with_the_plain_one_at_their_width_and_widths_with_the_narrowest(runs):
    findings = declared("stability").analyze(runs)
    differences = findings.tables["Difference in sensitivity"]
    assert [(each["arm"], each["width"]) for each in differences] == [("QK-norm", 32), ("QK-norm", 64)]
    assert all(each["hi"] < 0 for each in differences)
    wider = row(findings, "Sensitivity at the largest width minus that at the smallest", arm="QK-norm")
    assert wider["value"] == pytest.approx(expected(LOSSES["qk_norm", 64]) - expected(LOSSES["qk_norm", 32]), abs=0.01)


@pytest.mark.slow
def test_attention_logits_are_the_largest_logged_also_of_runs_that_diverged(runs):
    table = rows(declared("stability").analyze(runs), "Largest attention logit by learning rate", arm="plain", width=32)
    assert [each["learning rate"] for each in table] == [*RATES]
    assert [each["value"] for each in table] == pytest.approx([9 * rate for rate in RATES])


def test_an_arm_with_other_rates_is_refused(runs):
    part = [run for run in runs if not run.name.startswith("qk_norm64-0.1")]
    with pytest.raises(ValueError, match="qk_norm, width 64, has other rates"):
        declared("stability").analyze(part)


@pytest.mark.slow
def test_a_reference_whose_runs_all_diverged_is_replaced_by_no_other_arm(runs):
    lost = [
        replace(run, status="diverged", summary={**run.summary, "stages": []}) if "plain64" in run.name else run
        for run in runs
    ]
    findings = declared("stability").analyze(lost)
    (difference,) = findings.tables["Difference in sensitivity"]
    assert (difference["arm"], difference["width"]) == ("QK-norm", 32)
    assert not rows(findings, "Learning-rate sensitivity", arm="plain", width=64)


def test_seeds_are_kept_apart():
    losses = {(0.01, 0): 2.0, (0.01, 1): 2.2, (0.1, 0): 2.4, (0.1, 1): 2.2, (1.0, 0): 5.0, (1.0, 1): 3.2}
    table = [{"arm": "a", "width": 32, "rate": rate, "seed": seed, "value": loss}
             for (rate, seed), loss in losses.items()]  # fmt: skip
    by_seed = {each.get("seed"): each["value"] for each in measures_of(pd.DataFrame(table), 9.0)
               if each["measure"] == "sensitivity"}  # fmt: skip
    assert by_seed == pytest.approx({0: (0.4 + 3.0) / 3, 1: 1.0 / 3})


@pytest.mark.slow
def test_the_figures_have_a_panel_for_each_width(runs):
    charts = draw_all(declared("stability").analyze(runs))
    assert [*charts] == ["sensitivity", "loss", "logits"]
    for text in map(str, (charts["loss"], charts["logits"])):
        assert "width 32" in text and "width 64" in text and "learning rate" in text and "QK-norm" in text
