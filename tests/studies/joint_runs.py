"""Recorded runs of mixtures, and of runs on repeated text."""

import numpy as np

from .trunk_runs import SIZES, stages_of, trees


def write_mixtures(folder):
    """Models of 2 to 16 experts whose loss falls by 0.02 nats with each doubling."""
    for experts in (2, 4, 8, 16):
        X, model = experts / 2, {"mlp": {"num_experts": experts, "k": 2}}
        trees(folder / f"e{experts}", SIZES[:3] + 32 * experts, [1e6, 2e6, 4e6], 1,
              lambda X=X, **_: -0.02 * np.log2(X), config={"model": model})  # fmt: skip


def write_repeats(folder, tokens):
    """Models on 500K and 2M tokens of text and on fresh text, whose loss rises by 0.01 nats with each epoch."""
    for unique in (5e5, 2e6, None):
        place, read = folder / f"u{unique or 0:g}", unique or 1e9
        trees(place, SIZES[:2], tokens, 2, lambda N, D, seed, u=read: 0.01 * max(0.0, D / u - 1),
              config={"data": {"unique": unique}})  # fmt: skip
        stages_of(place, data={"tokens": read})
