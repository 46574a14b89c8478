"""Runs of LoRA and of full fine-tuning with known gaps, at five learning rates and three seeds."""

from pathlib import Path

import numpy as np
from fake_run import fake_run

from kleiber.records.catalog import Run, read_runs

OTHERS = {"of": {}, "each": {"arm": {"not": ["full"]}}, "against": {"arm": "full"}}
OPTIONS = {
    "arms": "adapter", "reference": "full", "equal": "pair", "tolerance": 0.005,
    "claims": (
        {"measure": "target", **OTHERS, "direction": "higher"}, OTHERS,
        {**OTHERS, "equal": "target_loss", "direction": "within", "margin": 0.01},
    ),
}  # fmt: skip
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)


BEST = {None: 2, 1: 3, 16: 3}  # place of the rate that learns best


def truth(rank: int | None, lr: float) -> tuple[float, float]:
    """F and target loss on one frontier for full and rank 16; rank 1 learns less and lies above it."""
    away = abs(RATES.index(lr) - BEST[rank])
    target = {None: 1.70, 1: 1.80, 16: 1.72}[rank] + 0.05 * away
    return (2.0 - target) + (0.1 if rank == 1 else 0.0), target


def write(folder, rank: int | None, lr: float, seed: int) -> None:
    rng = np.random.default_rng([seed, rank or 0, RATES.index(lr)])
    shift = 0.05 * seed  # of the base, common to all arms of a seed
    (F, target), noise = truth(rank, lr), 0.001
    F, target = F + shift + noise * rng.normal(), target + noise * rng.normal()
    adapter = None if rank is None else {"_target_": "kleiber.adapters.LoRA", "rank": rank, "rslora": False}
    config = {"adapter": adapter, "retention": None, "init": {"path": f"base{seed}"}, "seed": seed}
    stage = {
        "tasks": ["code"], "metrics": {"val/docs/loss": 2.0 + F, "val/code/loss": target}, "lr": lr,
        "start_metrics": {"val/docs/loss": 2.0, "val/code/loss": 3.0}, "steps": 500, "batch_tokens": 1000,
        "tokens": 500_000, "params": {"active": 9, "trainable": rank or 100},
    }  # fmt: skip
    fake_run(folder, [stage], config=config, seed=seed, R={"tasks": ["docs", "code"]})


def adapter_runs(home: Path) -> list[Run]:
    """Full fine-tuning and ranks 1 and 16, at every rate and seed."""
    for rank in (None, 1, 16):
        for lr in RATES:
            for seed in range(3):
                write(home / f"{rank}-{lr}-{seed}", rank, lr, seed)
    return read_runs(home)
