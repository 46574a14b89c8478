"""The design of a comparison on common ground: base runs first, then every way to go on from them.

It plans in two rounds. The second knows the folders of the bases that the first has trained, since a run's start point
is the path of another run. It refuses to guess a base: one that did not finish leaves out the cells that need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from kleiber.records.catalog import Run

Values = Any  # a value, or a list of them
REPLAYED = "retention.replay.fraction"


class Ground(Protocol):
    """What a design knows of the sweep that asks: the runs that are there, those of a dry run included."""

    def runs(self) -> Sequence[Run]: ...


class Methods:
    """For each seed and each base one base run, and from it every arm at every one of its settings and learning rates.

    base    overrides of a base run, a list a key for several bases: {data.domain: docs, model.width: [32, 64]}
    start   overrides of weights that are trained already, in place of base runs: {init: hf, init.path: FOLDER,
            init.upstream: [tinystories]}, or {init: checkpoint, init.path: RUN}
    arms    by name, overrides of what goes on from it; a list is every value: {ewc: {retention: ewc, ...: [1, 10]}};
            null leaves one out
    lrs     learning rates of every arm that names none itself (`optimizer.lr`)
    tokens  of each arm; null: what the config says. A list is every value
    equal   "compute": replayed tokens are part of the budget; "target": they come on top, so that each arm reads the
            same new text
    seeds   of base and arm alike
    only    by arm, overrides of the bases that it goes on from, where it does not from all: {frozen: [model=moe]}
    """

    def __init__(
        self,
        base: Mapping[str, Values],
        arms: Mapping[str, Mapping[str, Values] | None],
        lrs: Sequence[float] = (),
        tokens: int | float | str | Sequence[int | float | str] | None = None,
        equal: str = "compute",
        seeds: int = 2,
        only: Mapping[str, Sequence[str]] | None = None,
        start: Mapping[str, Values] | None = None,
    ) -> None:
        kept = {name: dict(arm) for name, arm in arms.items() if arm is not None}
        if not kept or seeds < 1:
            raise ValueError(f"design.arms={list(kept)} and design.seeds={seeds}: give at least one arm and one seed")
        if equal not in ("compute", "target"):
            raise ValueError(f"design.equal={equal}: write compute or target")
        if equal == "target" and tokens is None:
            raise ValueError("design.equal=target needs design.tokens, the new text that each arm reads")
        for name, arm in kept.items():
            if equal == "target" and "replay" in str(arm.get("retention")) and REPLAYED not in arm:
                raise ValueError(
                    f"design.equal=target makes room for what design.arms.{name} replays: write its {REPLAYED}"
                )
        for name in ("seed", "init", "init.path"):
            if name in base or any(name in arm for arm in kept.values()):
                raise ValueError(f"design: {name} follows from the plan, so no base and no arm may set it")
        if start is not None and not {"init", "init.path"} <= set(start):
            raise ValueError(f"design.start={dict(start)}: write init and init.path: {{init: hf, init.path: FOLDER}}")
        self.base, self.arms, self.lrs, self.seeds = dict(base), kept, list(lrs), seeds
        self.start = start
        self.tokens, self.equal = tokens, equal
        self.only = {name: list(lines) for name, lines in (only or {}).items() if arms.get(name) is not None}
        for name in only or {}:
            if name not in arms:
                raise ValueError(f"design.only.{name}: no such arm; design.arms has {', '.join(arms)}")
        for name, lines in self.only.items():
            if not any(set(lines) <= set(one) for one in self.bases()):
                raise ValueError(f"design.only.{name}={lines}: no base has all of these overrides")

    def bases(self) -> list[list[str]]:
        """Overrides of the base runs."""
        if self.start is not None:
            return []
        return [[*one, f"seed={seed}"] for one in product(self.base) for seed in range(self.seeds)]

    def continuations(self, base: Sequence[str] | None = None) -> list[list[str]]:
        """Overrides of all arms, or of those that go on from `base`, without base and seed."""
        found = []
        for name, arm in self.arms.items():
            if base is not None and not set(self.only.get(name, ())) <= set(base):
                continue
            varied = dict(arm)
            if self.lrs:
                varied.setdefault("optimizer.lr", self.lrs)
            for tokens in listed(self.tokens):
                for one in product(varied):
                    found.append(one if tokens is None else [*one, f"budget.tokens={self._budget(one, tokens)}"])
        return found

    def _budget(self, arm: Sequence[str], tokens: int | float | str) -> int | float | str:
        if self.equal == "compute":
            return tokens
        from kleiber.config.budget import quantity

        shares = [float(line.partition("=")[2]) for line in arm if line.startswith(f"{REPLAYED}=")]
        return round(quantity(tokens) / (1 - sum(shares))) if shares else tokens

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        """The base runs; when they have run, the arms."""
        if self.start is None:
            yield self.bases()
        yield self.arms_of(ground)

    def arms_of(self, ground: Ground) -> list[list[str]]:
        """Every arm of every base that has finished, the others are named; or of the weights to start from."""
        if self.start is not None:
            start = [f"{name}={written(value)}" for name, value in self.start.items()]
            seeds = [f"seed={seed}" for seed in range(self.seeds)]
            return [[*one, seed, *start] for seed in seeds for one in self.continuations()]
        runs, found = ground.runs(), []
        for base in self.bases():
            run = trained(runs, base, self.bases())
            if run is None:
                print(
                    f"no finished base {' '.join(base)}: its {len(self.continuations(base))} runs are left out",
                    flush=True,
                )
                continue
            (seed,) = (line for line in base if line.startswith("seed="))
            start = [seed, "init=checkpoint", f"init.path={run.folder}"]
            found += [[*one, *start] for one in self.continuations(base)]
        return found


def product(varied: Mapping[str, Values]) -> list[list[str]]:
    """Every combination of values, as overrides. ValueError for nested values, which are no override."""
    for name, values in varied.items():
        if isinstance(values, Mapping):
            raise ValueError(
                f"design: {name}={dict(values)} is no value; write the whole key, such as {name}.KEY: VALUE"
            )
    choices = [[f"{name}={written(value)}" for value in listed(values)] for name, values in varied.items()]
    return [list(one) for one in itertools.product(*choices)]


def listed(values: Values) -> Sequence[Any]:
    """A list of values as it is, one value as a list of it."""
    return values if isinstance(values, list | tuple) else [values]


def written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value)


def trained(runs: Sequence[Run], base: Sequence[str], bases: Sequence[Sequence[str]] = ()) -> Run | None:
    """The finished run that was planned by these overrides, among those of all `bases`.

    A key none of whose planned values any run has was taken over by the command line, and is looked past. ValueError
    where several runs could be meant.
    """
    planned = [(run, set(run.overrides)) for run in runs if not any(map(is_start, run.overrides))]
    there = {line for _, lines in planned for line in lines}
    ours = {key(line) for one in (base, *bases) for line in one if line in there}
    wanted = {line for line in base if key(line) in ours}
    found = [run for run, lines in planned if run.status == "finished" and wanted and wanted <= lines]
    if len(found) > 1:
        names = ", ".join(run.name for run in found)
        raise ValueError(f"several runs could be the base {' '.join(base)}: {names}; give the study a name= of its own")
    return found[0] if found else None


def is_start(line: str) -> bool:
    return line.startswith(("init=", "init."))


def key(line: str) -> str:
    return line.partition("=")[0]
