"""The design `methods`: trains base models, then fine-tunes each of them with every method.

It has two rounds, because a fine-tuning run starts from the folder of a finished base run. A base run that did not
finish is skipped, together with its fine-tuning runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from kleiber.config.stages import Quantity
from kleiber.records.catalog import Run
from kleiber.types import Count, Positive

Values = Any  # a value of a config, or a list of them
REPLAYED = "retention.replay.fraction"


class RunSource(Protocol):
    """Gives the runs of a sweep so far; in a dry run these are the planned ones."""

    def runs(self) -> Sequence[Run]: ...


class Methods:
    """Trains every base with every seed, then fine-tunes it by every arm at each of the arm's settings and rates.

    base    overrides of the base runs; a list of values makes several bases: {data.domain: docs, model.width: [32, 64]}
    start   overrides that load trained weights, in place of base runs: {init: hf, init.path: FOLDER, init.upstream:
            [tinystories]}, or {init: checkpoint, init.path: RUN}
    arms    overrides of the fine-tuning runs, by name; a list of values makes one run for each value: {ewc: {retention:
            ewc, ...: [1, 10]}}; null removes an arm
    lrs     learning rates of every arm that does not set `optimizer.lr`
    tokens  training tokens of each arm, or a list of token counts; null keeps the budget of the config
    equal   what all arms have in common: "compute" counts replayed tokens as part of `tokens`; "target" adds them to
            `tokens`, so that every arm reads the same amount of new text
    seeds   number of seeds of the bases; a fine-tuning run has the seed of its base
    only    overrides that the base of an arm must have, by arm: {frozen: [model=moe]}; other arms start from every base
    """

    def __init__(
        self,
        base: Mapping[str, Values],
        arms: Mapping[str, Mapping[str, Values] | None],
        lrs: Sequence[Positive] = (),
        tokens: Quantity | Sequence[Quantity] | None = None,
        equal: str = "compute",
        seeds: Count = 2,
        only: Mapping[str, Sequence[str]] | None = None,
        start: Mapping[str, Values] | None = None,
    ) -> None:
        kept = {name: dict(arm) for name, arm in arms.items() if arm is not None}
        if not kept:
            raise ValueError("design.arms={} must have at least one arm")
        if equal not in ("compute", "target"):
            raise ValueError(f"design.equal={equal} must be 'compute' or 'target'")
        if equal == "target" and tokens is None:
            raise ValueError("design.equal=target needs design.tokens, the number of new tokens that each arm reads")
        for name, arm in kept.items():
            if equal == "target" and "replay" in str(arm.get("retention")) and REPLAYED not in arm:
                raise ValueError(
                    f"design.arms.{name} must set {REPLAYED}: design.equal=target adds its replayed tokens to the "
                    "budget"
                )
        for name in ("seed", "init", "init.path"):
            if name in base or any(name in arm for arm in kept.values()):
                raise ValueError(f"design.base and design.arms must not set {name}: the design sets it for every run")
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
                raise ValueError(f"design.only.{name}: design.arms has no arm {name}; it has {', '.join(arms)}")
        for name, lines in self.only.items():
            if not any(set(lines) <= set(overrides) for overrides in self.bases()):
                raise ValueError(f"design.only.{name}={lines}: no base of design.base has all of these overrides")

    def bases(self) -> list[list[str]]:
        """Returns the overrides of each base run."""
        if self.start is not None:
            return []
        return [[*overrides, f"seed={seed}"] for overrides in product(self.base) for seed in range(self.seeds)]

    def fine_tuning_overrides(self, base: Sequence[str] | None = None) -> list[list[str]]:
        """Returns the overrides of each fine-tuning run, without its start point and seed.

        With `base`, only of the arms that may start from that base.
        """
        planned = []
        for name, arm in self.arms.items():
            if base is not None and not set(self.only.get(name, ())) <= set(base):
                continue
            varied = dict(arm)
            if self.lrs:
                varied.setdefault("optimizer.lr", self.lrs)
            for tokens in as_list(self.tokens):
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

    def rounds(self, context: RunSource) -> Iterator[list[list[str]]]:
        """Yields the base runs, then the fine-tuning runs."""
        if self.start is None:
            yield self.bases()
        yield self.fine_tuning_cells(context)

    def fine_tuning_cells(self, context: RunSource) -> list[list[str]]:
        """Returns the overrides of each fine-tuning run from every finished base, or from the weights of `start`.

        Prints a line for each base without a finished run.
        """
        if self.start is not None:
            start = [f"{name}={format_value(value)}" for name, value in self.start.items()]
            seeds = [f"seed={seed}" for seed in range(self.seeds)]
            return [[*overrides, seed, *start] for seed in seeds for overrides in self.fine_tuning_overrides()]
        runs, planned = context.runs(), []
        for base in self.bases():
            run = find_base_run(runs, base, self.bases())
            if run is None:
                print(
                    f"skipping {len(self.fine_tuning_overrides(base))} fine-tuning runs: their base run "
                    f"{' '.join(base)} has not finished",
                    flush=True,
                )
                continue
            (seed,) = (line for line in base if line.startswith("seed="))
            start = [seed, "init=checkpoint", f"init.path={run.folder}"]
            planned += [[*overrides, *start] for overrides in self.fine_tuning_overrides(base)]
        return planned


def product(varied: Mapping[str, Values]) -> list[list[str]]:
    """Returns every combination of the values, each as a list of overrides; a list of values offers its elements.

    Raises ValueError for a value that is a mapping.
    """
    for name, values in varied.items():
        if isinstance(values, Mapping):
            raise ValueError(
                f"design: {name}={dict(values)} must be a single value or a list; write nested keys with dots, such as "
                f"{name}.KEY: VALUE"
            )
    choices = [[f"{name}={format_value(value)}" for value in as_list(values)] for name, values in varied.items()]
    return [list(choice) for choice in itertools.product(*choices)]


def as_list(values: Values) -> Sequence[Values]:
    """Returns a list of values unchanged, and a single value as a list of length one."""
    return values if isinstance(values, list | tuple) else [values]


def format_value(value: Values) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    return "null" if value is None else str(value)


def find_base_run(runs: Sequence[Run], base: Sequence[str], bases: Sequence[Sequence[str]] = ()) -> Run | None:
    """Returns the finished run whose overrides contain those of `base`, or None if there is none.

    `bases` are the overrides of all bases. A key whose planned values appear in no run was overridden on the command
    line, and is ignored. Raises ValueError if several runs match.
    """
    planned = [(run, set(run.overrides)) for run in runs if not any(map(is_start, run.overrides))]
    there = {line for _, lines in planned for line in lines}
    ours = {key(line) for overrides in (base, *bases) for line in overrides if line in there}
    wanted = {line for line in base if key(line) in ours}
    matches = [run for run, lines in planned if run.status == "finished" and wanted and wanted <= lines]
    if len(matches) > 1:
        names = ", ".join(run.name for run in matches)
        raise ValueError(
            f"several finished runs have the overrides {' '.join(base)} of one base: {names}; use a new folder for "
            "this study with name=NEW_NAME"
        )
    return matches[0] if matches else None


def is_start(line: str) -> bool:
    return line.startswith(("init=", "init."))


def key(line: str) -> str:
    return line.partition("=")[0]
