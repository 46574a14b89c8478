"""Synthetic tables for the studies' tests: a known law, a known noise, a known seed."""

import numpy as np
from fake_run import fake_run

from kleiber.studies.laws.allocation import optimum

TRUE = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
TIED = {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.32, "beta": 0.32}
A_OPT = TRUE["beta"] / (TRUE["alpha"] + TRUE["beta"])


def loss(N, D, E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28):
    return E + A * N**-alpha + B * D**-beta


def twenty():
    """5 sizes x 4 token ratios: N 1e7..1e9, D/N 5..80."""
    N = np.repeat(np.geomspace(1e7, 1e9, 5), 4)
    return {"N": N, "D": N * np.tile(np.geomspace(5, 80, 4), 5)}


def isoflop(spread=3.0, centre=1.0):
    """Six budgets x 7 sizes around each budget's optimum, exponents tied so that the parabola is unbiased."""
    law = {k: np.array([v]) for k, v in TIED.items()}
    budgets = np.geomspace(1e18, 1e21, 6)
    N = np.concatenate([optimum(law, C)[0] * centre * np.geomspace(1 / spread, spread, 7) for C in budgets])
    C = np.repeat(budgets, 7)
    return N, C / (6 * N), C


def small():
    """A CPU ladder: 6 sizes x 5 token counts, N 2.5e4..2.7e6, D 1..16M."""
    N = np.repeat(np.geomspace(2.5e4, 2.7e6, 6), 5)
    return {"N": N, "D": np.tile(1e6 * 2.0 ** np.arange(5), 6)}


def small_loss(N, D):
    return loss(N, D, 1.2, 30.0, 40.0, 0.3, 0.25)


def noisy(values, seed, sd=0.005):
    return values * np.exp(np.random.default_rng(seed).normal(0, sd, len(values)))


def law_record(**changes):
    """What a headline reads of laws.json."""
    row = {"value": 1.0, "lo": 0.5, "hi": 1.5, "identified": True}
    test = {"along": "C", "cut": 1e13, "n_test": 4, "mare": 0.0179, "bias": 0.01, "naive": {"line": 0.03}}
    result = {
        "law": "chinchilla", "formula": "L = E", "n": 16, "level": 0.9, "residual_rms": 0.003, "verdicts": [],
        "params": {name: dict(row) for name in ("E", "A", "B", "alpha", "beta")}, "derived": {}, "backtests": [test],
        "domain": {"N": [1e5, 4e5], "D": [1e6, 8e6], "C": [1e12, 2e13]},
    }  # fmt: skip
    return result | changes


def write_tree(folder, seed, params, flops_per_token, losses, status="finished", study=None, config=None):
    """What a run leaves: a trunk and a branch for each number of tokens in `losses`, or one stage for one number.

    `params` are those of a summary, or one number, of which 8,192 are those of the embedding.
    """
    params = params if isinstance(params, dict) else {"active": params, "non_embedding": params - 8192}
    stages = [{"name": "trunk"}]
    for n, loss in losses.items():
        metrics = {"val/docs/loss": loss, "val/docs/bits_per_byte": loss / 0.693}
        place = {"name": f"{n / 1e6:g}M", "parent": "trunk", "trunk": "trunk"}
        flops = {"model": flops_per_token * n}
        stages.append({**place, "tokens": round(n), "params": params, "flops": flops, "metrics": metrics})
    fake_run(folder, stages, config={**(config or {}), "study": study}, status=status, seed=seed)
