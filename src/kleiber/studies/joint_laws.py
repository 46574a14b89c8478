"""Measures of `study=moe_law` and `study=data_repeat`: losses relative to those of runs of equal size, tokens and seed.

Seed noise cancels in a difference of runs with the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import Rows

SAME = 0.03  # relative difference of active parameters that counts as equal, since a router adds some
LOSS, GAIN, EXCESS = "loss", "gain", "excess"


def expert_gains(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table of `loss` with the keys `expansion` and `size`, and the measure `gain`.

    It reads `active` parameters, `tokens`, and the numbers of `experts` and of those `chosen` for a token.

    expansion  X = experts / active experts, so X = 1, all experts active, is the dense model of the family
    size       active parameters of the model with X = 1 that has as many, up to what a router adds
    gain       of a run with X > 1: the loss at X = 1 minus its own, at the same size, tokens and seed
    """
    ratio = table["experts"].astype(float) / table["chosen"].astype(float)
    table = table.assign(expansion=ratio.clip(lower=1.0))
    losses = table[table["measure"] == LOSS]
    is_base = losses["expansion"] == 1.0
    has_size = (table["expansion"] == 1.0) | (not is_base.any())
    table = table.assign(size=table["active"].where(has_size, None))
    if not is_base.any():
        return table
    active = losses["active"].to_numpy(dtype=float)
    sizes = np.sort(losses.loc[is_base, "active"].astype(float).unique())
    nearest = sizes[np.abs(np.log(active[:, None] / sizes[None])).argmin(1)]
    equal = np.abs(active / nearest - 1) <= SAME
    kept = losses.assign(size=nearest)[equal]
    gains = beside_base(kept, kept["expansion"] == 1.0, ["size", "tokens", "seed"])
    gains = gains.assign(measure=GAIN, metric=GAIN, value=gains["base_loss"] - gains["value"])
    return pd.concat([table, gains.drop(columns="base_loss")], ignore_index=True)


def repetition_excess(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table of `loss` by `active` and `tokens` with the key `epochs`, and the measure `excess`.

    unique  tokens of the text, of which no more count than the run has read
    epochs  how often the text was read, to 0.1; 1 for text that is new
    excess  of a run of more than one epoch: its loss minus that with new text, at the same size, tokens and seed
    """
    unique = np.minimum(table["unique"].astype(float), table["tokens"].astype(float))
    table = table.assign(unique=unique, epochs=(table["tokens"].astype(float) / unique).round(1))
    losses = table[table["measure"] == LOSS]
    again = losses["epochs"] > 1.0  # and not a last batch that begins anew
    excess = beside_base(losses, ~again, ["active", "tokens", "seed"])
    excess = excess.assign(measure=EXCESS, metric=EXCESS, value=excess["value"] - excess["base_loss"])
    return pd.concat([table, excess.drop(columns="base_loss")], ignore_index=True)


def beside_base(rows: Rows, is_base: pd.Series, keys: list[str]) -> Rows:
    """Returns the rows that are no base, each with the mean loss of the bases of equal keys as `base_loss`."""
    bases = rows[is_base].groupby(keys)["value"].mean().rename("base_loss")
    return rows[~is_base].join(bases, on=keys).dropna(subset=["base_loss"])
