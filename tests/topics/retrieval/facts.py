"""Text that teaches a model to look facts up in its context, and facts that it has never seen."""

from __future__ import annotations

import numpy as np

KEYS = "abcdef"
VALUES = {key: "ghijklmnopqrstuvwxyz0123456789"[5 * i : 5 * i + 5] for i, key in enumerate(KEYS)}


def draw(random: np.random.Generator) -> dict[str, str]:
    """A value for each key, of those that only this key may have."""
    return {key: VALUES[key][random.integers(5)] for key in KEYS}


def document(random: np.random.Generator) -> str:
    """Some facts, and some of them again in another order."""
    facts = draw(random)
    shown = random.permutation(list(KEYS))[: random.integers(1, 4)]
    asked = [shown[i] for i in random.integers(len(shown), size=5)]
    return "\n".join(f"{key} {facts[key]}" for key in (*shown, *asked))


def training_text(documents: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [document(random) for _ in range(documents)]
