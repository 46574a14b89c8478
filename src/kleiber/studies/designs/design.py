"""What all designs are made of: factors, the cells that combine their levels, and rounds of cells.

A level of a factor sets keys of the config; a list stands for every value of it. A cell has one level of each factor,
and so a level can make an exception for the keys of another. In a design of several rounds, later cells start from the
runs of earlier ones, which `finished_base` finds by their overrides.

`shortfall` finds out before any training whether the points of a design would determine a law.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kleiber.config.model_size import Size, size, vocabulary_of
from kleiber.config.stages import quantity
from kleiber.records.catalog import Run, read_runs
from kleiber.records.terminal import print_line
from kleiber.studies.laws.law import Array, Law, Linear, Shape
from kleiber.types import Config

NAMES = {
    "N": "model sizes", "D": "token counts", "X": "numbers of experts", "U": "amounts of unique text",
    "M": "pre-training lengths", "p": "replayed fractions",
}  # fmt: skip
STEP, SINGULAR = 1e-4, 1e-6  # relative step of a difference quotient; singular values below this count as zero
DRAWS = 3  # number of random parameter values at which the rank of the Jacobian is computed

Values = Any  # a value of a config, a list of them, or a function of the other overrides of the cell
Cell = list[str]  # overrides of one run


@dataclass(frozen=True)
class Level:
    """One level of a factor.

    values  value by key; a list stands for every value of it, and a list as a value is [[...]]
    fill    text by placeholder: `{NAME}` in any override of the cell is replaced by that of NAME
    """

    values: Mapping[str, Values]
    fill: Mapping[str, str] = field(default_factory=dict)

    def __or__(self, other: Level) -> Level:
        """Returns the combination of two levels; `other` decides about keys of both, which keep their place."""
        return Level({**self.values, **other.values}, {**self.fill, **other.fill})

    def cells(self) -> list[Cell]:
        """Returns the overrides of every combination of the values, the last key varying fastest.

        Raises ValueError for a value that is a mapping.
        """
        for key, value in self.values.items():
            if isinstance(value, Mapping):
                raise ValueError(
                    f"design: {key}={dict(value)} must be a single value or a list; write nested keys with dots, such "
                    f"as {key}.KEY: VALUE"
                )
        choices = [as_list(value) for value in self.values.values()]
        return [self._cell(dict(zip(self.values, chosen, strict=True))) for chosen in itertools.product(*choices)]

    def _cell(self, values: Mapping[str, Values]) -> Cell:
        lines = [f"{key}={format_value(value(values) if callable(value) else value)}" for key, value in values.items()]
        for name, text in self.fill.items():
            lines = [line.replace(f"{{{name}}}", text) for line in lines]
        return lines


def combine(*factors: Sequence[Level], slow: int = 0) -> list[Cell]:
    """Returns the cells of every combination of levels, with overrides in the order of the factors.

    The first factor varies slowest, but the last `slow` factors vary even slower: with the seeds as the last factor
    and slow=1, cells are planned one seed after another.
    """
    fast = factors[: len(factors) - slow]
    return [
        cell
        for slower in itertools.product(*factors[len(fast) :])
        for levels in itertools.product(*fast)
        for cell in reduce(or_, (*levels, *slower)).cells()
    ]


def seed_levels(count: int, fill: Mapping[str, Sequence[str]] | None = None) -> list[Level]:
    """Returns the factor of `count` seeds, which fill the placeholder `{seed}` and take from `fill` a text each."""
    return [
        Level({"seed": seed}, {"seed": str(seed), **{name: str(texts[seed]) for name, texts in (fill or {}).items()}})
        for seed in range(count)
    ]


def as_list(values: Values) -> Sequence[Values]:
    """Returns a list of values unchanged, and a single value as a list of length one."""
    return values if isinstance(values, list | tuple) else [values]


def format_value(value: Values) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    return "null" if value is None else str(value)


def parse_lines(lines: Sequence[str]) -> dict[str, str]:
    """Returns the value by key of overrides such as `model.width=32`."""
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


class RunSource(Protocol):
    """Gives the runs of a sweep so far; in a dry run these are the planned ones."""

    def runs(self) -> Sequence[Run]: ...


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
    """The config and the runs so far of the sweep that a design plans, as far as designs need them.

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
            if run.folder not in by_folder or not by_folder[run.folder].finished:
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


