"""Profile likelihoods: hold one parameter, refit the rest, and see how far it may move before the fit gets worse.

A profile that never rises on one side means that the data do not say: the parameter is "not identified", however sharp
its point value looks. Where rows are independent and equally noisy the interval is where the profile stays under the
threshold; elsewhere the profile is rescaled to the variance that the noise of trunks and sizes implies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.special import fdtri

from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.initial_guess import finish
from kleiber.studies.laws.law import Array, Linear, Shape
from kleiber.studies.laws.solve import descend

STEPS = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 11.0, 18.0, 30.0])
FAR = np.log(1e3)  # a factor of 1000 on either side, for parameters searched on a log scale


@dataclass(frozen=True)
class Profile:
    """One parameter's profile: values tried, the statistic at each, its interval, why not identified.

    path  all parameters at the values tried that stay under the threshold, (points, params): the parameter's own
          movement with the refits of the rest
    """

    name: str
    values: Array
    statistic: Array
    threshold: float
    lo: float
    hi: float
    reason: str = ""
    path: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def identified(self) -> bool:
        return not self.reason


def profiles(fit: Fit, level: float = 0.9, half_widths: Mapping[str, float] | None = None) -> dict[str, Profile]:
    """The profile of every parameter still in the law, by name.

    The statistic is (n - p) (S/S0 - 1) for squared loss, compared with F(1, n - p). For the Huber loss S grows like
    |r| in the tails, so the ratio enters with the power 1 + (share of residuals beyond delta): 2 for lad, where n log S
    is the Laplace likelihood. A term that can shrink 1000-fold, or a shape that can leave its search range, is flat.

    `half_widths` of intervals by another method, in solver coordinates (log where positive): the threshold of a
    parameter is then where the profile of a linear law would reach that far.
    """
    problem = fit.problem
    spare = problem.num_rows - problem.num_params
    names = [name for name, on in zip(fit.law.params, problem.active, strict=True) if on]
    if spare < 1:
        return {n: _blank(n, fit, f"{problem.num_rows} rows for {problem.num_params} parameters") for n in names}
    spread = fit.covariance()[0]
    power = 1.0 if problem.loss_fn == "squared" else 1.0 + float(np.mean(np.abs(fit.residuals) > problem.delta))
    if problem.loss_fn == "lad":
        power = 2.0
    usual = float(fdtri(1, spare, level))
    found = {}
    for j, name in enumerate(names):
        width = (half_widths or {}).get(name)
        threshold = usual if width is None else width**2 / max(spread[j, j], 1e-300)
        found[name] = _profile(fit, j, name, spread, spare, power, threshold)
    return found


def _profile(fit: Fit, j: int, name: str, spread: Array, spare: int, power: float, threshold: float) -> Profile:
    """All offsets of one parameter at once, each from the fit and from where the covariance says the rest would go."""
    log = bool(fit.law.log[fit.problem.active][j])
    width = float(np.sqrt(max(spread[j, j], 1e-24)))
    far = FAR if log else 30.0 * width
    steps = np.minimum(STEPS * width, far)
    steps = np.unique(np.concatenate([steps, far * np.array([0.25, 0.5, 1.0])])) if log else np.unique(steps)
    offsets = np.concatenate([-steps[::-1], steps])
    along = np.clip(offsets[:, None] * spread[j] / max(spread[j, j], 1e-24), -30, 30)
    along[:, j] = offsets
    starts = np.concatenate([fit.theta + along, np.repeat(fit.theta[None], len(offsets), axis=0)])
    starts[len(offsets) :, j] += offsets
    theta, _ = descend(fit.problem, starts, fixed=j, rounds=60, tolerance=1e-5)
    _, value = finish(fit.problem, theta, fixed=j)
    best = value.reshape(2, -1).argmin(0)
    value = value.reshape(2, -1).min(0)
    ratio = np.maximum(value / max(fit.value, 1e-300), 1.0)
    with np.errstate(over="ignore"):
        statistic = [0.0, *np.where(np.isfinite(ratio), spare * (ratio**power - 1), np.inf)]
    at = [fit.theta[j], *(fit.theta[j] + offsets)]
    order = np.argsort(at)
    refits = theta.reshape(2, len(offsets), -1)[best, np.arange(len(offsets))]
    path = fit.problem.values(refits[np.array(statistic)[1:] <= threshold])
    theta, stat = np.array(at)[order], np.array(statistic)[order]
    lo, hi = _crossing(theta, stat, threshold, fit.theta[j], -1), _crossing(theta, stat, threshold, fit.theta[j], 1)
    natural = np.exp if log else np.asarray
    lo, hi, value = float(natural(lo)), float(natural(hi)), float(natural(fit.theta[j]))
    reason = _reason(fit, name, float(natural(theta[0])), float(natural(theta[-1])), lo, hi, value)
    return Profile(name, natural(theta), stat, threshold, lo, hi, reason, path)


def _crossing(theta: Array, stat: Array, threshold: float, centre: float, sign: int) -> float:
    """Where the profile first exceeds the threshold on one side, by interpolating its square root; inf if never."""
    side = [i for i in np.argsort(sign * theta) if sign * (theta[i] - centre) >= 0]
    for a, b in pairwise(side):
        if stat[b] > threshold:
            low, high = np.sqrt(stat[a]), np.sqrt(min(stat[b], 1e12))
            share = (np.sqrt(threshold) - low) / max(high - low, 1e-300)
            return float(theta[a] + np.clip(share, 0, 1) * (theta[b] - theta[a]))
    return sign * np.inf


def _reason(fit: Fit, name: str, least: float, most: float, lo: float, hi: float, value: float) -> str:
    """Why the profile identifies nothing, or "" when it rises on both sides."""
    kind = fit.law.params[name]
    below = np.isfinite(lo) and (lo > 0 or not kind.log)
    if not below and not np.isfinite(hi):
        return f"flat profile from {least:.3g} to {most:.3g}"
    if not below:
        return f"flat profile below {hi:.3g}" + (": not told from 0" if isinstance(kind, Linear) and kind.log else "")
    if not np.isfinite(hi):
        return f"flat profile above {lo:.3g}"
    if isinstance(kind, Shape) and not kind.lo * (1 - 1e-9) <= value <= kind.hi * (1 + 1e-9) and kind.log:
        return f"{value:.3g} is outside its range [{kind.lo:g}, {kind.hi:g}]"
    return ""


def _blank(name: str, fit: Fit, reason: str) -> Profile:
    value = fit.params[name]
    return Profile(name, np.array([value]), np.zeros(1), 0.0, float("-inf"), float("inf"), reason)
