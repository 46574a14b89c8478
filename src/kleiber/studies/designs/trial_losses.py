"""The validation losses by which the design `search` compares its trials."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kleiber.records.catalog import Run
from kleiber.studies.designs.design import Cell, SweepContext, find_base_run


def losses_of(context: SweepContext, cells: Mapping[int, Cell]) -> dict[int, float]:
    """Returns the validation loss of each trial; inf where it did not finish or diverged, 0 for a planned run.

    Raises ValueError for a finished run without exactly one validation loss.
    """
    runs, losses = context.runs(), {}
    for trial, cell in cells.items():
        lines = [line for line in cell if not line.startswith("study.")]
        run = find_base_run(runs, lines, list(cells.values()))
        if run is None:
            losses[trial] = math.inf
        elif context.planned is not None and not run.metrics:
            losses[trial] = 0.0
        else:
            losses[trial] = validation_loss(run)
    return losses


def validation_loss(run: Run) -> float:
    """Returns the validation loss of a finished run, inf where it is not finite.

    Raises ValueError where the run has none or several.
    """
    row = run.leaf_rows()[0]
    if row["loss"] is None:
        names = [name for name in row if name.startswith("val/") and name.endswith("/loss")]
        if len(names) != 1:
            raise ValueError(
                f"{run.name} has {len(names)} validation losses ({', '.join(names) or 'none'}), and a search compares "
                "its trials by exactly one: use data with a single validation set"
            )
    return float(row["loss"]) if row["loss"] is not None and math.isfinite(row["loss"]) else math.inf
