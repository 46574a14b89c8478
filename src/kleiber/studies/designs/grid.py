"""The interface of designs, and the designs that list all of their cells at once: `grid`, `arms` and named cases.

A design returns cells, each a list of overrides; the sweeper multiplies them by the sweep of the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kleiber.studies.compare.arms import SEEDS

if TYPE_CHECKING:
    from kleiber.studies.designs.plan import Ground


class Design(Protocol):
    """What a choice of the config group `design` is."""

    def cells(self, ground: Ground) -> list[list[str]]:
        """The overrides of each cell, cheap cells first."""
        ...


@runtime_checkable
class Sequential(Protocol):
    """A design with several rounds, each planned from the runs of the rounds before."""

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        """The cells of each round; the sweeper asks for the next round when the cells of the last have run.

        In a dry run cells are planned and not run: `ground.runs()` contains them, and the design writes no file.
        """
        ...


class Grid:
    """Every width with every seed. The config groups `stages` and `budget` set the length of training.

    widths    channels of the residual stream
    seeds     number of seeds, for all widths or one number for each (more for small models, which are noisy and cheap)
    head_dim  channels of a head, the same at every width as muP requires; null leaves the number of heads to the model
    """

    def __init__(self, widths: Sequence[int], seeds: int | Sequence[int] = 2, head_dim: int | None = 16) -> None:
        each = [seeds] * len(widths) if isinstance(seeds, int) else list(seeds)
        if not widths or len(set(widths)) < len(widths):
            raise ValueError(f"design.widths={list(widths)} must have at least one width, and each width only once")
        if len(each) != len(widths) or min(each) < 1:
            raise ValueError(
                f"design.seeds={seeds} must be >= 1, or a list of {len(widths)} numbers, one for each width"
            )
        for width in widths:
            if head_dim is not None and width % head_dim:
                raise ValueError(f"design.head_dim={head_dim} does not divide design.widths={width}")
        self.widths, self.seeds, self.head_dim = list(widths), each, head_dim

    def cells(self, ground: Ground | None = None) -> list[list[str]]:
        """The overrides of each cell."""
        planned = []
        for width, seeds in sorted(zip(self.widths, self.seeds, strict=True)):
            size = [f"model.width={width}"]
            if self.head_dim is not None:
                size.append(f"model.num_heads={width // self.head_dim}")
            planned += [[*size, f"seed={seed}"] for seed in range(seeds)]
        return planned


class Cases:
    """Named cases of several overrides each, with every width and every seed.

    cases   overrides by name: {clm: [model=gpt], mlm: [model=bert, objective=mlm]}
    widths, seeds, head_dim  as in `Grid`; null widths leave the model as it is
    """

    def __init__(
        self, cases: Mapping[str, Sequence[str]], widths: Sequence[int] | None = None, seeds: int = 2,
        head_dim: int | None = 16,
    ) -> None:  # fmt: skip
        if not cases or seeds < 1:
            raise ValueError(
                f"design.cases={dict(cases)} must have at least one case, and design.seeds={seeds} be >= 1"
            )
        self.cases, self.seeds = {name: list(overrides) for name, overrides in cases.items()}, seeds
        self.grid = None if widths is None else Grid(widths, seeds, head_dim)

    def cells(self, ground: Ground | None = None) -> list[list[str]]:
        plain = [[f"seed={seed}"] for seed in range(self.seeds)]
        shapes = plain if self.grid is None else self.grid.cells(ground)
        return [[*overrides, *shape] for shape in shapes for overrides in self.cases.values()]


class Arms:
    """Every arm at every learning rate with every seed; all arms of one seed come before the next seed.

    Each cell has the name of its arm in `study.arm`. Cells of one seed see the same samples in the same order.

    arms   overrides by name, such as {moe: [model=moe]}; `{seed}` and the names of `fill` in braces are replaced
    lrs    values of optimizer.lr
    seeds  number of seeds
    fill   values by name, one for each seed, such as the paths of runs to start from
    """

    def __init__(
        self,
        arms: Mapping[str, Sequence[str]],
        lrs: Sequence[float],
        seeds: int = SEEDS,
        fill: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not arms or not lrs or len(set(lrs)) < len(lrs) or min(lrs) <= 0:
            raise ValueError(
                f"design.arms={list(arms)} and design.lrs={list(lrs)}: give at least one arm and one learning rate; "
                "rates must be positive and differ"
            )
        if seeds < 1:
            raise ValueError(f"design.seeds={seeds} must be >= 1, and >= {SEEDS} for intervals")
        for name, values in (fill or {}).items():
            if len(values) < seeds:
                raise ValueError(f"design.fill.{name} has {len(values)} values; design.seeds={seeds} needs one a seed")
        same = {}
        for name, overrides in arms.items():
            if (twin := same.setdefault(frozenset(overrides), name)) != name:
                raise ValueError(f"design.arms: {name} and {twin} have the same overrides: remove one of them")
        self.arms, self.lrs, self.seeds, self.fill = arms, sorted(lrs), seeds, fill or {}

    def cells(self, ground: Ground | None = None) -> list[list[str]]:
        """The overrides of each cell."""
        planned = []
        for seed in range(self.seeds):
            fills = {"seed": str(seed), **{name: str(values[seed]) for name, values in self.fill.items()}}
            for name, overrides in self.arms.items():
                lines = [filled(line, fills) for line in overrides]
                planned += [[*lines, f"study.arm={name}", f"optimizer.lr={lr:g}", f"seed={seed}"] for lr in self.lrs]
        return planned


def filled(line: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        line = line.replace(f"{{{name}}}", value)
    return line
