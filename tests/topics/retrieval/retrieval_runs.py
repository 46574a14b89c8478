"""Runs of the study retrieval with planted losses."""

from __future__ import annotations

from pathlib import Path

from fake_run import fake_run

NOISE = [0.0, 0.1, -0.05]
WOBBLE = [0.0, 0.01, -0.01]
OLD, NEW = "eval/retrieval/builtin/docs", "eval/retrieval/builtin/code"
# Losses on the old and the new domain, by arm: alone, with neighbors at their chosen weight, with BM25 text in front.
LOSSES = {
    "base": ((2.0, 3.0), (1.9, 2.98), (2.05, 3.05)),
    "none": ((2.5, 2.0), (2.3, 2.04), (2.55, 2.05)),
    "replay": ((2.1, 2.02), (2.0, 2.05), (2.15, 2.07)),
}
WEIGHTS = {0.2: (2.4, 2.01), 0.5: (2.2, 2.05)}  # of plain fine-tuning


def plant(folder: Path, seeds: int = 3, arms=tuple(LOSSES), kept=("knn/", "bm25/")) -> None:
    """Writes a run for each arm and seed, which differ by seed in the same way but for a little.

    kept  the ways of retrieval that are evaluated
    """
    for arm in arms:
        ways = LOSSES[arm]
        for seed in range(seeds):
            metrics = {}
            for domain, prefix in enumerate((OLD, NEW)):
                shift = NOISE[seed] + (WOBBLE[seed] if arm != "none" else 0)
                for name, losses in zip(("", "knn/", "bm25/"), ways, strict=True):
                    if name and name not in kept:
                        continue
                    place = f"{prefix}/{name}"
                    metrics |= {f"{place}loss": losses[domain] + shift, f"{place}seconds_per_token": 0.002}
                    if name:
                        metrics[f"{place}store_bytes"] = 2e6
                        for tokens, share in ((1000, 0.5), (4000, 1.0)):
                            change = share * (losses[domain] - ways[0][domain])
                            metrics[f"{place}tokens{tokens}/loss"] = ways[0][domain] + change + shift
                if arm == "none":
                    metrics |= {
                        f"{prefix}/knn/interpolation{w:g}/loss": of[domain] + shift for w, of in WEIGHTS.items()
                    }
            start = {"_target_": "kleiber.runs.Checkpoint", "path": f"base-{seed}/main"}
            config = {"seed": seed, "init": None if arm == "base" else start}
            config["retention"] = {"replay": {"fraction": 0.2}} if arm == "replay" else None
            fake_run(folder / f"{arm}-{seed}", [{"metrics": metrics}], config=config, seed=seed)
