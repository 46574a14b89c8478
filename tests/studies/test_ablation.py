"""An ablation: planted gaps, crossings and gains are recovered, and equal arms are rarely told apart."""

import math

import numpy as np
import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.ablation import Ablation, Ladder, compute_gain, crossings, predict, read_ladder, sign

LRS = [0.005, 0.01, 0.02, 0.04, 0.08]
TOKENS = (1e6, 4e6)


def write(folder, gap=lambda x: -0.02, seeds=3, best=0.02, status="finished"):
    """Two arms at three widths and two lengths: the log loss falls by .05 a decade; x is 0 at the largest."""
    rng = np.random.default_rng(0)
    largest = 6 * 128**2 * TOKENS[-1]
    shared = rng.normal(size=seeds) * 0.01
    for arm in ("plain", "qk_norm"):
        for width in (32, 64, 128):
            for seed in range(seeds):
                for lr in LRS:
                    stages = []
                    for tokens in TOKENS:
                        flops = 6 * width**2 * tokens
                        x = math.log10(flops / largest)
                        loss = math.log(1.5) - 0.05 * x + 0.01 * math.log2(lr / best) ** 2 + shared[seed]
                        loss += (gap(x) if arm == "qk_norm" else 0.0) + 3e-4 * rng.normal()
                        metrics = {"val/docs/loss": math.exp(loss)}
                        stages.append({"name": f"{tokens:g}", "parent": "trunk", "tokens": tokens, "lr": lr,
                                       "flops": {"model": float(flops)}, "metrics": metrics})  # fmt: skip
                    config = {"seed": seed, "model": {"width": width}, "optimizer": {"lr": lr}, "study": {"arm": arm},
                              "design": {"arms": {"plain": {}, "qk_norm": {}}}}  # fmt: skip
                    home = folder / f"{arm}-{width}-{seed}-{lr}"
                    fake_run(home, [{"name": "trunk"}, *stages], config=config, seed=seed, status=status)
    return read_runs(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ablation"), gap=lambda x: -0.02 + 0.005 * x)


def test_a_planted_gap_is_predicted_and_its_claim_supported(runs):
    found = Ablation().analyze(runs)
    rows = {row["times the largest run"]: row for row in found.tables["Predicted gap"]}
    assert rows[10.0]["gap"] == pytest.approx(-0.015, abs=0.003) and rows[1.0]["gap"] == pytest.approx(-0.02, abs=0.002)
    assert list(rows) == [1.0, 2.0, 5.0, 10.0] and {row["sign"] for row in rows.values()} == {"better"}
    assert found.comparison is not None and found.comparison["decision"] == "supported"
    assert len(found.tables["Gap by scale"]) == 6 and "supported" in found.headline
    ladder = read_ladder(runs, "plain", "qk_norm")
    gain = compute_gain(ladder, 0.9)
    assert gain.value == pytest.approx(10 ** (0.02 / 0.05), rel=0.1) and gain.lo < gain.value < gain.hi
    assert found.figures["gap"]().to_dict()["title"]


def test_a_gap_that_changes_its_sign_has_its_crossing_in_the_interval(tmp_path):
    runs = write(tmp_path, gap=lambda x: 0.01 * (x - math.log10(3)))
    at, low, high = crossings(read_ladder(runs, "plain", "qk_norm"), 0.9)
    assert at == pytest.approx(3, rel=0.3) and low is not None and low < at and (high is None or high > at)
    found = Ablation(target=100.0).analyze(runs)
    assert found.comparison["decision"] == "contradicted" and found.tables["Predicted gap"][0]["sign"] == "better"


def test_rates_at_the_edge_and_unfinished_runs_are_not_tested(tmp_path):
    found = Ablation().analyze(write(tmp_path, best=0.2))
    assert found.comparison["decision"] == "not tested" and "untuned" in {row["code"] for row in found.verdicts}


def test_other_than_two_arms_and_a_single_scale_are_refused(runs):
    with pytest.raises(ValueError, match="scales"):
        read_ladder([run for run in runs if run.config["model"]["width"] == 32], "plain", "qk_norm")
    with pytest.raises(ValueError, match="two arms"):
        Ablation().analyze([])


def simulated(rng, beta=(0.0, 0.0), seeds=3, scales=9) -> Ladder:
    """Two arms at five rates: noise of a seed over all scales, of a rate's seed over all scales, and of a run."""
    compute = np.geomspace(1e12, 1e14, scales)
    x = np.log10(compute / compute.max())
    arms = []
    for shift in (0.0, beta[0] + beta[1] * x):
        loss = (-0.05 * x + shift)[None, :, None] + 0.005 * (np.arange(5) - 2.2) ** 2
        loss = loss + 0.007 * rng.normal(size=(seeds, 1, 5)) + 0.01 * rng.normal(size=(seeds, scales, 5))
        arms.append(loss[:, np.arange(scales), loss.mean(0).argmin(1)])
    return Ladder(compute, [(32, 1.0)] * scales, arms[1] - arms[0], arms[0], [(0.0, 0.0)] * scales, [])


def test_equal_arms_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    winners = [sign(predict(simulated(rng), 10.0, 0.9)) != "undecided" for _ in range(400)]
    assert np.mean(winners) <= 0.115


@pytest.mark.slow
def test_two_thousand_ablations_of_equal_arms_have_few_winners_and_bands_hold():
    rng = np.random.default_rng(1)
    winners = [sign(predict(simulated(rng), 10.0, 0.9)) != "undecided" for _ in range(2000)]
    assert np.mean(winners) <= 0.115
    gaps = [predict(simulated(rng, (-0.02, 0.01)), 10.0, 0.9) for _ in range(1000)]
    assert np.mean([gap.lo <= -0.01 <= gap.hi for gap in gaps]) >= 0.88
    found = [crossings(simulated(rng, (-0.02, 0.04)), 0.9) for _ in range(100)]
    truth = 10**0.5
    held = [(low is None or low <= truth) and (high is None or high >= truth) for at, low, high in found]
    assert np.mean(held) >= 0.84
