"""A measure of `study=task_scaling`: whether models with a lower loss have a higher score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kleiber.records import Run
from kleiber.studies import Rows

LOSS, SCORE, AGREEMENT = "loss", "score", "agreement"
LEAST = 3  # models of a seed: two are always in one order or in the other


def rank_agreement(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table with the measure `agreement`, which has no value of any other key than the seed.

    It reads the measures `loss` and `score`, both of every model: a run, or a branch of a trunk.

    agreement  of a seed: Spearman's rank correlation of the score with the loss over its models, with the sign turned:
               1 where each model with a lower loss has a higher score

    Raises ValueError where no seed has three models.
    """
    keys = [name for name in table if name not in ("seed", "measure", "metric", "value")]
    places = [name for name in keys if table[name].notna().all()]
    rows = []
    for seed, part in table.groupby("seed", sort=False):
        points = (
            part.pivot_table(index=places, columns="measure", values="value").reindex(columns=[LOSS, SCORE]).dropna()
        )
        if len(points) >= LEAST:
            first = part.iloc[0].to_dict() | dict.fromkeys(name for name in places if name != "run")
            ranks = points[[LOSS, SCORE]].rank()
            agreement = -float(np.corrcoef(ranks[LOSS], ranks[SCORE])[0, 1])
            rows.append({**first, "seed": seed, "measure": AGREEMENT, "metric": AGREEMENT, "value": agreement})
    if not rows:
        raise ValueError(f"study=task_scaling ranks models: it needs {LEAST} of a seed, with a loss and a score each")
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
