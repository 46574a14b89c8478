"""What the designs `isoflop` and `optimal` plan with: the config of the sweep, prior laws, and trunks.

A plan is a list of trunks; a trunk is a run at a constant learning rate, with a width, a seed and the token counts at
which cooldowns branch off. `cells` converts a plan to overrides, `points` to arrays of parameters and tokens.
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
# The prior law where design.law=null: fitted to five widths (36k to 437k parameters) trained on 8 MB of byte-level
# documentation. The law of multirun/golden has similar exponents (alpha .494, beta .431).
PRIOR: Law = {"E": 0.977, "A": 84.3, "B": 166.6, "alpha": 0.507, "beta": 0.427}
CENTRE = (1.2e5, 4e6)  # N and D at which the alternative laws have the same loss as the prior law


@dataclass(frozen=True)
class SweepContext:
    """The config of the sweep that a design plans, as far as designs need it.

    model, vocab_size    config node of the model, and the vocabulary size of its tokenizer
    batch_tokens         tokens of one optimizer step
    decay                fraction of the tokens of a branch that are its cooldown
    branched             whether stages=trunk_and_cooldowns, so that one trunk serves several token counts
    folder               folder of the study
    speed                measures this machine's training speed in FLOPs per second at each of the widths
    refusal              why the size of a model cannot be computed from this config, or None
    head_dim             channels of an attention head at every width; None keeps the number of heads of the config
    planned              in a dry run, returns the runs planned so far, which count as finished; None where runs are
                         trained
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
        """Returns the runs in the folder, and in a dry run also the planned ones."""
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

    def round_to_batches(self, tokens: float) -> int:
        """Returns the multiple of `batch_tokens` that is nearest to `tokens`, at least one batch."""
        return max(1, round(tokens / self.batch_tokens)) * self.batch_tokens


@dataclass(frozen=True)
class Trunk:
    width: int
    seed: int
    branches: tuple[int, ...]

    def cost(self, context: SweepContext) -> float:
        """Returns the FLOPs of the trunk to its longest branch and all cooldowns, or of all runs without branches."""
        total = sum(self.branches)
        tokens = (1 - context.decay) * max(self.branches) + context.decay * total if context.branched else total
        return tokens * context.size(self.width).flops_per_token


def sweep_context(
    config: Config, folder: Path, speed: Callable[[Sequence[int]], list[float]],
    planned: Callable[[], Sequence[Run]] | None = None,
) -> SweepContext:  # fmt: skip
    """Returns the `SweepContext` of a resolved config.

    Its method `size` raises ValueError if this config has no formula for the size of a model.
    """
    stages, refusal, vocabulary = config.get("stages"), None, 0
    if stages is not None and "branches" not in stages:
        refusal = "this design supports only stages=null and stages=trunk_and_cooldowns; use design=grid"
    try:
        vocabulary = vocabulary_of(config["data"])
    except ValueError as error:
        refusal = str(error)
    decay = float((config.get("schedule") or {}).get("decay", 0.2))
    tokens = round(quantity(config["batch"]["tokens"]))
    return SweepContext(
        config["model"], vocabulary, tokens, decay, stages is not None, folder, speed, refusal, planned=planned
    )


def cells(plan: Sequence[Trunk], context: SweepContext) -> list[list[str]]:
    """Returns the overrides of each cell, cheap ones first: one for each trunk, or for each point without branches."""
    planned = []
    for trunk in sorted(plan, key=lambda trunk: trunk.cost(context)):
        shape = [f"model.width={trunk.width}"]
        mixing = str((context.model.get("attention") or {}).get("_target_", ""))
        if context.head_dim is not None and not mixing.endswith("NoMixing"):
            shape.append(f"model.num_heads={trunk.width // context.head_dim}")
        if context.branched:
            lengths = [f"stages.branches=[{','.join(map(str, trunk.branches))}]"]
        else:
            lengths = [f"budget.tokens={tokens}" for tokens in trunk.branches]
        planned += [[*shape, length, f"seed={trunk.seed}"] for length in lengths]
    return planned


def points(plan: Sequence[Trunk], context: SweepContext) -> Points:
    """Returns the (N, D) points of a plan; without branches, every point is a trunk by itself."""
    rows, number = [], 0
    for trunk in plan:
        size = context.size(trunk.width)
        for tokens in trunk.branches:
            rows.append((size.active, tokens, number, size.flops_per_token))
            number += not context.branched
        number += context.branched
    N, D, trunks, flops = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Points(N, D, trunks.astype(np.int64), flops)


def planning_laws(law: str | Mapping[str, float] | None, count: int = 9) -> list[Law]:
    """Returns the law to plan with, followed by plausible alternatives, `count` laws at most.

    The alternatives are the bootstrap draws of a laws.json, or else laws whose exponents differ by 15 %.

    law  path of a laws.json, a mapping with E, A, B, alpha and beta, or None for `PRIOR`

    Raises ValueError for a law without these parameters.
    """
    if isinstance(law, str):
        record = read(law)
        if not {"alpha", "A", "B", "E"} <= set(record.get("params", {})):
            raise ValueError(
                f"design.law={law} must be the laws.json of a law with the parameters E, A, B and alpha, such as "
                "chinchilla"
            )
        names = list(record["params"])
        rows = [[entry["value"] for entry in record["params"].values()], *record["draws"][: count - 1]]
        return [_completed(dict(zip(names, row, strict=True))) for row in rows]
    if law is not None and not {"E", "A", "B", "alpha", "beta"} <= set(law):
        raise ValueError(f"design.law={dict(law)} must have the keys {{E: .., A: .., B: .., alpha: .., beta: ..}}")
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
    """Returns the widths that a design may choose: 2 to 128 heads, since models with one head deviate from the law."""
    return [head_dim * heads for heads in range(2, 129)]


def best_width(law: Law, flops: float, context: SweepContext, head_dim: int) -> int:
    """Returns the multiple of `head_dim` whose model has the least loss under `law` for `flops` training FLOPs."""
    widths = np.array(widths_of(head_dim))
    sizes = [context.size(int(width)) for width in widths]
    N, per_token = np.array([(size.active, size.flops_per_token) for size in sizes]).T
    return int(widths[np.argmin(loss(law, N, flops / per_token))])


def budget_flops(
    flops: float | str | None, hours: float | None, context: SweepContext, widths: Sequence[int], workers: int
) -> float:
    """Returns the budget of a design in FLOPs.

    `hours` are converted by the measured speed of this machine at `widths`, with `workers` runs at a time.

    Raises ValueError unless exactly one of `flops` and `hours` is set.
    """
    if (flops is None) == (hours is None):
        raise ValueError("set exactly one of design.flops and design.hours, the budget of the whole design")
    if flops is not None:
        return quantity(flops)
    assert hours is not None
    speeds = context.speed(widths)
    return float(np.exp(np.mean(np.log(speeds)))) * 3600 * quantity(hours) * workers
