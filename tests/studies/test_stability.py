"""Learning-rate sensitivities that are known, runs that diverged, and attention logits from logged rows."""

import math
from dataclasses import replace

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.stability import Stability, sensitivities

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


def test_the_sensitivity_is_the_mean_excess_loss_and_divergence_counts_as_uniform_predictions(runs):
    findings = Stability().analyze(runs)
    rows = {(row["arm"], row["width"]): row for row in findings.tables["Learning-rate sensitivity"]}
    assert [*rows] == [*LOSSES]
    for place, losses in LOSSES.items():
        assert rows[place]["value"] == pytest.approx(expected(losses), abs=0.08)  # seeds shift what is not capped
        assert rows[place]["n"] == 3 and rows[place]["best lr"] == 0.01
    assert rows["plain", 32]["diverged or uniform"] == 3 and rows["qk_norm", 64]["diverged or uniform"] == 0


def test_arms_are_compared_with_the_first_at_their_width_and_widths_with_the_narrowest(runs):
    differences = Stability().analyze(runs).tables["Difference in sensitivity"]
    pairs = [(row["arm"], row["width"], row["against"], row["against width"]) for row in differences]
    assert pairs == [("plain", 64, "plain", 32), ("qk_norm", 32, "plain", 32), ("qk_norm", 64, "plain", 64)]
    assert differences[1]["value"] < 0 and differences[1]["hi"] < 0
    headline = Stability().analyze(runs).answer
    assert "sensitivity of QK-norm at width 64 less that of plain at width 64 is -" in headline


def test_attention_logits_are_the_largest_logged_also_of_runs_that_diverged(runs):
    table = Stability().analyze(runs).tables["Largest attention logit by learning rate"]
    row = next(row for row in table if (row["arm"], row["width"]) == ("plain", "32"))
    assert [row[f"lr {lr:g}"] for lr in RATES] == pytest.approx([9 * lr for lr in RATES])


def test_an_arm_with_other_rates_is_refused(runs):
    part = [run for run in runs if not run.name.startswith("qk_norm64-0.1")]
    with pytest.raises(ValueError, match="qk_norm, width 64, has other rates"):
        Stability().analyze(part)


def test_a_reference_whose_runs_all_diverged_is_replaced_by_no_other_arm(runs):
    lost = [
        replace(run, status="diverged", summary={**run.summary, "stages": []}) if "plain64" in run.name else run
        for run in runs
    ]
    findings = Stability().analyze(lost)
    pairs = [(row["arm"], row["width"], row["against"]) for row in findings.tables["Difference in sensitivity"]]
    assert pairs == [("qk_norm", 32, "plain")]
    (verdict,) = (entry for entry in findings.caveats if entry["code"] == "no_loss")
    assert "plain at width 64" in verdict["text"] and "9 of 9" in verdict["text"]
    assert findings.answer.startswith(verdict["text"])


def test_seeds_are_kept_apart():
    by_seed = sensitivities({0.01: {0: 2.0, 1: 2.2}, 0.1: {0: 2.4, 1: 2.2}, 1.0: {0: 5.0, 1: 3.2}})
    assert by_seed == pytest.approx({0: (0.4 + 3.0) / 3, 1: 1.0 / 3})


def test_the_figures_have_a_panel_for_each_width(runs):
    for chart in Stability().analyze(runs).figures.values():
        text = str(chart().to_dict())  # type: ignore[attr-defined]
        assert "width 32" in text and "width 64" in text and "learning rate" in text and "QK-norm" in text
