"""The interface of all designs, what they plan from, and the designs `grid`, `cases` and `arms`.

A design returns cells; a cell is the list of overrides of one run. The sweeper combines each cell with each value of
the keys that the command line sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from annotated_types import MinLen

from kleiber.config.model_size import Size, size, vocabulary_of
from kleiber.config.stages import quantity
from kleiber.records.catalog import Run, read_runs
from kleiber.studies.compare.arms import SEEDS
from kleiber.studies.designs.methods import Values, product
from kleiber.types import Config, Count, Positive, Width

LR = "optimizer.lr"


class Design(Protocol):
    """Interface of a design, a choice of the config group `design`."""

    def cells(self, context: SweepContext) -> list[list[str]]:
        """Returns the overrides of each cell, cheap cells first."""
        ...


@runtime_checkable
class Sequential(Protocol):
    """A design of several rounds; each round is planned from the finished runs of the previous rounds."""

    def rounds(self, context: SweepContext) -> Iterator[list[list[str]]]:
        """Yields the cells of each round. The sweeper asks for a round when all cells of the previous round have run.

        In a dry run nothing is trained: `context.runs()` returns the planned cells as if they had finished, and the
        design writes no file.
        """
        ...


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


class Grid:
    """Trains every width with every seed. The config groups `stages` and `budget` set the training length.

    widths    values of `model.width`
    seeds     number of seeds of every width, or a list with one number for each width; small models are noisier and
              cheaper, so they deserve more seeds
    head_dim  channels of an attention head, the same at every width as muP requires; null keeps `model.num_heads`
    """

    def __init__(
        self,
        widths: Annotated[Sequence[Width], MinLen(1)],
        seeds: Count | Sequence[Count] = 2,
        head_dim: Width | None = 16,
    ) -> None:
        each = [seeds] * len(widths) if isinstance(seeds, int) else list(seeds)
        if len(set(widths)) < len(widths):
            raise ValueError(f"design.widths={list(widths)} must list no width twice")
        if len(each) != len(widths):
            raise ValueError(
                f"design.seeds={seeds} must be a number, or a list of {len(widths)} of them, one for each width"
            )
        for width in widths:
            if head_dim is not None and width % head_dim:
                raise ValueError(f"design.head_dim={head_dim} must divide every width, but design.widths has {width}")
        self.widths, self.seeds, self.head_dim = list(widths), each, head_dim

    def cells(self, context: SweepContext | None = None) -> list[list[str]]:
        """Returns the overrides of each cell."""
        planned = []
        for width, seeds in sorted(zip(self.widths, self.seeds, strict=True)):
            size = [f"model.width={width}"]
            if self.head_dim is not None:
                size.append(f"model.num_heads={width // self.head_dim}")
            planned += [[*size, f"seed={seed}"] for seed in range(seeds)]
        return planned


class Cases:
    """Trains several named configurations, each at every width with every seed.

    cases   lists of overrides by name: {clm: [model=gpt], mlm: [model=bert, objective=mlm]}
    widths, seeds, head_dim  as in `Grid`; widths=null keeps the `model.width` of the config
    """

    def __init__(
        self, cases: Mapping[str, Sequence[str]], widths: Sequence[Width] | None = None, seeds: Count = 2,
        head_dim: Width | None = 16,
    ) -> None:  # fmt: skip
        if not cases:
            raise ValueError("design.cases={} must have at least one case")
        self.cases, self.seeds = {name: list(overrides) for name, overrides in cases.items()}, seeds
        self.grid = None if widths is None else Grid(widths, seeds, head_dim)

    def cells(self, context: SweepContext | None = None) -> list[list[str]]:
        plain = [[f"seed={seed}"] for seed in range(self.seeds)]
        shapes = plain if self.grid is None else self.grid.cells(context)
        return [[*overrides, *shape] for shape in shapes for overrides in self.cases.values()]


class Arms:
    """Trains every arm at every learning rate with every seed, one seed after another.

    Every run records the name of its arm in `study.arm`. Runs with the same seed see the same samples in the same
    order.

    arms   overrides of each arm, by name: {dense: {}, moe: {model: moe}}. A list of values makes a run for each of
           them; a list as the value is [[...]]; null removes an arm. The placeholders `{seed}` and `{NAME}`, for each
           NAME of `fill`, are replaced by their value for the seed of the run
    lrs    values of `optimizer.lr` of the arms that do not set it, or a list for each arm by name
    seeds  number of seeds
    fill   lists of values by name, one value for each seed, such as the paths of the runs to start from
    """

    def __init__(
        self,
        arms: Mapping[str, Mapping[str, Values] | None],
        lrs: Sequence[Positive] | Mapping[str, Sequence[Positive]],
        seeds: Count = SEEDS,
        fill: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.arms = {name: dict(arm) for name, arm in arms.items() if arm is not None}
        rates = {name: lrs.get(name, ()) if isinstance(lrs, Mapping) else lrs for name in self.arms}
        if not self.arms:
            raise ValueError(f"design.arms={dict(arms)} must have at least one arm")
        for name, values in rates.items():
            if LR in self.arms[name]:
                continue
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"design.lrs={lrs} must have at least one learning rate for {name}, and no rate may be listed twice"
                )
            self.arms[name][LR] = [f"{lr:g}" for lr in sorted(values)]
        for name, values in (fill or {}).items():
            if len(values) < seeds:
                raise ValueError(
                    f"design.fill.{name} has {len(values)} values, but needs one for each of the {seeds} seeds of "
                    "design.seeds"
                )
        same: dict[frozenset[str], str] = {}
        for name, arm in self.arms.items():
            for overrides in product(arm):
                if (twin := same.setdefault(frozenset(overrides), name)) != name:
                    raise ValueError(
                        f"design.arms: {name} and {twin} have the same overrides; remove one of the two arms"
                    )
        self.seeds, self.fill = seeds, fill or {}

    def cells(self, context: SweepContext | None = None) -> list[list[str]]:
        """Returns the overrides of each cell."""
        planned = []
        for seed in range(self.seeds):
            fills = {"seed": str(seed), **{name: str(values[seed]) for name, values in self.fill.items()}}
            for name, arm in self.arms.items():
                for overrides in product(arm):
                    lines = [fill_placeholders(line, fills) for line in overrides]
                    planned.append([*lines, f"study.arm={name}", f"seed={seed}"])
        return planned


def fill_placeholders(line: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    return line
