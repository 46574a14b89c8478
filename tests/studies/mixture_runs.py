"""Runs of a mixture and a dense model with known forgetting and routing."""

import json
from pathlib import Path

import yaml

from kleiber.studies.compare.rows import DENSE, FROZEN, MIXTURE

from .comparisons import write_arm, write_base

STUDY = {
    "_target_": "kleiber.studies.Forgetting", "arms": "model", "reference": "dense", "equal": "weakest",
    "claims": [
        {"arm": MIXTURE, "against": DENSE, "equal": "target_loss"},
        {"arm": FROZEN, "against": MIXTURE, "equal": "target_loss"},
        {"arm": MIXTURE, "against": DENSE},
        {"arm": FROZEN, "against": MIXTURE, "measure": "target", "direction": "higher"},
    ],
}  # fmt: skip
OPTIONS = {key: value for key, value in STUDY.items() if key != "_target_"}


SHIFT = {MIXTURE: 0.30, FROZEN: 0.10}


def write(folder: Path, arm: str, lr: float, seed: int, less: float = 0.0, **extra) -> None:
    """One run; the mixture learns .1 nats more at every rate and forgets `less` less."""
    write_arm(folder, "none", 0.0, lr, seed, **extra)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"study": STUDY, "model": {"mlp": {"_target_": "x"} if arm == DENSE else {"num_experts": 8, "k": 2}}}
    config["adapter"] = {"_target_": "y.Freeze", "train": None, "freeze": ["router"]} if arm == FROZEN else None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    content = json.loads((folder / "summary.json").read_text())
    metrics = content["stages"][0]["metrics"]
    if arm != DENSE:
        metrics["val/docs/loss"] -= less
        metrics["val/code/loss"] -= 0.1
        for layer in (0, 1):
            metrics[f"drift/docs/load_shift/{layer}"] = SHIFT[arm] + 0.02 * layer + 0.001 * seed
            metrics[f"drift/code/load_shift/{layer}"] = 0.5
            metrics[f"drift/docs/load_gap_before/{layer}"] = 0.2
            metrics[f"drift/docs/load_gap_after/{layer}"] = 0.25
    (folder / "summary.json").write_text(json.dumps(content))


def write_study(home: Path, seeds: int = 3, less: float = 0.08, arms=(DENSE, MIXTURE, FROZEN)) -> None:
    for seed in range(seeds):
        for name in ("gpt", "moe"):
            write_base(home / f"base-{name}-{seed}", seed)
        for arm in arms:
            for lr in (0.003, 0.01, 0.03):
                single = less + 0.05 if arm == FROZEN else less
                write(home / f"{arm.replace(', ', '-')}-{lr}-{seed}", arm, lr, seed, single, noise=0.002)
