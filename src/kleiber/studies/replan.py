"""What a design has learned so far: from the finished runs of its earlier rounds to the laws that are still possible.

It reads only points that the design itself planned, so a second start sees what the first one saw. It refuses to fit
fewer rows than the law has parameters with some to spare: then the planning laws stand, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kleiber.catalog import frame, read_runs
from kleiber.studies.fit import fit
from kleiber.studies.noise_model import NoiseModel
from kleiber.studies.planning import Ground, Law, Trunk

SPARE = 3  # rows beyond the parameters that a fit must have
DRAWS = 10


def laws_of_runs(done: Sequence[Trunk], ground: Ground, before: Sequence[Law]) -> tuple[Sequence[Law], str]:
    """The fit and bootstrap draws of it, or the planning laws; and which of both in words."""
    if not done:
        return before, "planned with the given law"
    wanted = {
        (ground.size(trunk.width).active, trunk.seed, tokens // ground.batch_tokens)
        for trunk in done
        for tokens in trunk.branches
    }
    runs = read_runs(ground.folder) if ground.folder.is_dir() else []
    rows: Any = frame([run for run in runs if run.status == "finished"])
    rows = rows.dropna(subset=["loss", "tokens", "active"]) if len(rows) else rows
    if not len(rows):
        return before, "no run of the earlier rounds has finished: planned with the given law"
    keys = zip(rows["active"], rows["seed"], (rows["tokens"] // ground.batch_tokens).astype(int), strict=True)
    mine = rows[[key in wanted for key in keys]]
    mine = mine.sort_values(["active", "seed", "tokens"])
    if len(mine) > len(wanted):
        return before, "several runs at one point (the command line sweeps too): planned with the given law"
    name = "chinchilla" if len(mine) >= 5 + SPARE else "chinchilla_tied"
    if len(mine) < 4 + SPARE or mine["active"].nunique() < 3 or mine["tokens"].nunique() < 3:
        return before, f"{len(mine)} points so far are too few to fit: planned with the given law"
    inputs = {"N": mine["active"].to_numpy(dtype=float), "D": mine["tokens"].to_numpy(dtype=float)}
    found = fit(name, inputs, mine["loss"].to_numpy(dtype=float))
    if found.dropped or not np.isfinite(found.noise):
        return before, f"{len(mine)} points do not identify the law yet: planned with the given law"
    _, trunk = np.unique(mine["trunk"].to_numpy(dtype=str), return_inverse=True)
    draws = NoiseModel.of(found, trunk).draws(DRAWS, seed=0)
    rows = found.values if draws is None else np.vstack([found.values, draws.values])
    laws = [_named(list(found.law.params), row) for row in rows]
    usable = [law for law in laws if 0.05 < law["alpha"] < 1.5 and 0.05 < law["beta"] < 1.5 and law["A"] * law["B"] > 0]
    return usable or before, f"planned from {len(mine)} points so far"


def _named(names: Sequence[str], row: np.ndarray) -> Law:
    law = dict(zip(names, row.tolist(), strict=True))
    return {"beta": law["alpha"], **law}
