"""Places of runs in a study, such as arm, tokens, learning rate and seed. Of two runs at one place it would read one.

Values that an arm lists and swept keys, except those that a place has, put several runs at one place; these are
refused, when the study is planned and when it is read. A study that chooses no learning rate has places without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kleiber.config.nested import flatten
from kleiber.records.catalog import Run
from kleiber.records.diff import changing_keys, differing
from kleiber.studies.laws.table import round_down
from kleiber.studies.study import PlannedPoint
from kleiber.types import Config

SAME_TOKENS = 0.02  # relative difference up to which numbers of tokens are one budget


class Place(NamedTuple):
    """Where a study of arms reads a run: it takes one run at each place."""

    arm: str
    tokens: float
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, {self.tokens:,.0f} tokens, learning rate {self.lr:g}, seed {self.seed}"


def refuse_twins(placed: Iterable[tuple[Place | str, str, Config]]) -> None:
    """Raises ValueError if two runs with different configs have the same place, as only one of them would be read.

    placed  place, name and config of each run
    """
    there: dict[Place | str, tuple[str, Config]] = {}
    for place, name, config in placed:
        twin, theirs = there.setdefault(place, (name, config))
        if twin == name:
            continue
        differences = differing(flatten(theirs), flatten(config))
        changing = changing_keys(theirs, config)
        values = [f"{key} ({a}, {b})" for key, (a, b) in differences.items() if key in changing]
        if values:
            raise ValueError(
                f"two runs have the same place ({place}), {twin} and {name}; they differ in "
                f"{', '.join(values[:3])}{', ...' * (len(values) > 3)}. Give each value an arm of its own in "
                "design.arms, or a study of its own with name=NEW_NAME"
            )


def refuse_planned_twins(points: Sequence[PlannedPoint], arm_of: Callable[[Config], str | None]) -> None:
    """Raises ValueError as `refuse_twins` for planned runs. Runs whose tokens are not counted are not compared."""
    arms = [(arm_of(point.config), point) for point in points if point.counted]
    kept = [(arm, point) for arm, point in arms if arm is not None]
    tokens = round_down(np.array([point.D for _, point in kept]), SAME_TOKENS).tolist() if kept else []
    placed = []
    for (arm, point), length in zip(kept, tokens, strict=True):
        place = Place(arm, length, float(point.config["optimizer"]["lr"]), point.config["seed"])
        placed.append((place, point.folder.name, point.config))
    refuse_twins(placed)


def refuse_twin_rows(rows: pd.DataFrame, columns: Sequence[str], runs: Sequence[Run]) -> None:
    """Raises ValueError as `refuse_twins` where rows of two runs agree in `columns`; the column `run` names the run."""
    configs = {run.name: run.config for run in runs}
    refuse_twins(
        (", ".join(f"{name} {row[name]}" for name in columns), str(row["run"]), configs[str(row["run"])])
        for _, row in rows.drop_duplicates([*columns, "run"]).iterrows()
    )
