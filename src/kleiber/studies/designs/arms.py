"""Arms: a few configurations against one another, each at every learning rate and seed, so that none wins by tuning.

The design plans the cells; `read` finds them again by the name of the arm that each cell carries (`study.arm`). Seeds
are paired: cells of one seed see the same samples in the same order. An arm whose best learning rate is the least or
the largest tried, or of fewer than `LRS`, is untuned, and no headline is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kleiber.studies.compare.arms import SEEDS


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
