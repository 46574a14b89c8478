"""What a design stands on: the config it plans for, the law it believes meanwhile, and the form of a plan.

A plan is a list of trunks, each a width, a seed and the tokens of its branches. It becomes cells (overrides) by
`cells`, and points for the mathematics by `points`. Nothing here trains or launches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kleiber.config.budget import quantity
from kleiber.records.catalog import Run, read_runs
from kleiber.studies.designs.search import PARAMETERS, Points
from kleiber.studies.designs.sizes import Size, size, vocabulary_of
from kleiber.studies.laws import laws_json as records
from kleiber.studies.laws.law import Array

Law = Mapping[str, float]
# The fit of a ladder of five widths to 8M bytes (byte-level documentation, 36k to 437k parameters), which that of
# multirun/golden confirmed (alpha .494, beta .431): where a design without a law begins.
PRIOR: Law = {"E": 0.977, "A": 84.3, "B": 166.6, "alpha": 0.507, "beta": 0.427}
CENTRE = (1.2e5, 4e6)  # N and D of its middle, where laws of other exponents are made to agree with it


@dataclass(frozen=True)
class Ground:
    """The run that a design varies.

    model, vocab_size    its model node, and the entries of its tokenizer
    batch_tokens, decay  tokens of one optimizer step, and the share of a branch that is its cooldown
    branched             whether stages=trunk_and_cooldowns, so that one trunk serves many numbers of tokens
    folder               where its cells land
    speed                FLOPs per second of this machine by width, measured when asked
    refusal              why sizes of this config cannot be told, or None
    head_dim             channels of a head where a design keeps them at every width; None leaves the model's own rule
    planned              runs that a dry run has planned so far, which count as finished; None where cells are trained
    """

    model: Mapping[str, Any]
    vocab_size: int
    batch_tokens: int
    decay: float
    branched: bool
    folder: Path
    speed: Callable[[Sequence[int]], list[float]]
    refusal: str | None = None
    head_dim: int | None = None
    planned: Callable[[], Sequence[Run]] | None = None

    def runs(self) -> list[Run]:
        """The runs that are there, and in a dry run those that it has planned."""
        found = {run.folder: run for run in (read_runs(self.folder) if self.folder.is_dir() else [])}
        for run in self.planned() if self.planned else ():
            if run.folder not in found or found[run.folder].status != "finished":
                found[run.folder] = run
        return list(found.values())

    def size(self, width: int) -> Size:
        if self.refusal is not None:
            raise ValueError(self.refusal)
        heads = {} if self.head_dim is None else {"num_heads": width // self.head_dim}
        return size({**self.model, **heads}, self.vocab_size, width)

    def whole(self, tokens: float) -> int:
        """The nearest number of whole batches, in tokens."""
        return max(1, round(tokens / self.batch_tokens)) * self.batch_tokens


@dataclass(frozen=True)
class Trunk:
    width: int
    seed: int
    branches: tuple[int, ...]

    def cost(self, ground: Ground) -> float:
        """FLOPs: the trunk to its longest branch and every cooldown, or every run by itself without branches."""
        total = sum(self.branches)
        tokens = (1 - ground.decay) * max(self.branches) + ground.decay * total if ground.branched else total
        return tokens * ground.size(self.width).flops_per_token


def ground_of(
    config: Mapping[str, Any], folder: Path, speed: Callable[[Sequence[int]], list[float]],
    planned: Callable[[], Sequence[Run]] | None = None,
) -> Ground:  # fmt: skip
    """From a resolved config; what has no formula is refused when a size is asked for, since not every design asks."""
    stages, refusal, vocabulary = config.get("stages"), None, 0
    if stages is not None and "branches" not in stages:
        refusal = "stages: a design of sizes knows ordinary runs and stages=trunk_and_cooldowns; use design=grid"
    try:
        vocabulary = vocabulary_of(config["data"])
    except ValueError as error:
        refusal = str(error)
    decay = float((config.get("schedule") or {}).get("decay", 0.2))
    tokens = round(quantity(config["batch"]["tokens"]))
    return Ground(
        config["model"], vocabulary, tokens, decay, stages is not None, folder, speed, refusal, planned=planned
    )


def cells(plan: Sequence[Trunk], ground: Ground) -> list[list[str]]:
    """Overrides by cell, cheap ones first: a cell a trunk, or a cell a point where there are no branches."""
    made = []
    for trunk in sorted(plan, key=lambda one: one.cost(ground)):
        shape = [f"model.width={trunk.width}"]
        mixing = str((ground.model.get("attention") or {}).get("_target_", ""))
        if ground.head_dim is not None and not mixing.endswith("NoMixing"):
            shape.append(f"model.num_heads={trunk.width // ground.head_dim}")
        if ground.branched:
            lengths = [f"stages.branches=[{','.join(map(str, trunk.branches))}]"]
        else:
            lengths = [f"budget.tokens={tokens}" for tokens in trunk.branches]
        made += [[*shape, length, f"seed={trunk.seed}"] for length in lengths]
    return made


def points(plan: Sequence[Trunk], ground: Ground) -> Points:
    """The plan's points; without branches every point is a trunk of its own."""
    rows, number = [], 0
    for trunk in plan:
        one = ground.size(trunk.width)
        for tokens in trunk.branches:
            rows.append((one.active, tokens, number, one.flops_per_token))
            number += not ground.branched
        number += ground.branched
    N, D, trunks, flops = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Points(N, D, trunks.astype(np.int64), flops)


