"""The study of hyperparameters: a planted rate and critical batch are found, and a plan with one rate is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.hyperparameters import Hyperparameters, best_rates, from_best_batch, with_decay
from kleiber.studies.study import PlannedPoint, finished_rows

SIZES, TOKENS = (40_000, 80_000, 160_000), (2.5e5, 5e5, 1e6)
BATCHES, RATES = [512 * 2**k for k in range(6)], [0.0025 * 2**k for k in range(7)]
B, E, RATE_N = 6000.0, 0.4, -0.5  # critical batch at 1M tokens, its power of D, and the power of N of the best rate


DECAYS, DECAY_M = [0.001 * 4**k for k in range(5)], -0.5  # the power of D/N of the best weight decay


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
                fake_run(home / f"{N}-{batch}-{lr:g}", stages, config=config_of(lr, 0.0))
    return read_runs(home)


def config_of(lr, decay):
    return {"optimizer": {"lr": lr, "weight_decay": decay}}


@pytest.fixture(scope="module")
def decayed(tmp_path_factory):
    """A run for each size, tokens, rate and weight decay; the best decay is .02 (D / N / 10)^-.5."""
    home, rng = tmp_path_factory.mktemp("decays"), np.random.default_rng(0)
    for N in SIZES:
        for D in TOKENS:
            for lr in RATES:
                for decay in DECAYS:
                    away = np.log(decay / (0.02 * (D / N / 10) ** DECAY_M))
                    loss = planted(N, D, 1024, lr, rng.standard_normal()) * np.exp(0.01 * away**2)
                    metrics = {"val/docs/loss": loss}
                    stage = {"lr": lr, "batch_tokens": 1024, "tokens": round(D), "params": N, "metrics": metrics}
                    fake_run(home / f"{N}-{D:g}-{lr:g}-{decay:g}", [stage], config=config_of(lr, decay))
    return read_runs(home)


@pytest.mark.slow
def test_a_swept_weight_decay_has_a_law_too(decayed):
    law = Hyperparameters(bootstrap=200).analyze(decayed).law
    power = law["derived"]["decay_M"]
    assert power["lo"] <= DECAY_M <= power["hi"] and power["hi"] - power["lo"] < 0.3
    assert law["derived"]["lr_N"]["value"] == pytest.approx(RATE_N, abs=0.1)


def test_the_frontier_has_the_best_decay_of_each_rate(decayed):
    frontier = best_rates(with_decay(finished_rows(decayed), decayed)[0])
    assert len(frontier) == len(SIZES) * len(TOKENS)
    least = finished_rows(decayed).groupby(["active", "tokens"])["loss"].min()
    np.testing.assert_allclose(sorted(frontier["loss"]), sorted(least))


@pytest.fixture(scope="module")
def findings(runs):
    return Hyperparameters(bootstrap=200, predict=[{"N": 3.2e5, "D": 1e6}]).analyze(runs)


@pytest.mark.slow
def test_the_planted_power_of_the_rate_and_the_critical_batch_are_in_their_intervals(findings):
    power = findings.law["derived"]["lr_N"]
    assert power["lo"] <= RATE_N <= power["hi"] and power["hi"] - power["lo"] < 0.3
    critical = findings.tables["Critical batch"]
    assert [(row["N"], round(row["D"] / 2.5e5)) for row in critical] == [(N, k) for N in SIZES for k in (1, 2, 4)]
    held = [row["lo"] <= B * (row["D"] / 1e6) ** E <= row["hi"] for row in critical]
    assert np.mean(held) >= 7 / 9
    assert findings.law["predictions"][0]["lr"]["value"] == pytest.approx(0.01, rel=0.2)


@pytest.mark.slow
def test_a_level_and_fewer_resamples_have_an_effect(runs, findings):
    narrow = Hyperparameters(bootstrap=0, level=0.5).analyze(runs)
    assert all(row["lo"] is None for row in narrow.tables["Critical batch"])
    assert narrow.law["level"] == 0.5
    assert findings.law["level"] == 0.9


def test_the_frontier_has_the_best_complete_rate_of_each_batch(runs):
    frontier = best_rates(finished_rows(runs))
    assert len(frontier) == len(SIZES) * len(TOKENS) * len(BATCHES)
    again = finished_rows(runs)
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


def test_a_sweep_of_weight_decays_with_0_is_refused():
    def plan(*decays):
        return [PlannedPoint(Path(f"{lr}-{d}"), config_of(lr, d), 1e5, 1e6) for lr in (0.01, 0.02) for d in decays]

    assert Hyperparameters().check_plan(plan(0.0)) == Hyperparameters().check_plan(plan(0.01, 0.1)) == []
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay=0"):
        Hyperparameters().check_plan(plan(0.0, 0.1))


def swept(batches, tokens, rates, lr=0.02):
    """A frontier with b* = .5 D^.6 and lr* = lr sqrt(batch / 1024); a log2 step of the rate costs .8 % of the loss."""
    rows = []
    for D in tokens:
        for batch in batches:
            for rate in rates:
                away = np.log2(rate / (lr * (batch / 1024) ** 0.5))
                loss = (2.5 + 40 * (D / (1 + batch / (0.5 * D**0.6))) ** -0.3) * np.exp(0.008 * away**2)
                rows.append({"active": 8e4, "tokens": D, "batch_tokens": float(batch), "lr": rate, "seed": 0,
                             "loss": loss})  # fmt: skip
    return best_rates(pd.DataFrame(rows))


def bias(rows):
    return np.array([row["critical batch"] / (0.5 * row["D"] ** 0.6) - 1 for row in rows])


@pytest.mark.slow
def test_batches_whose_best_rate_is_at_an_edge_are_left_out_and_named():
    frontier = swept([4 * 2**k for k in range(8)], (1e4, 3e4, 1e5), RATES[:6], lr=0.2)
    assert set(frontier["batch"][frontier["at_edge"]]) == {128, 256, 512}
    rows, verdicts = Hyperparameters(bootstrap=0).critical_batches(8e4, frontier)
    (verdict,) = verdicts
    assert abs(bias(rows)).max() < 0.02 and "N = 8e+04" in verdict["text"] and "128, 256, 512" in verdict["text"]
    assert (verdict["code"], verdict["level"]) == ("batch_at_edge", "warn")
    silent, _ = Hyperparameters(bootstrap=0).critical_batches(8e4, frontier.assign(at_edge=False))
    assert abs(bias(silent)).max() > 0.06


def test_a_size_whose_batches_are_all_at_an_edge_has_no_critical_batch():
    frontier = swept(BATCHES, (2.5e5, 5e5, 1e6), RATES[:6], lr=0.4)
    rows, (verdict,) = Hyperparameters(bootstrap=0).critical_batches(8e4, frontier)
    assert rows == [] and "do not determine" in verdict["text"]


@pytest.mark.slow
def test_two_numbers_of_tokens_determine_how_the_critical_batch_grows_unless_losses_are_few():
    exact = [0.02 * (batch / 1024) ** 0.5 for batch in BATCHES]  # the best rate of each batch is in the grid
    rates = [min(exact) / 2, *exact, max(exact) * 2]
    rows, verdicts = Hyperparameters(bootstrap=0).critical_batches(8e4, swept(BATCHES[:4], (2.5e5, 1e6), rates))
    assert abs(bias(rows)).max() < 0.01 and verdicts == []
    few = swept([512, 2048, 8192], (2.5e5, 1e6), rates).drop(index=0)  # five losses for five parameters
    rows, (verdict,) = Hyperparameters(bootstrap=0).critical_batches(8e4, few)
    assert verdict["code"] == "batch_exponent_fixed" and "2 numbers of tokens" in verdict["text"]
    assert rows[0]["critical batch"] == rows[1]["critical batch"]
