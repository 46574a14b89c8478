"""A grid of fine-tuning runs whose forgetting follows a known law."""

import yaml

from .comparisons import write_arm

TRUTH = {"A": 0.013, "c": 0.03, "B": 40.0, "alpha": 0.25, "beta": 0.4, "gamma": 0.2}


SIZES, RATIOS, TOKENS = (36_000, 90_000, 200_000), (20, 80), (2.5e5, 5e5, 1e6)


SHARES = (0.0, 0.01, 0.05, 0.2)


STUDY = {"_target_": "kleiber.studies.ForgettingLaw", "bootstrap": 60, "tolerate": 0.1}


def forgetting(N, D, M, p):
    top = TRUTH["A"] * D ** TRUTH["beta"] * N ** -TRUTH["alpha"] * M ** TRUTH["gamma"]
    return (top + TRUTH["c"]) / (1 + TRUTH["B"] * p) - TRUTH["c"]


def write_grid(home, shares=SHARES, noise=0.004, seeds=2, sizes=SIZES, ratios=RATIOS, on_top=False):
    for N in sizes:
        for M in ratios:
            for D in TOKENS:
                for p in shares:
                    for seed in range(seeds):
                        method = "replay" if p else "none"
                        spent = D / (1 - p) if on_top else D
                        F = forgetting(N, (1 - p) * spent, M, p)
                        folder = home / f"{N}-{M}-{D:.0f}-{p}-{seed}"
                        extra = {"noise": noise, "pretrained": float(M * N), "tokens": spent, "params": N, "F": F}
                        write_arm(folder, method, p, 0.01, seed, **extra)
                        config = yaml.safe_load((folder / "config.yaml").read_text())
                        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "study": STUDY}))
