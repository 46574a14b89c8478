"""Runs with a trunk and branches whose losses follow a known law."""

import numpy as np

from .ladders import loss, noisy, write_tree

LAW = {"E": 1.0, "A": 85.0, "B": 170.0, "alpha": 0.5, "beta": 0.43}


SIZES = np.array([36_000, 69_000, 118_000, 248_000, 437_000])


def trees(folder, sizes, tokens, seeds=1, shift=lambda **_: 0.0, **extra):
    """A run a size and seed whose losses follow LAW, `shift` added, with .1 % noise of the trunk."""
    for n in sizes:
        for seed in range(seeds):
            clean = loss(np.full(len(tokens), float(n)), np.array(tokens, float), **LAW)
            moved = clean + np.array([shift(N=n, D=d, seed=seed) for d in tokens])
            losses = noisy(moved, [int(n), seed], 0.001)
            write_tree(folder / f"n{n}-s{seed}{extra.get('tag', '')}", seed, int(n), 6.6 * n,
                       dict(zip(tokens, losses.tolist(), strict=True)), config=extra.get("config"))  # fmt: skip


def stages_of(folder, **values):
    """The same summaries with `values` in every stage."""
    import json

    for path in folder.glob("*/summary.json"):
        content = json.loads(path.read_text())
        for stage in content["stages"]:
            stage.update({**values, "data": {**stage["data"], **values.get("data", {})}})
        path.write_text(json.dumps(content))