def planning_laws(law: str | Mapping[str, float] | None, count: int = 9) -> list[Law]:
    """The law to plan with, first, and others that it may turn out to be: bootstrap draws, or exponents 15 % off.

    `law`: laws.json of an earlier fit, the five numbers, or None for PRIOR.
    """
    if isinstance(law, str):
        found = records.read(law)
        if not {"alpha", "A", "B", "E"} <= set(found.get("params", {})):
            raise ValueError(f"design.law={law}: a law with E, A, B and exponents is needed, such as chinchilla")
        names = list(found["params"])
        rows = [[entry["value"] for entry in found["params"].values()], *found["draws"][: count - 1]]
        return [_completed(dict(zip(names, row, strict=True))) for row in rows]
    if law is not None and not {"E", "A", "B", "alpha", "beta"} <= set(law):
        raise ValueError(f"design.law={dict(law)}: write {{E: .., A: .., B: .., alpha: .., beta: ..}}")
    centre = PRIOR if law is None else {name: float(law[name]) for name in PARAMETERS}
    laws = [centre]
    for a, b in ((0.85, 1), (1.15, 1), (1, 0.85), (1, 1.15), (0.85, 0.85), (1.15, 1.15), (0.85, 1.15), (1.15, 0.85)):
        alpha, beta = centre["alpha"] * a, centre["beta"] * b
        A = centre["A"] * CENTRE[0] ** (alpha - centre["alpha"])
        B = centre["B"] * CENTRE[1] ** (beta - centre["beta"])
        laws.append({**centre, "alpha": alpha, "beta": beta, "A": A, "B": B})
    return laws[:count]


def _completed(law: dict[str, float]) -> Law:
    return {"beta": law["alpha"], **law}


def loss(law: Law, N: Array, D: Array) -> Array:
    return law["E"] + law["A"] * N ** -law["alpha"] + law["B"] * D ** -law["beta"]


def widths_of(head_dim: int) -> list[int]:
    """Widths that a design may choose: two heads and more, since models with one fall out of the family's law."""
    return [head_dim * heads for heads in range(2, 129)]


def best_width(law: Law, flops: float, ground: Ground, head_dim: int) -> int:
    """The width whose model has the least loss at `flops`, by the exact FLOPs of a token; a multiple of `head_dim`."""
    widths = np.array(widths_of(head_dim))
    known = [ground.size(int(width)) for width in widths]
    N, per_token = (np.array([getattr(one, name) for one in known]) for name in ("active", "flops_per_token"))
    return int(widths[np.argmin(loss(law, N, flops / per_token))])


def budget_flops(
    flops: float | str | None, hours: float | None, ground: Ground, widths: Sequence[int], workers: int
) -> float:
    """A budget in FLOPs; `hours` of this machine by its measured speed at those widths.

    ValueError unless one is set.
    """
    if (flops is None) == (hours is None):
        raise ValueError("design.flops or design.hours: set one of them, the budget of the whole design")
    if flops is not None:
        return quantity(flops)
    assert hours is not None
    speeds = ground.speed(widths)
    return float(np.exp(np.mean(np.log(speeds)))) * 3600 * quantity(hours) * workers
