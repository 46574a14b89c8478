"""How fine-tuning moves the load of experts: total variation distances by text and layer, from drift metrics.

A load is the share of assignments by expert on fixed held-out text. Distances are total variation, half the sum of
absolute differences, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from kleiber.records.catalog import Run
from kleiber.studies.claims import RATE, Claim, Question
from kleiber.studies.compare.rows import CELL, FROZEN, MIXTURE, Rows, label, mean
from kleiber.studies.decision import as_row, mean_estimate
from kleiber.types import Json

KINDS = {"load_shift": "before to after", "load_gap_before": "to the new text, before",
         "load_gap_after": "to the new text, after"}  # fmt: skip
Shifts = Mapping[tuple[str, str, int], float]  # distances by (kind, task, layer)


def shifts(run: Run) -> Shifts:
    """Returns the distances of a run; empty for a model without experts."""
    distances = {}
    for name, value in run.metrics.items():
        first, *rest = name.split("/")
        if first == "drift" and len(rest) >= 3 and rest[-2] in KINDS and value is not None:
            distances[rest[-2], "/".join(rest[:-2]), int(rest[-1])] = value
    return distances


def load_table(rows: Rows, chosen: Rows, level: float) -> list[Json]:
    """Returns a row for each arm at its chosen setting, text and layer: the mean distance over seeds, and interval.

    rows    with the column `shifts`
    chosen  one setting of each arm
    """
    kept = rows.merge(chosen[CELL], on=CELL).sort_values("method", kind="stable")
    table = []
    for arm, part in kept.groupby("method", sort=False):
        keys = {key for distances in part["shifts"] for key in distances}
        for kind, task, layer in sorted(keys, key=lambda key: ([*KINDS].index(key[0]), *key[1:])):
            values = [entry[kind, task, layer] for entry in part["shifts"] if (kind, task, layer) in entry]
            entry = {"arm": label(str(arm)), "text": task, "distance": KINDS[kind], "layer": layer}
            table.append({**entry, **as_row(mean_estimate(values, level, "total variation"))})
    return table


def frozen_load(rows: Rows) -> list[Question]:
    """The claim that freezing the router moves the load of the earlier text less; empty without such runs.

    Layers and learning rates are averaged within seeds.
    """
    shifted = rows.assign(moved=[earlier_shift(distances) for distances in rows["shifts"]])
    table = shifted.pivot_table(index=["seed", "lr"], columns="method", values="moved")
    if not {MIXTURE, FROZEN} <= set(table):
        return []
    gaps = (table[FROZEN] - table[MIXTURE]).dropna().groupby("seed").mean().tolist()
    claim = Claim(of={"arm": FROZEN}, against={"arm": MIXTURE}, measure="load_shift", equal=RATE)
    text = "the load of the earlier text moves less with the router frozen, at equal learning rate"
    unit = "of total variation, mean of layers and rates"
    return [Question(claim=claim, text=text, values=gaps, unit=unit, better="lower")] if gaps else []


def earlier_shift(distances: Shifts) -> float:
    """Mean over layers and earlier tasks of how far their load moved; nan where it is not known."""
    earlier = {task for kind, task, _ in distances if kind == "load_gap_before"}
    return mean([value for (kind, task, _), value in distances.items() if kind == "load_shift" and task in earlier])
