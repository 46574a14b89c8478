"""The trials of a search, as the study `search` reads them from its runs, and their tuning curve.

A tuning curve is the best loss after k trials, with a band that assumes nothing about the losses. The mean is the
unbiased estimate (Dodge et al. 2019, arXiv:1909.03004, as corrected by Tang et al. 2020). The band is that of the
median best loss, from a simultaneous confidence band of the distribution function (Lourie et al. 2023,
arXiv:2311.09480). It holds for trials that are drawn independently; Sobol points fill the space more evenly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import betainc, betaincinv, gammaln

from kleiber.config.errors import Status
from kleiber.config.stages import quantity
from kleiber.records.catalog import Run
from kleiber.studies.designs.design import parse_lines
from kleiber.studies.designs.trial_losses import validation_loss
from kleiber.studies.laws.law import Array

ENDED = (Status.FINISHED, Status.DIVERGED, Status.FAILED)
SIMULATIONS = 4000  # behind the levels of a band


def expected_best(losses: Sequence[float], count: int) -> float:
    """Returns the unbiased estimate of the expected least loss of `count` trials; inf where too many diverged.

    losses  of at least `count` trials; inf for one that diverged
    """
    ordered = np.sort(np.asarray(losses, dtype=np.float64))
    n = len(ordered)
    later = n - 1 - np.arange(n)  # trials that are no better than the i-th best
    possible = later >= count - 1
    log = np.full(n, -np.inf)
    log[possible] = _log_choose(later[possible].astype(np.float64), count - 1) - _log_choose(
        np.array([float(n)]), count
    )
    weights = np.exp(log)
    return float((weights[weights > 0] * ordered[weights > 0]).sum())


def _log_choose(n: Array, k: int) -> Array:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0), dtype=np.float64)


@cache
def distribution_band(n: int, level: float) -> tuple[Array, Array]:
    """Returns simultaneous bounds of the distribution function at the n ordered losses, (n,) each.

    Each bound has the same local level (the intervals of the beta distribution of an order statistic), chosen by
    simulation so that all of them hold together with the probability `level`.
    """
    rank = np.arange(1, n + 1)
    uniform = np.sort(np.random.default_rng(0).random((SIMULATIONS, n)), axis=1)
    below = betainc(rank, n + 1 - rank, uniform)
    local = np.quantile(2 * np.minimum(below, 1 - below).min(axis=1), 1 - level)
    lo, hi = (betaincinv(rank, n + 1 - rank, share) for share in (local / 2, 1 - local / 2))
    return np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)


def median_band(losses: Sequence[float], level: float) -> tuple[Array, Array]:
    """Returns bounds of the median of the least loss of 1, 2, ..., n trials, (n,) each, that hold together at `level`.

    The lower bound is -inf where so many trials might find a lower loss than any so far.
    """
    ordered = np.sort(np.asarray(losses, dtype=np.float64))
    n = len(ordered)
    lo, hi = distribution_band(n, level)
    share = 1 - 0.5 ** (1 / np.arange(1, n + 1))  # the quantile of one loss that is the median of the least of k
    before = np.searchsorted(hi, share)  # losses whose distribution function is certainly below the quantile
    after = np.searchsorted(lo, share)
    with_ends = np.concatenate([[-np.inf], ordered, [np.inf]])
    return with_ends[before], with_ends[after + 1]


def curve(losses: Sequence[float], level: float) -> list[dict[str, float | None]]:
    """Returns a row for each number of trials: the expected best loss, and the band of the median; None if infinite."""
    lo, hi = median_band(losses, level)
    rows = []
    for count in range(1, len(losses) + 1):
        values = {"mean": expected_best(losses, count), "lo": float(lo[count - 1]), "hi": float(hi[count - 1])}
        rows.append({"trials": count, **{name: x if np.isfinite(x) else None for name, x in values.items()}})
    return rows


def running_best(losses: Sequence[float]) -> list[dict[str, float | None]]:
    """Returns a row for each number of trials: the least loss so far, for trials that depend on each other."""
    best = np.minimum.accumulate(np.asarray(losses, dtype=np.float64)).tolist()
    finite = [value if np.isfinite(value) else None for value in best]
    return [{"trials": count, "mean": value, "lo": None, "hi": None} for count, value in enumerate(finite, 1)]


@dataclass(frozen=True)
class Trials:
    """The runs of a search.

    values    value of each searched key, by trial
    searched  loss at each number of tokens, by trial, with the seed of the search; inf where it diverged or failed
    held_out  loss at the most tokens by trial and held-out seed
    """

    values: Mapping[str, Mapping[str, str]]
    searched: Mapping[float, Mapping[str, float]]
    held_out: Mapping[str, Mapping[int, float]]

    @property
    def first(self) -> Mapping[str, float]:
        """The losses of all trials at the first number of tokens."""
        return next(iter(self.searched.values()))

    @property
    def finalists(self) -> dict[str, dict[int, float]]:
        """The held-out losses of the trials that have all held-out seeds of the search and diverged with none."""
        seeds = sorted({seed for losses in self.held_out.values() for seed in losses})
        finite = {name: dict(losses) for name, losses in self.held_out.items() if name not in self.diverged}
        return {name: losses for name, losses in finite.items() if sorted(losses) == seeds} if len(seeds) > 1 else {}

    @property
    def diverged(self) -> dict[str, int]:
        """The number of held-out seeds with which a trial diverged or failed, by trial, where there are any."""
        counts = {name: sum(map(math.isinf, losses.values())) for name, losses in self.held_out.items()}
        return {name: count for name, count in counts.items() if count}


def read_trials(runs: Sequence[Run]) -> Trials:
    """Reads the trials of a search from its runs. Raises ValueError if none has ended.

    Also for a finished run without exactly one validation loss.
    """
    rows, keys = [], set[str]()
    for run in runs:
        name = (run.config.get("study") or {}).get("arm")
        if name is None or not str(name).startswith("trial") or run.status not in ENDED:
            continue
        lines, spaces = parse_lines(run.overrides), run.config["design"]["keys"]
        keys |= {key for key, space in spaces.items() if space is not None}
        loss = validation_loss(run) if run.finished else math.inf
        tokens = quantity(run.config["budget"]["tokens"])
        seed = int(run.config["seed"])
        rows.append({"trial": str(name), "seed": seed, "tokens": tokens, "loss": loss, "lines": lines})
    if not rows:
        raise ValueError("no finished trial: this study reads cells that design=search made")
    values = values_of({row["trial"]: row["lines"] for row in rows}, keys)
    for row in rows:
        if any(row["lines"].get(key, "") != value for key, value in values[row["trial"]].items()):
            raise ValueError(
                f"the runs of {row['trial']} have different values of the searched keys, since design.keys or the "
                "sampler was changed: use a new folder for the new search with name=NEW_NAME"
            )
    order = sorted(values, key=lambda name: int(name.removeprefix("trial")))
    searched: dict[float, dict[str, float]] = {}
    held_out: dict[str, dict[int, float]] = {}
    first_seed, most = min(row["seed"] for row in rows), max(row["tokens"] for row in rows)
    for row in rows:
        if row["seed"] == first_seed:
            searched.setdefault(row["tokens"], {})[row["trial"]] = row["loss"]
        elif row["tokens"] == most:
            held_out.setdefault(row["trial"], {})[row["seed"]] = row["loss"]
    by_length = {
        length: {name: searched[length][name] for name in order if name in searched[length]}
        for length in sorted(searched)
    }
    ordered = {name: dict(sorted(held_out[name].items())) for name in order if name in held_out}
    return Trials({name: values[name] for name in order}, by_length, ordered)


def values_of(lines: Mapping[str, Mapping[str, str]], keys: Collection[str]) -> dict[str, dict[str, str]]:
    """Returns the values of those of the searched keys that differ between trials, by trial."""
    ordered = dict.fromkeys(key for by_key in lines.values() for key in by_key if key in keys)
    varied = [key for key in ordered if len({by_key.get(key) for by_key in lines.values()}) > 1]
    return {name: {key: by_key.get(key, "") for key in varied} for name, by_key in lines.items()}


def as_numbers(values: Sequence[str]) -> list[float] | None:
    """Returns the values of a key as numbers; None if one is none."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def last_loss(trials: Trials, name: str) -> float | None:
    """The loss of a trial with the seed of the search, at the most tokens that it was trained for."""
    losses = [by_trial[name] for by_trial in trials.searched.values() if name in by_trial]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None