def find_base_run(runs: Sequence[Run], base: Sequence[str], bases: Sequence[Sequence[str]] = ()) -> Run | None:
    """Returns the finished run whose overrides contain those of `base`, or None if there is none.

    `bases` are the overrides of all bases. A key whose planned values appear in no run was overridden on the command
    line, and is ignored. Raises ValueError if several runs match.
    """
    planned = [(run, set(run.overrides)) for run in runs if not any(map(is_start, run.overrides))]
    there = {line for _, lines in planned for line in lines}
    ours = parse_lines([line for overrides in (base, *bases) for line in overrides if line in there])
    wanted = {line for line in base if line.partition("=")[0] in ours}
    matches = [run for run, lines in planned if run.finished and wanted and wanted <= lines]
    if len(matches) > 1:
        names = ", ".join(run.name for run in matches)
        raise ValueError(
            f"several finished runs have the overrides {' '.join(base)} of one base: {names}; use a new folder for "
            "this study with name=NEW_NAME"
        )
    return matches[0] if matches else None


def finished_base(
    runs: Sequence[Run], base: Sequence[str], bases: Sequence[Sequence[str]], later: str
) -> Run | None:  # fmt: skip
    """Returns the run of `find_base_run`; prints that the `later` runs are skipped where it has not finished."""
    run = find_base_run(runs, base, bases)
    if run is None:
        print_line(f"skipping {later}, since the base run {' '.join(base)} has not finished")
    return run


def from_checkpoint(run: Run) -> Level:
    """Returns the overrides that start a run from the weights of another one."""
    return Level({"init": "checkpoint", "init.path": run.folder})


def is_start(line: str) -> bool:
    return line.startswith(("init=", "init."))


def shortfall(law: Law, inputs: Mapping[str, Array]) -> str | None:
    """Explains why the distinct rows of `inputs` do not determine the law, and what to add; None if they do."""
    rows = np.unique(np.column_stack([inputs[name] for name in law.inputs]), axis=0)
    distinct = {name: len(np.unique(column)) for name, column in zip(law.inputs, rows.T, strict=True)}
    counts = ", ".join(f"{count} {NAMES.get(name, f'values of {name}')}" for name, count in distinct.items())
    few = [NAMES.get(name, f"values of {name}") for name, count in distinct.items() if count < 3]
    add = f"add {' and '.join(few or ['points'])}"
    if len(rows) < len(law.params):
        return f"{len(rows)} points ({counts}) are fewer than the {len(law.params)} parameters of {law.name}: {add}"
    rank = rank_of(law, {name: rows[:, j] for j, name in enumerate(law.inputs)})
    if rank < len(law.params):
        return (
            f"{len(rows)} points ({counts}) determine only {rank} of the {len(law.params)} parameters of {law.name}: "
            f"{add}"
        )
    return None


def rank_of(law: Law, inputs: Mapping[str, Array]) -> int:
    """Returns how many parameters of `law` the points determine: the rank of its Jacobian.

    The rank is the largest over several random parameter values at which no term vanishes.
    """
    rng, best = np.random.default_rng(0), 0
    units = {name: float(np.exp(np.log(inputs[name]).mean())) for name in ("N", "D", "batch") if name in inputs}
    units["U"] = units.get("D", 1.0)
    inputs = {name: column / units.get(name, 1.0) for name, column in inputs.items()}
    for _ in range(DRAWS):
        values = np.array([random_parameter(kind, rng) for kind in law.params.values()])
        steps = values + STEP * np.diag(values)
        back = values - STEP * np.diag(values)
        slopes = (law.evaluate(inputs, steps) - law.evaluate(inputs, back)).T
        norms = np.linalg.norm(slopes, axis=0)
        if np.isfinite(slopes).all() and (norms > 0).all():
            best = max(best, int((np.linalg.svd(slopes / norms, compute_uv=False) > SINGULAR).sum()))
    return best


def random_parameter(kind: Linear | Shape, rng: np.random.Generator) -> float:
    """Returns a random parameter value at which, for inputs near 1, a term neither vanishes nor dominates."""
    if isinstance(kind, Linear):
        return rng.uniform(0.5, 1.5)
    low = max(kind.lo, 0.2)
    return rng.uniform(low, max(1.5 * low, min(kind.hi, 2.0)))
