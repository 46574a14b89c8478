"""The design `generations`: models that train on the text of the models before them, and fine-tunes of the first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from kleiber.records import Run
from kleiber.studies.designs import (
    Cell,
    Level,
    RunSource,
    Values,
    combine,
    finished_base,
    from_checkpoint,
    kept_arms,
    parse_lines,
)
from kleiber.types import Count

PLACEHOLDERS = ("{last}", "{all}", "{share}")
BASE = "real"  # the arm of generation 0

Key = TypeVar("Key")


class Generations:
    """Trains every base with every seed; then, generation after generation, new models on text that earlier ones wrote.

    The overrides of an arm may contain the run of the generation before (`{last}`), the list of the runs of all
    generations before (`{all}`), and 1 / (number of these runs + 1), the share of real text in an equal mixture with
    the text of each of them (`{share}`). Every run records its arm in `study.arm` and its generation in
    `study.generation`; the bases are generation 0 of all arms. A run that did not finish ends its arm.

    base         overrides of generation 0; a list of values makes several bases: {model.width: [32, 64]}
    arms         overrides of the later generations, on top of those of the base, by name: {replace: {data: generated,
                 data.models: "[{last}]"}}; null removes an arm
    generations  number of generations after the first
    tuned        overrides of runs that fine-tune each base, by name: {dpo: {objective: dpo, ...}}
    seeds        number of seeds of the bases; later runs have the seed of their base
    """

    def __init__(
        self,
        base: Mapping[str, Values],
        arms: Mapping[str, Mapping[str, Values] | None],
        generations: Count = 4,
        tuned: Mapping[str, Mapping[str, Values] | None] | None = None,
        seeds: Count = 3,
    ) -> None:
        self.arms = kept_arms(arms)
        self.tuned = {name: dict(arm) for name, arm in (tuned or {}).items() if arm is not None}
        self.generations, self.seeds, self.base = generations, seeds, dict(base)
        for name, arm in self.arms.items():
            if not any(place in str(value) for value in arm.values() for place in PLACEHOLDERS):
                raise ValueError(
                    f"design.arms.{name}={arm} reads no text of an earlier generation: add data=generated with "
                    'data.models="[{last}]" or "{all}", or move it to design.tuned'
                )
            lists = [key for key, value in arm.items() if isinstance(value, Sequence) and not isinstance(value, str)]
            if lists:
                raise ValueError(
                    f"design.arms.{name}.{lists[0]}={arm[lists[0]]} is a list, and a generation has a run of each arm: "
                    "make an arm of each value"
                )
        for name in self.arms.keys() & self.tuned.keys():
            raise ValueError(f"design.arms and design.tuned both have the name {name}: rename one of the two")

    def bases(self) -> list[Level]:
        """The overrides of each base."""
        cells = Level({**self.base, "seed": list(range(self.seeds))}).cells()
        return [Level({**parse_lines(cell), "study.arm": BASE, "study.generation": 0}) for cell in cells]

    def rounds(self, context: RunSource) -> Iterator[list[Cell]]:
        """Yields the bases, then one generation of all arms after the other; the first of these with the fine-tunes."""
        bases = self.bases()
        yield combine(bases)
        starts = _finished(context, dict(enumerate(bases)), "later generations")
        before: dict[tuple[int, str], list[Run]] = {(at, arm): [run] for at, run in starts.items() for arm in self.arms}
        tuned = combine(
            [Level({"seed": bases[at].values["seed"]}) | from_checkpoint(run) for at, run in starts.items()],
            [Level({**arm, "study.arm": name}) for name, arm in self.tuned.items()],
        )
        for generation in range(1, self.generations + 1):
            levels = {
                (at, arm): bases[at] | Level({**self.arms[arm], "study.arm": arm, "study.generation": generation})
                for at, arm in before
            }
            written = [(levels[key] | Level({}, placeholders(runs))).cells() for key, runs in before.items()]
            yield [*itertools.chain(*written), *(tuned if generation == 1 else [])]
            if generation < self.generations:
                ended = _finished(context, levels, "the next generation")
                before = {key: [*before[key], run] for key, run in ended.items()}


def placeholders(runs: Sequence[Run]) -> dict[str, str]:
    """The text of each placeholder, where `runs` are those of all generations before."""
    folders = [str(run.folder) for run in runs]
    return {"last": folders[-1], "all": f"[{','.join(folders)}]", "share": f"{1 / (len(folders) + 1):.6g}"}


def _finished(context: RunSource, levels: Mapping[Key, Level], later: str) -> dict[Key, Run]:
    """The finished runs of cells; prints a line for each cell without one. Overrides with placeholders are ignored."""
    lines = {key: without_placeholders(level) for key, level in levels.items()}
    runs, bases = context.runs(), [*lines.values()]
    finished = {key: finished_base(runs, cell, bases, later) for key, cell in lines.items()}
    return {key: run for key, run in finished.items() if run is not None}


def without_placeholders(level: Level) -> Cell:
    """The overrides of a cell that contain no placeholder."""
    (cell,) = level.cells()
    return [line for line in cell if not any(place in line for place in PLACEHOLDERS)]
