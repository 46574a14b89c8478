"""The study `tasks`: claims about what prefix attention and pre-training add to chrF."""

from __future__ import annotations

from studies.panels import claim, declared, plant, row

from kleiber.records.catalog import read_runs

CHRF = {  # of the arms, planted
    "prefix": 34, "scratch_100": 30, "pretrained_100": 30, "scratch_10": 20, "pretrained_10": 26, "scratch_1": 12,
    "pretrained_1": 20,
}  # fmt: skip


def analyzed(folder, **rates: float):
    for arm, chrf in CHRF.items():
        for seed in range(3):
            value = chrf + 0.5 * (seed - 1) * (-1 if arm == "scratch_100" else 1)
            metrics = {
                "val/multi30k/loss": 6 - chrf / 10, "eval/generation/multi30k/chrf": value,
                "eval/generation/multi30k/bleu": value / 3, "eval/generation/multi30k/neighbor/chrf": 32.0,
            }  # fmt: skip
            plant(folder, arm, metrics, seed, arm=arm, stage={"tokens": 1e5}, optimizer={"lr": rates.get(arm, 0.01)})
    return declared("tasks").analyze(read_runs(folder))


def test_gains_are_decided_for_prefix_attention_and_for_each_share_of_the_pairs(tmp_path):
    findings = analyzed(tmp_path)
    decisions = {
        arm: claim(findings, "chrf", {"arm": against}, arm=arm).decision
        for arm, against in (
            ("prefix", "scratch_100"), ("pretrained_1", "scratch_1"), ("pretrained_10", "scratch_10"),
            ("pretrained_100", "scratch_100"),
        )
    }  # fmt: skip
    assert decisions == {
        "prefix": "supported", "pretrained_1": "supported", "pretrained_10": "supported", "pretrained_100": "undecided"
    }  # fmt: skip
    assert row(findings, "Scores", arm="pre-trained with 1% of the pairs", measure="chrF")["value"] == 20
    assert row(findings, "Scores", arm="from scratch", measure="BLEU")["value"] == 10
    assert {*findings.figures} == {"metrics", "gains"}


def test_arms_at_different_rates_decide_nothing(tmp_path):
    findings = analyzed(tmp_path, prefix=0.02)
    assert claim(findings, "chrf", {"arm": "scratch_100"}, arm="prefix").decision == "not tested"
    assert claim(findings, "chrf", {"arm": "scratch_1"}, arm="pretrained_1").decision == "supported"
