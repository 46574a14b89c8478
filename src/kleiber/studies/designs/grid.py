"""Designs: which runs a study makes, as the overrides of its cells. The sweeper multiplies them by the command line's.

A design plans; it refuses to train, to read results, or to know how cells are launched.

Arms: a few configurations against one another, each at every learning rate and seed, so that none wins by tuning.

The design plans the cells; `read` finds them again by the name of the arm that each cell carries (`study.arm`). Seeds
are paired: cells of one seed see the same samples in the same order. An arm whose best learning rate is the least or
the largest tried, or of fewer than `LRS`, is untuned, and no headline is made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from kleiber.studies.compare.arms import SEEDS

if TYPE_CHECKING:
    from kleiber.studies.designs.plan import Ground


class Design(Protocol):
    def cells(self, ground: Ground) -> list[list[str]]:
        """Overrides by cell, small and cheap ones first."""
        ...


@runtime_checkable
class Sequential(Protocol):
    """A design that learns on the way."""

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        """Cells of each round; the next one is asked for when the cells of the one before have run.

        In a dry run they are only planned: `ground.runs()` has them, and the design writes nothing.
        """
        ...


class Grid:
    """Every width with every seed; how long each is trained, the stages or the budget say.

    widths    channels of the stream
    seeds     runs a width: one number for all, or one a width (more for the small ones, which are noisy and cheap)
    head_dim  channels of a head, the same at every width as muP wants it; null leaves the model's own rule
    """

    def __init__(self, widths: Sequence[int], seeds: int | Sequence[int] = 2, head_dim: int | None = 16) -> None:
        each = [seeds] * len(widths) if isinstance(seeds, int) else list(seeds)
        if not widths or len(set(widths)) < len(widths):
            raise ValueError(f"design.widths={list(widths)}: name each width once, and at least one")
        if len(each) != len(widths) or min(each) < 1:
            raise ValueError(f"design.seeds={seeds}: give a number from 1, or one for each of the {len(widths)} widths")
        for width in widths:
            if head_dim is not None and width % head_dim:
                raise ValueError(f"design.head_dim={head_dim} does not divide design.widths={width}")
        self.widths, self.seeds, self.head_dim = list(widths), each, head_dim

    def cells(self, ground: Ground | None = None) -> list[list[str]]:
        planned = []
        for width, seeds in sorted(zip(self.widths, self.seeds, strict=True)):
            size = [f"model.width={width}"]
            if self.head_dim is not None:
                size.append(f"model.num_heads={width // self.head_dim}")
            planned += [[*size, f"seed={seed}"] for seed in range(seeds)]
        return planned


class Cases:
    """Named cases of several overrides each, with every width and every seed: for what a product of sweeps cannot pair.

    cases   overrides by name: {clm: [model=gpt], mlm: [model=bert, objective=mlm]}
    widths, seeds, head_dim  as in `Grid`; widths null leaves the model as it is
    """

    def __init__(
        self, cases: Mapping[str, Sequence[str]], widths: Sequence[int] | None = None, seeds: int = 2,
        head_dim: int | None = 16,
    ) -> None:  # fmt: skip
        if not cases or seeds < 1:
            raise ValueError(f"design.cases={dict(cases)} and design.seeds={seeds}: give a case and a seed at least")
        self.cases, self.seeds = {name: list(told) for name, told in cases.items()}, seeds
        self.grid = None if widths is None else Grid(widths, seeds, head_dim)

    def cells(self, ground: Ground | None = None) -> list[list[str]]:
        plain = [[f"seed={seed}"] for seed in range(self.seeds)]
        shapes = plain if self.grid is None else self.grid.cells(ground)
        return [[*told, *shape] for shape in shapes for told in self.cases.values()]


class Arms:
    """Every arm at every learning rate with every seed; all arms of one seed come before the next seed.

    arms  overrides by name, such as {moe: [model=moe]}; `{seed}` and the names of `fill` in braces are replaced
    lrs   values of optimizer.lr
    seeds how many
    fill  values by name, one a seed: paths of runs to start from, for one
    """

    def __init__(
        self,
        arms: Mapping[str, Sequence[str]],
        lrs: Sequence[float],
        seeds: int = SEEDS,
        fill: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not arms or not lrs or len(set(lrs)) < len(lrs) or min(lrs) <= 0:
            raise ValueError(f"design: arms={list(arms)} and lrs={list(lrs)}: at least one each, rates positive, once")
        if seeds < 1:
            raise ValueError(f"design.seeds={seeds}: at least 1, and {SEEDS} for an interval")
        for name, values in (fill or {}).items():
            if len(values) < seeds:
                raise ValueError(
                    f"design.fill.{name} has {len(values)} values for design.seeds={seeds}: give one a seed"
                )
        same = {}
        for name, overrides in arms.items():
            if (twin := same.setdefault(frozenset(overrides), name)) != name:
                raise ValueError(f"design.arms: {name} and {twin} are the same, and would be one run: keep one")
        self.arms, self.lrs, self.seeds, self.fill = arms, sorted(lrs), seeds, fill or {}

    def cells(self, ground: Any = None) -> list[list[str]]:
        planned = []
        for seed in range(self.seeds):
            given = {"seed": str(seed), **{name: str(values[seed]) for name, values in self.fill.items()}}
            for name, overrides in self.arms.items():
                lines = [filled(line, given) for line in overrides]
                planned += [[*lines, f"study.arm={name}", f"optimizer.lr={lr:g}", f"seed={seed}"] for lr in self.lrs]
        return planned


def filled(line: str, given: Mapping[str, str]) -> str:
    for name, value in given.items():
        line = line.replace(f"{{{name}}}", value)
    return line
