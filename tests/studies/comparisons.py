"""What a comparison of retention methods leaves on disk, with known forgetting: no training behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_run import fake_run

STUDY = {"_target_": "kleiber.studies.Forgetting"}
START = {"docs": 2.0, "code": 3.0}


def truth(method: str, strength: float, lr: float) -> tuple[float, float]:
    """F and target loss: a fast rate learns and forgets more; replay keeps at a small price, l2sp at a larger one."""
    learned = 1.0 * (lr / 0.03) ** 0.25
    kept = {"none": 0.0, "replay": 0.9 * strength / (strength + 0.03), "l2sp": 0.5 * strength / (strength + 0.5)}[
        method
    ]
    price = {"none": 0.0, "replay": 0.1 * strength, "l2sp": 0.15 * strength}[method]
    return 0.5 * learned**2 * (1 - kept), START["code"] - learned + price


def write_arm(
    folder: Path, method: str, strength: float, lr: float, seed: int, *, noise: float = 0.004, pretrained: float = 4e6,
    tokens: float = 1e6, params: int = 40_000, F: float | None = None, base: Path | None = None,
    wise: bool = False, status: str = "finished",
) -> None:  # fmt: skip
    rng = np.random.default_rng([seed, round(1e4 * strength), round(1e5 * lr), round(tokens) % 97, params % 89])
    exact, target = truth(method, strength, lr)
    exact = exact if F is None else F
    F, target = exact + noise * rng.normal(), target + noise * rng.normal()
    retention = {
        "none": {"wise": {"_target_": "x", "alphas": [0, 0.5, 1]}} if wise else None,
        "replay": {"replay": {"_target_": "x", "fraction": strength, "source": "real"}},
        "l2sp": {"l2sp": {"_target_": "x", "strength": strength}},
    }[method]
    config = {
        "study": STUDY,
        "retention": retention,
        "init": {"path": str(base) if base else ""},
        "adapter": None,
        "seed": seed,
    }
    metrics = {"val/docs/loss": START["docs"] + F, "val/code/loss": target, "drift/docs/untrained": 5.0}
    for alpha in (0, 0.5, 1) if wise else ():
        metrics[f"wise/{alpha}/docs/loss"] = START["docs"] + F * alpha**2
        metrics[f"wise/{alpha}/code/loss"] = START["code"] + (target - START["code"]) * (1 - (1 - alpha) ** 2)
    curve = [
        {"step": s, "watch/docs/loss": 2.1 + F * g} for s, g in ((0, 0), (1, 0.1), (8, 0.9), (64, 1.3), (1000, 1.0))
    ]
    stage = {
        "tasks": ["code"], "metrics": metrics, "lr": lr, "curve": curve,
        "start_metrics": {f"val/{name}/loss": value for name, value in START.items()}, "steps": round(tokens / 1000),
        "batch_tokens": 1000, "tokens": round(tokens if base else pretrained + tokens),
        "seconds": 10.0, "peak_memory_bytes": 2**28,
        "params": {"total": params, "active": params, "trainable": params},
    }  # fmt: skip
    fake_run(folder, [stage], config=config, status=status, seed=seed, seconds=12.0, R={"tasks": ["docs", "code"]})


def write_base(folder: Path, seed: int) -> None:
    config = {"study": STUDY, "retention": None, "init": None}
    stage = {"tasks": ["docs"], "metrics": {"val/docs/loss": 2.0}, "tokens": 4_000_000}
    fake_run(folder, [stage], config=config, seed=seed, seconds=40.0, R={"tasks": ["docs"]})


def write_study(home: Path, seeds: int = 3) -> None:
    for seed in range(seeds):
        base = home / f"base{seed}"
        write_base(base, seed)
        for lr in (0.003, 0.01, 0.03):
            write_arm(home / f"none-{lr}-{seed}", "none", 0.0, lr, seed, base=base, wise=True)
            for fraction in (0.01, 0.05, 0.2):
                write_arm(home / f"replay{fraction}-{lr}-{seed}", "replay", fraction, lr, seed, base=base / "main")
            for strength in (0.1, 1.0):
                write_arm(home / f"l2sp{strength}-{lr}-{seed}", "l2sp", strength, lr, seed, base=base)
