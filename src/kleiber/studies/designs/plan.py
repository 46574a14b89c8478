"""Plans of designs of sizes: the run that a design varies, planning laws, and trunks as cells and as points.

A plan is a list of trunks, each a width, a seed and the tokens of its branches. `cells` turns it into overrides, and
`points` into arrays of parameters and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kleiber.config.stages import quantity
from kleiber.records.catalog import Run, read_runs
from kleiber.studies.designs.search import PARAMETERS, Points
from kleiber.studies.designs.sizes import Size, size, vocabulary_of
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.laws_json import read
from kleiber.types import Config

Law = Mapping[str, float]
# The planning law of a design without one: the fit to five widths (36k to 437k parameters) on 8M bytes of byte-level
# documentation, confirmed by that of multirun/golden (alpha .494, beta .431).
PRIOR: Law = {"E": 0.977, "A": 84.3, "B": 166.6, "alpha": 0.507, "beta": 0.427}
CENTRE = (1.2e5, 4e6)  # N and D of its middle, where laws of other exponents are made to agree with it


@dataclass(frozen=True)
class Ground:
    """The run that a design varies.

    model, vocab_size    its model node, and the number of entries of its tokenizer
    batch_tokens, decay  tokens of one optimizer step, and the share of a branch that is its cooldown
    branched             whether stages=trunk_and_cooldowns, so that one trunk serves many numbers of tokens
    folder               the folder of its cells
    speed                measures the FLOPs per second of this machine at some widths
    refusal              why sizes of this config cannot be computed, or None
    head_dim             channels of a head at every width; None leaves the number of heads to the model
    planned              runs that a dry run has planned so far, which count as finished; None where cells are trained
    """

    model: Config
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
        """The runs in the folder, and in a dry run those that it has planned."""
        by_folder = {run.folder: run for run in (read_runs(self.folder) if self.folder.is_dir() else [])}
        for run in self.planned() if self.planned else ():
            if run.folder not in by_folder or by_folder[run.folder].status != "finished":
                by_folder[run.folder] = run
        return list(by_folder.values())

    def size(self, width: int) -> Size:
        if self.refusal is not None:
            raise ValueError(self.refusal)
        heads = {} if self.head_dim is None else {"num_heads": width // self.head_dim}
        return size({**self.model, **heads}, self.vocab_size, width)

    def whole(self, tokens: float) -> int:
        """The nearest positive number of whole batches, in tokens."""
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
    config: Config, folder: Path, speed: Callable[[Sequence[int]], list[float]],
    planned: Callable[[], Sequence[Run]] | None = None,
) -> Ground:  # fmt: skip
    """The `Ground` of a resolved config; where its sizes have no formula, `Ground.size` raises ValueError."""
    stages, refusal, vocabulary = config.get("stages"), None, 0
    if stages is not None and "branches" not in stages:
        refusal = "stages: this design supports single runs and stages=trunk_and_cooldowns only; use design=grid"
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
    """The overrides of each cell, cheap cells first: one cell for each trunk, or for each point without branches."""
    planned = []
    for trunk in sorted(plan, key=lambda trunk: trunk.cost(ground)):
        shape = [f"model.width={trunk.width}"]
        mixing = str((ground.model.get("attention") or {}).get("_target_", ""))
        if ground.head_dim is not None and not mixing.endswith("NoMixing"):
            shape.append(f"model.num_heads={trunk.width // ground.head_dim}")
        if ground.branched:
            lengths = [f"stages.branches=[{','.join(map(str, trunk.branches))}]"]
        else:
            lengths = [f"budget.tokens={tokens}" for tokens in trunk.branches]
        planned += [[*shape, length, f"seed={trunk.seed}"] for length in lengths]
    return planned


def points(plan: Sequence[Trunk], ground: Ground) -> Points:
    """The points of a plan; without branches every point is a trunk of its own."""
    rows, number = [], 0
    for trunk in plan:
        size = ground.size(trunk.width)
        for tokens in trunk.branches:
            rows.append((size.active, tokens, number, size.flops_per_token))
            number += not ground.branched
        number += ground.branched
    N, D, trunks, flops = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Points(N, D, trunks.astype(np.int64), flops)


def planning_laws(law: str | Mapping[str, float] | None, count: int = 9) -> list[Law]:
    """The law to plan with, followed by plausible alternatives: bootstrap draws, or exponents that differ by 15 %.

    law  path of a laws.json, the five parameters by name, or None for `PRIOR`

    Raises ValueError for a law without E, A, B and exponents.
    """
    if isinstance(law, str):
        record = read(law)
        if not {"alpha", "A", "B", "E"} <= set(record.get("params", {})):
            raise ValueError(f"design.law={law} must be a law with E, A, B and exponents, such as chinchilla")
        names = list(record["params"])
        rows = [[entry["value"] for entry in record["params"].values()], *record["draws"][: count - 1]]
        return [_completed(dict(zip(names, row, strict=True))) for row in rows]
    if law is not None and not {"E", "A", "B", "alpha", "beta"} <= set(law):
        raise ValueError(f"design.law={dict(law)} must be {{E: .., A: .., B: .., alpha: .., beta: ..}}")
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
    """The widths that a design may choose: at least two heads, since models with one head deviate from the law."""
    return [head_dim * heads for heads in range(2, 129)]


def best_width(law: Law, flops: float, ground: Ground, head_dim: int) -> int:
    """The multiple of `head_dim` whose model has the least loss at `flops`, by the exact FLOPs of a token."""
    widths = np.array(widths_of(head_dim))
    sizes = [ground.size(int(width)) for width in widths]
    N, per_token = np.array([(size.active, size.flops_per_token) for size in sizes]).T
    return int(widths[np.argmin(loss(law, N, flops / per_token))])


def budget_flops(
    flops: float | str | None, hours: float | None, ground: Ground, widths: Sequence[int], workers: int
) -> float:
    """A budget in FLOPs; `hours` are converted by the measured speed of this machine at `widths`.

    Raises ValueError unless exactly one of `flops` and `hours` is set.
    """
    if (flops is None) == (hours is None):
        raise ValueError("design.flops or design.hours: set exactly one of them, the budget of the whole design")
    if flops is not None:
        return quantity(flops)
    assert hours is not None
    speeds = ground.speed(widths)
    return float(np.exp(np.mean(np.log(speeds)))) * 3600 * quantity(hours) * workers
