"""Measures of `study=rlhf`: what policies gain at equal divergence from their start, and where the reward misleads.

A run is read as a path: its evaluations during training, with straight lines between them. Where the path first reaches
a distance, the root of the divergence from the start, its scores are read off (Gao et al. 2022, arXiv:2210.10760).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from kleiber.records import Run
from kleiber.studies import Rows, arm_name
from kleiber.types import Json
from kleiber_topics.rewards.matched import value_of

DISTANCES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)  # roots of nats per answer, at which arms are compared
KL = "eval/proxy_reward/*/kl"
SCORES = {
    "proxy": "eval/proxy_reward/*/score",
    "utility": "eval/win_rate/*/utility",
    "win_rate": "eval/win_rate/*/win_rate",
    "forgetting": "eval/perplexity/*/loss",
}
SINCE_START = ("proxy", "utility", "forgetting")  # of which the value at the start is subtracted


def scores_at_distances(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table with the path of each run, its scores at each distance, and what its second half changes.

    path_distance, path_proxy, path_utility  at each evaluation, by `arm` and `step`
    at_proxy, at_utility, at_win_rate, at_forgetting  at a `distance` from the start: the changes of the reward model's
                  score, of the true utility and of the loss on the old text, and the win rate
    late_proxy, late_utility  changes from the evaluation in the middle of training to the last one
    """
    rows: list[Json] = []
    for run in runs:
        if not run.finished or not arm_name(run):
            continue
        path = path_of(run)
        place = {"run": run.name, "seed": run.config["seed"], "arm": arm_name(run), "metric": ""}
        rows += [{**place, **row} for row in [*along(path), *at_distances(path)]]
        middle = path.iloc[(path["step"] - path["step"].iloc[-1] / 2).abs().argmin()]
        for name in ("proxy", "utility"):
            rows.append({**place, "measure": f"late_{name}", "value": path[name].iloc[-1] - middle[name]})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def path_of(run: Run) -> Rows:
    """Returns the evaluations of a run, from the start on: step, distance and scores.

    Raises ValueError where no evaluation has all of the scores.
    """
    rows = []
    for row in [{"step": 0, **run.stage["start_metrics"]}, *run.stage["curve"]]:
        values = {name: value_of(row, pattern) for name, pattern in {"kl": KL, **SCORES}.items()}
        if None not in values.values():
            rows.append({"step": row["step"], **values})
    if not rows:
        raise ValueError(f"{run.name} has no evaluation with {', '.join(['kl', *SCORES])}")
    path: Rows = pd.DataFrame(rows)
    path["distance"] = np.sqrt(path["kl"].clip(lower=0))
    for name in SINCE_START:
        path[name] -= path[name].iloc[0]
    return path


def along(path: Rows) -> Iterator[Json]:
    """Yields the distance and the scores of each evaluation after the start."""
    for _, row in path.iloc[1:].iterrows():
        for name in ("distance", "proxy", "utility"):
            yield {"step": row["step"], "measure": f"path_{name}", "value": row[name]}


def at_distances(path: Rows) -> Iterator[Json]:
    """Yields the scores where a path first reaches each distance."""
    for distance in DISTANCES:
        for (_, before), (_, after) in itertools.pairwise(path.iterrows()):
            if before["distance"] < distance <= after["distance"]:
                share = (distance - before["distance"]) / (after["distance"] - before["distance"])
                for name in SCORES:
                    value = before[name] + share * (after[name] - before[name])
                    yield {"distance": distance, "measure": f"at_{name}", "value": value}
                break
