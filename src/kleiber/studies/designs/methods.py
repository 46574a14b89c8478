"""The design `methods`: base runs, then every fine-tuning method from each of them.

It plans in two rounds, since the start point of a fine-tuning run is the folder of a base run. The cells of a base that
did not finish are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from kleiber.records.catalog import Run

Values = Any  # a value of a config, or a list of them
REPLAYED = "retention.replay.fraction"


class Ground(Protocol):
    """The sweep that a design plans for: its runs so far, including those that a dry run has planned."""

    def runs(self) -> Sequence[Run]: ...


class Methods:
    """For each seed one run of each base, and from it every arm at each of its settings and learning rates.

    base    overrides of the base runs; a list of values makes several bases: {data.domain: docs, model.width: [32, 64]}
    start   overrides of trained weights to start from in place of base runs: {init: hf, init.path: FOLDER,
            init.upstream: [tinystories]}, or {init: checkpoint, init.path: RUN}
    arms    overrides of the fine-tuning runs, by name; a list makes a run of every value: {ewc: {retention: ewc,
            ...: [1, 10]}}; null removes an arm
    lrs     learning rates of every arm that does not set `optimizer.lr`
    tokens  training tokens of each arm, or a list of them; null leaves the budget to the config
    equal   "compute": replayed tokens are part of the budget; "target": they are added to it, so that every arm reads
            the same new text
    seeds   number of seeds, of bases and arms
    only    overrides that a base must have, by arm; an arm that is not named starts from all: {frozen: [model=moe]}
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
            raise ValueError(f"design.equal={equal} must be compute or target")
        if equal == "target" and tokens is None:
            raise ValueError("design.equal=target needs design.tokens, the tokens of new text that each arm reads")
        for name, arm in kept.items():
            if equal == "target" and "replay" in str(arm.get("retention")) and REPLAYED not in arm:
                raise ValueError(
                    f"design.equal=target adds the replayed tokens of design.arms.{name}: set its {REPLAYED}"
                )
        for name in ("seed", "init", "init.path"):
            if name in base or any(name in arm for arm in kept.values()):
                raise ValueError(f"design.base and design.arms must not set {name}: the design sets it")
        if start is not None and not {"init", "init.path"} <= set(start):
            raise ValueError(
                f"design.start={dict(start)} must have init and init.path: {{init: hf, init.path: FOLDER}}"
            )
        self.base, self.arms, self.lrs, self.seeds = dict(base), kept, list(lrs), seeds
        self.start = start
        self.tokens, self.equal = tokens, equal
        self.only = {name: list(lines) for name, lines in (only or {}).items() if arms.get(name) is not None}
        for name in only or {}:
            if name not in arms:
                raise ValueError(f"design.only.{name}: no such arm; design.arms has {', '.join(arms)}")
        for name, lines in self.only.items():
            if not any(set(lines) <= set(overrides) for overrides in self.bases()):
                raise ValueError(f"design.only.{name}={lines}: no base has all of these overrides")

    def bases(self) -> list[list[str]]:
        """The overrides of the base runs."""
        if self.start is not None:
            return []
        return [[*overrides, f"seed={seed}"] for overrides in product(self.base) for seed in range(self.seeds)]

    def continuations(self, base: Sequence[str] | None = None) -> list[list[str]]:
        """The overrides of all arms, or of those that start from `base`, without start point and seed."""
        planned = []
        for name, arm in self.arms.items():
            if base is not None and not set(self.only.get(name, ())) <= set(base):
                continue
            varied = dict(arm)
            if self.lrs:
                varied.setdefault("optimizer.lr", self.lrs)
            for tokens in listed(self.tokens):
                for overrides in product(varied):
                    planned.append(
                        overrides
                        if tokens is None
                        else [*overrides, f"budget.tokens={self._budget(overrides, tokens)}"]
                    )
        return planned

    def _budget(self, arm: Sequence[str], tokens: int | float | str) -> int | float | str:
        if self.equal == "compute":
            return tokens
        from kleiber.config.stages import quantity

        shares = [float(line.partition("=")[2]) for line in arm if line.startswith(f"{REPLAYED}=")]
        return round(quantity(tokens) / (1 - sum(shares))) if shares else tokens

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        """The base runs, and then the arms."""
        if self.start is None:
            yield self.bases()
        yield self.arms_of(ground)

    def arms_of(self, ground: Ground) -> list[list[str]]:
        """Every arm of every base that has finished, or of the weights of `start`; prints the bases without a run."""
        if self.start is not None:
            start = [f"{name}={written(value)}" for name, value in self.start.items()]
            seeds = [f"seed={seed}" for seed in range(self.seeds)]
            return [[*overrides, seed, *start] for seed in seeds for overrides in self.continuations()]
        runs, planned = ground.runs(), []
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
            planned += [[*overrides, *start] for overrides in self.continuations(base)]
        return planned


def product(varied: Mapping[str, Values]) -> list[list[str]]:
    """Every combination of values, as overrides. Raises ValueError for a value that is a mapping."""
    for name, values in varied.items():
        if isinstance(values, Mapping):
            raise ValueError(
                f"design: {name}={dict(values)} must be a value; write the whole key, such as {name}.KEY: VALUE"
            )
    choices = [[f"{name}={written(value)}" for value in listed(values)] for name, values in varied.items()]
    return [list(choice) for choice in itertools.product(*choices)]


def listed(values: Values) -> Sequence[Values]:
    """A list of values unchanged, and a single value as a list."""
    return values if isinstance(values, list | tuple) else [values]


def written(value: Values) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value)


def trained(runs: Sequence[Run], base: Sequence[str], bases: Sequence[Sequence[str]] = ()) -> Run | None:
    """The finished run that was planned with the overrides `base`; None where there is none.

    A key that no run has with any planned value of `bases` was overridden on the command line, and is ignored. Raises
    ValueError where several runs match.
    """
    planned = [(run, set(run.overrides)) for run in runs if not any(map(is_start, run.overrides))]
    there = {line for _, lines in planned for line in lines}
    ours = {key(line) for overrides in (base, *bases) for line in overrides if line in there}
    wanted = {line for line in base if key(line) in ours}
    matches = [run for run, lines in planned if run.status == "finished" and wanted and wanted <= lines]
    if len(matches) > 1:
        names = ", ".join(run.name for run in matches)
        raise ValueError(f"several runs match the base {' '.join(base)}: {names}; give the study another name=")
    return matches[0] if matches else None


def is_start(line: str) -> bool:
    return line.startswith(("init=", "init."))


def key(line: str) -> str:
    return line.partition("=")[0]
