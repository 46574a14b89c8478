"""The study of hyperparameters: a planted rate and critical batch are found, and a plan with one rate is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.hyperparameters import Hyperparameters, best_rates, from_best_batch
from kleiber.studies.study import PlannedPoint, points

SIZES, TOKENS = (40_000, 80_000, 160_000), (2.5e5, 5e5, 1e6)
BATCHES, RATES = [512 * 2**k for k in range(6)], [0.0025 * 2**k for k in range(7)]
B, E, RATE_N = 6000.0, 0.4, -0.5  # critical batch at 1M tokens, its power of D, and the power of N of the best rate


def planted(N, D, batch, lr, noise):
    """Loss with its optimum inside the grid: below 1,024 tokens a smaller batch is worse, and above it costs tokens."""
    worth = D / (1 + batch / (B * (D / 1e6) ** E))
    away = np.log(lr / (0.02 * (N / 8e4) ** RATE_N))
    small = max(0.0, np.log(1024 / batch))
    return (1.5 + 30 * N**-0.3 + 40 * worth**-0.3) * np.exp(0.01 * away**2 + 0.03 * small**2 + 0.0005 * noise)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run for each size, batch and rate, with a branch for each number of tokens; some end a little later."""
    home, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for N in SIZES:
        for batch in BATCHES:
            for lr in RATES:
                stages = [{"name": "trunk"}]
                for D in TOKENS:
                    metrics = {"val/docs/loss": planted(N, D, batch, lr, rng.standard_normal())}
                    stages.append({
                        "name": f"{D / 1e6:g}M", "parent": "trunk", "trunk": "trunk", "lr": lr, "batch_tokens": batch,
                        "tokens": round(D + batch / 2), "params": {"active": N, "non_embedding": N}, "metrics": metrics,
                        "flops": {"model": 6 * N * D},
                    })  # fmt: skip
                fake_run(home / f"{N}-{batch}-{lr:g}", stages)
    return read_runs(home)


@pytest.fixture(scope="module")
def findings(runs):
    return Hyperparameters(bootstrap=200, predict=[{"N": 3.2e5, "D": 1e6}]).analyze(runs)


def test_the_planted_power_of_the_rate_and_the_critical_batch_are_in_their_intervals(findings):
    power = findings.law["derived"]["lr_N"]
    assert power["lo"] <= RATE_N <= power["hi"] and power["hi"] - power["lo"] < 0.3
    critical = findings.tables["Critical batch"]
    assert [(row["N"], round(row["D"] / 2.5e5)) for row in critical] == [(N, k) for N in SIZES for k in (1, 2, 4)]
    held = [row["lo"] <= B * (row["D"] / 1e6) ** E <= row["hi"] for row in critical]
    assert np.mean(held) >= 7 / 9
    assert findings.law["predictions"][0]["lr"]["value"] == pytest.approx(0.01, rel=0.2)


def test_a_level_and_fewer_resamples_have_an_effect(runs, findings):
    narrow = Hyperparameters(bootstrap=0, level=0.5).analyze(runs)
    assert all(row["lo"] is None for row in narrow.tables["Critical batch"])
    assert narrow.law["level"] == 0.5
    assert findings.law["level"] == 0.9


def test_the_frontier_has_the_best_complete_rate_of_each_batch(runs):
    frontier = best_rates(points(runs))
    assert len(frontier) == len(SIZES) * len(TOKENS) * len(BATCHES)
    again = points(runs)
    lucky = again.assign(loss=0.1, seed=7).iloc[:1]  # a second seed at one rate only, which decides
    first = best_rates(pd.concat([again, lucky], ignore_index=True))
    assert first["seeds"].max() == 2 and len(first) == len(frontier)
    kept = from_best_batch(frontier[frontier["N"] == frontier["N"].min()])
    assert kept["batch"].min() >= 1024 and set(kept["D"]) == set(frontier["D"])


def test_a_plan_with_one_rate_for_a_size_is_refused():
    def plan(*rates):
        return [PlannedPoint(Path(f"{lr}"), {"optimizer": {"lr": lr}}, 1e5, 1e6) for lr in rates]

    assert Hyperparameters().check_plan(plan(0.01, 0.02)) == []
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        Hyperparameters().check_plan(plan(0.01, 0.01))
