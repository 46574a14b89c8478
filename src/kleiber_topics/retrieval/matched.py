"""A measure of `study=retrieval`: nearest neighbors against other remedies at equal loss on the new domain."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from kleiber.records import Run
from kleiber.studies import Rows

OLD, NEW, OLD_AT, NEW_AT, MATCHED = "old", "new", "old_at", "new_at", "matched"
PLAIN, BASE, ALONE = "none", "base", "alone"  # arms without a remedy, and the way of a model without a datastore


def matched_losses(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table with the losses at the weight 0 of the neighbors, and the measure `matched`.

    It reads the measures `old` and `new` by `arm` and `way`, and `old_at` and `new_at` by `weight` of the neighbors.

    matched  of a run of another arm: the loss on the old domain of plain fine-tuning with nearest neighbors minus that
             of the arm alone, at the weight of the neighbors at which both have the same loss on the new domain;
             between two weights on a straight line. Runs whose loss on the new domain no weight reaches are left out
    """
    alone = table[(table["way"] == ALONE) & table["measure"].isin([OLD, NEW])]
    zero = alone.assign(way=None, weight=0.0, measure=alone["measure"] + "_at")
    table = pd.concat([table, zero], ignore_index=True)
    curves = {seed: curve(part) for seed, part in table[table["arm"] == PLAIN].groupby("seed")}
    rows = []
    for _, part in alone[~alone["arm"].isin([PLAIN, BASE])].groupby("run", sort=False):
        losses = part.set_index("measure")["value"]
        reached = old_loss_at(curves.get(part["seed"].iloc[0], ()), losses.get(NEW))
        if reached is not None and OLD in losses:
            row = {"way": None, "measure": MATCHED, "metric": MATCHED, "value": reached - losses[OLD]}
            rows.append({**part.iloc[0], **row})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table


def curve(rows: Rows) -> list[tuple[float, float]]:
    """Returns the losses on the new and on the old domain of one run, by weight of the neighbors."""
    by_weight = rows[rows["measure"].isin([NEW_AT, OLD_AT])].astype({"weight": float})
    wide = by_weight.pivot_table(index="weight", columns="measure", values="value")
    points: Mapping[str, Rows] = {name: wide[name] for name in (NEW_AT, OLD_AT) if name in wide}
    return [*zip(points[NEW_AT], points[OLD_AT], strict=True)] if len(points) == 2 else []


def old_loss_at(points: Sequence[tuple[float, float]], new: float | None) -> float | None:
    """Returns the loss on the old domain where a curve reaches a loss on the new one; None where it does not."""
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if new is not None and x <= new <= next_x:
            return y + ((new - x) / (next_x - x) if next_x > x else 0.0) * (next_y - y)
    return None
