"""The numbers of a fitted law with their intervals: parameters and derived quantities, as laws.json holds them.

One number has one interval, by the method that suits the rows: percentiles of refits where there are any
(`bootstrap.Draws.method`), the profile of the objective otherwise. A parameter whose profile never rises on one side is
not identified, nor is a derived quantity that such a parameter moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import fdtri

from kleiber.studies.laws import verdicts
from kleiber.studies.laws.bootstrap import Draws, interval
from kleiber.studies.laws.fit import Fit, depends
from kleiber.studies.laws.law import Array, Linear
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.profile_likelihood import Profile, profiles

VANISHED = 1e-3  # of its value, below which the end of a term's interval is not told from 0
MOVED = 0.5  # widths of its interval by which a flat parameter may move a derived quantity that is identified


def profile_parameters(model: NoiseModel, draws: Draws | None, level: float) -> dict[str, Profile]:
    """Profiles of all parameters, on the scale of the intervals that their noise calls for.

    Refits may widen that scale and not narrow it: along a flat profile they stay near the fit that they begin at.
    """
    widths = _noise_half_widths(model, level)
    if draws is not None:
        least = _linear_half_widths(model.fit, level) if widths is None else widths
        widths = {name: max(width, least[name]) for name, width in _percentile_half_widths(draws, level).items()}
    return profiles(model.fit, level, widths)


def _linear_half_widths(found: Fit, level: float) -> dict[str, float]:
    """Half the width of each parameter's interval for a linear fit to independent rows, in solver coordinates."""
    spare = found.problem.num_rows - found.problem.num_params
    widths = np.sqrt(fdtri(1, max(spare, 1), level) * np.diag(found.covariance()[0]))
    return dict(zip(_active(found), widths.tolist(), strict=True))


def _percentile_half_widths(draws: Draws, level: float) -> dict[str, float]:
    """Half the width of each parameter's percentile interval in solver coordinates."""
    with np.errstate(divide="ignore"):
        lo, hi = interval(draws.fit.problem.coordinates(draws.values), level)
    return dict(zip(_active(draws.fit), ((hi - lo) / 2).tolist(), strict=True))


def _noise_half_widths(model: NoiseModel, level: float) -> dict[str, float] | None:
    """Half the width of each parameter's interval in solver coordinates, from the variance components alone.

    The profile's own half-width, times the factor by which trunks and sizes inflate the standard error of a linear fit.
    None where rows are independent and equally noisy, which needs no factor.
    """
    found, noise = model.fit, model.components()
    if noise is None or (model.clusters is None and noise.slope == 0):
        return None
    influence = np.linalg.pinv(found.problem.exact_jacobian(found.theta[None])[0])
    variance, df = noise.variance(influence, model.layout)
    spread = np.diag(found.covariance()[0])
    independent = np.maximum((influence**2).sum(1) * found.noise**2, 1e-300)
    widths = np.sqrt(fdtri(1, df, level) * spread * variance / independent)
    return dict(zip(_active(found), widths.tolist(), strict=True))


def _active(found: Fit) -> list[str]:
    return [name for name, on in zip(found.law.params, found.problem.active, strict=True) if on]


def parameters(
    model: NoiseModel, draws: Draws | None, profiled: Mapping[str, Profile], level: float
) -> dict[str, dict[str, Any]]:
    """Value, interval, its method and identifiability by parameter; an open end of an interval is null."""
    found, entries = model.fit, {}
    tight = verdicts.narrow(found)
    method = draws.method if draws else "profile" if model.clusters is None else "cluster t"
    ends = dict(zip(found.law.params, np.transpose(interval(draws.values, level)), strict=True)) if draws else {}
    for name, value in found.params.items():
        profile = profiled.get(name)
        if profile is None:
            reason = "dropped at 0"
            entries[name] = {"value": 0.0, "lo": 0.0, "hi": None, "identified": False, "reason": reason}
            continue
        lo, hi = ends.get(name, (profile.lo, profile.hi))
        reason = profile.reason or (tight if name == "E" else "") or _vanishing(found, name, value, lo)
        lo, hi = (float(end) if np.isfinite(end) and not profile.reason else None for end in (lo, hi))
        entries[name] = {"value": value, "lo": lo, "hi": hi, "identified": not reason, "reason": reason}
        if lo is not None or hi is not None:
            entries[name]["method"] = method
    for name, value in found.law.fixed.items():
        entries[name] = {"value": value, "lo": None, "hi": None, "identified": True, "fixed": True}
    return entries


def _vanishing(found: Fit, name: str, value: float, lo: float) -> str:
    """Why a term whose interval begins at 0 is not identified."""
    kind = found.law.params[name]
    if isinstance(kind, Linear) and kind.log and lo < VANISHED * value:
        return f"its interval begins at {lo:.2g}: not told from 0"
    return ""


def derived(
    found: Fit, draws: Draws | None, profiled: Mapping[str, Profile], level: float
) -> dict[str, dict[str, Any]]:
    """Value, interval, its method and identifiability of each quantity that follows from the parameters."""
    entries: dict[str, dict[str, Any]] = {}
    sampled, untold = draws.derive() if draws else {}, found.law.derive(found.untold())
    along = {name: found.law.derive(path) for name, path in flat_paths(profiled).items()}
    for name, value in found.law.derive(found.values).items():
        lo, hi = interval(sampled[name], level) if name in sampled else (np.nan, np.nan)
        reason = ""
        if found.dropped:
            reason = f"{', '.join(found.dropped)} was dropped at 0"
        elif depends(untold[name]):
            reason = "the rows leave it open"
        elif not np.isfinite(np.array([float(lo), float(hi), float(value[0])])).all():
            reason = "no interval"
        else:
            moving = [flat for flat, path in along.items() if _outside(path[name], float(lo), float(hi))]
            if moving:
                reason = f"{', '.join(moving)} is not identified and moves it"
        entries[name] = {
            "value": float(value[0]) if np.isfinite(value[0]) else None,
            "lo": None if reason else float(lo), "hi": None if reason else float(hi),
            "identified": not reason, "reason": reason,
        }  # fmt: skip
        if draws and not reason:
            entries[name]["method"] = draws.method
    return entries


def flat_paths(profiled: Mapping[str, Profile]) -> dict[str, Array]:
    """All parameters along the flat part of each profile that does not identify its own, (points, params)."""
    return {name: one.path for name, one in profiled.items() if one.reason and len(one.path)}


def _outside(path: Array, lo: float, hi: float) -> bool:
    """Whether a path leaves the interval by more than half of its width."""
    room = MOVED * (hi - lo)
    return bool(np.isfinite(path).any() and ((path < lo - room) | (path > hi + room)).any())
