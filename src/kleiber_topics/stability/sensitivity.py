"""Measures of `study=stability`: the learning-rate sensitivity of arms, and their largest attention logits.

The sensitivity is the mean over the learning rates of min(L(rate), L0) - L*, where L* is the loss at the rate of best
mean and L0 that of uniform predictions, which also stands for a run that diverged. It is 0 where every rate of the grid
is as good as the best one, and depends on the grid. Wortsman et al. 2023, arXiv:2309.14322, section 2.2; there L0 is
the loss at initialization.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from kleiber.config import Status, vocabulary_of, width_of
from kleiber.records import Run, rows_with
from kleiber.studies import Rows, arm_name
from kleiber.types import Json

LOSS, SENSITIVITY, BEST_LOSS, BEST_RATE, UNIFORM = "loss", "sensitivity", "best_loss", "best_rate", "uniform"
LOGIT, MEDIAN, LOGGED = "logit", "median_logit", "stability/attention_logit/"
PLACE = ["arm", "width"]


def rate_sensitivity(table: Rows, runs: Sequence[Run]) -> Rows:
    """Returns a panel's table of `loss` by `arm`, `width` and `rate` with the measures of the learning-rate grid.

    loss         as it is, at most that of uniform predictions, which also stands for runs that diverged
    sensitivity  of each seed: see above
    best_rate, best_loss  of an arm at a width: the rate of best mean over seeds, and its loss
    uniform      of an arm at a width: the share of runs that are no better than uniform predictions
    logit        of a run: the largest attention logit that it logged, before it diverged if it did
    median_logit  the median of these over seeds

    An arm without a finished run at a width has none of them. Raises ValueError where arms have other rates or seeds
    than the first one, since the sensitivity depends on both.
    """
    worst = math.log(vocabulary_of(runs[0].config["data"]))
    lost = [{**place_of(run), "value": worst} for run in runs if arm_name(run) and run.status == Status.DIVERGED]
    losses = pd.concat([table[table["measure"] == LOSS], pd.DataFrame(lost)], ignore_index=True)
    losses = losses.assign(measure=LOSS, metric=LOSS, value=losses["value"].clip(upper=worst))
    trained = set(table.groupby(PLACE).groups)
    losses = losses[[place in trained for place in zip(losses["arm"], losses["width"], strict=True)]]
    rows = [row for place, part in losses.groupby(PLACE, sort=False) for row in measures_of(part, worst)]
    refuse_other_grids(losses)
    others = table[table["measure"] != LOSS]
    return pd.concat([losses, others, pd.DataFrame(rows), logits(runs)], ignore_index=True)


def place_of(run: Run) -> Json:
    """Returns the columns of a run that the config tells."""
    config = run.config
    place = {"arm": arm_name(run), "width": width_of(config["model"]), "rate": float(config["optimizer"]["lr"])}
    return {"run": run.name, "seed": config["seed"], **place}


def measures_of(losses: Rows, worst: float) -> Iterator[Json]:
    """Yields the rows of one arm at one width; `worst` is the loss of uniform predictions."""
    place = {name: losses[name].iloc[0] for name in PLACE}
    by_rate = losses.astype({"rate": float}).pivot_table(index="seed", columns="rate", values="value")
    best = by_rate.mean().idxmin()
    sensitivities = by_rate.sub(by_rate[best], axis=0).mean(axis=1)
    for seed, value in sensitivities.items():
        yield {**place, "seed": seed, "measure": SENSITIVITY, "value": value}
    of_arm = {BEST_LOSS: by_rate[best].mean(), BEST_RATE: best, UNIFORM: (losses["value"] >= worst).mean()}
    for measure, value in of_arm.items():
        yield {**place, "measure": measure, "value": float(value)}


def refuse_other_grids(losses: Rows) -> None:
    """Raises ValueError unless all arms have the same learning rates and seeds at all widths."""
    grids = {place: {*zip(part["rate"], part["seed"], strict=True)} for place, part in losses.groupby(PLACE)}
    first = next(iter(grids.values()))
    for (arm, width), grid in grids.items():
        if grid != first:
            raise ValueError(
                f"{arm}, width {width}, has other rates and seeds than the first arm: runs are missing or have not "
                "finished, and the sensitivity depends on both"
            )


def logits(runs: Sequence[Run]) -> Rows:
    """Returns rows of the largest attention logit of each run, and of its median over seeds by arm, width and rate."""
    rows = []
    for run in runs:
        logged = [value for row in rows_with(run.rows, LOGGED) for key, value in row.items() if key.startswith(LOGGED)]
        finite = [value for value in logged if math.isfinite(value)]
        if arm_name(run) and finite:
            rows.append({**place_of(run), "measure": LOGIT, "value": max(finite)})
    if not rows:
        return pd.DataFrame()
    table: Rows = pd.DataFrame(rows)
    medians = table.groupby([*PLACE, "rate"], as_index=False, sort=False)["value"].median()
    return pd.concat([table, medians.assign(measure=MEDIAN)], ignore_index=True)
