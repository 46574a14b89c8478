"""The law of learning-rate schedules: the loss at a step as a function of the learning rates until then.

Both forms are L = E + A S^-alpha minus what the decay of the rate has gained, where S is the sum of the rates:

    annealing    C sum_k (rate_{k-1} - rate_k) tau (1 - exp(-(t - k) / tau)), with the momentum lambda = exp(-1 / tau)
    multi_power  B sum_k (rate_{k-1} - rate_k) G(rate_k^-gamma S_k(t)), G(x) = 1 - (C x + 1)^-beta, S_k the sum since k

Decay counts from the end of the warm-up. Between logged steps the rate is interpolated linearly; before the first
logged step it rises linearly from 0.
Source: Tissue et al. 2024, arXiv:2408.11029 (annealing); Luo et al. 2025, arXiv:2503.12811 (multi_power)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kleiber.studies import Array

LEAST_LOSS = 1e-3  # a candidate law that predicts less is searched as if it predicted this
LEAST_RATE = 1e-6  # of the peak rate; the rate after a decay to 0 counts as this
SAME_RATE = 1e-9  # of the peak rate; smaller changes are rounding
CELLS = 4_000_000  # numbers that an evaluation keeps in memory


@dataclass(frozen=True)
class RatePath:
    """The learning rates of one run, as the forms of the law read them.

    steps, sums   (points,) steps at which the loss is computed, and the sum of the rates until there
    drops, rates  (changes,) decreases of the rate, and the rate after each
    drop_steps, drop_sums   (changes,) steps at which the rate changes, and the sum of the rates until there
    """

    steps: Array
    sums: Array
    drops: Array
    rates: Array
    drop_steps: Array
    drop_sums: Array


def rate_sums(steps: Array, rates: Array) -> Array:
    """Returns the sum of the learning rates until each logged step."""
    between = np.diff(steps) * (rates[1:] + rates[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(between)]) + steps[0] * rates[0] / 2


def warmup_end(rates: Array) -> int:
    """Returns the position of the last logged rate before the rate falls for the first time."""
    falls = np.flatnonzero(np.diff(rates) < -SAME_RATE * rates.max())
    return int(falls[0]) if len(falls) else len(rates) - 1


def warmup_length(rates: Array) -> int:
    """Returns the number of logged rates before the first that is as large as the last of the warm-up."""
    top = rates[warmup_end(rates)]
    return int(np.argmax(rates >= top * (1 - SAME_RATE)))


def rate_path(steps: Array, rates: Array, at: Array, most_changes: int = 400) -> RatePath:
    """Returns the path of the logged learning rates, with points at the steps `at`.

    most_changes  of the rate; of more, neighbors are joined
    """
    sums, peak, first = rate_sums(steps, rates), float(rates.max()), warmup_end(rates)
    drops = rates[:-1] - rates[1:]
    drops[:first] = 0.0
    kept = np.flatnonzero(np.abs(drops) > SAME_RATE * peak)
    middle = {"steps": (steps[1:] + steps[:-1]) / 2, "sums": (sums[1:] + sums[:-1]) / 2, "rates": rates[1:]}
    joined = {name: column[kept] for name, column in middle.items()}
    size: Array = drops[kept]
    if len(kept) > most_changes:
        group = np.arange(len(kept)) * most_changes // len(kept)
        weight = np.bincount(group, np.abs(size))
        joined = {name: np.bincount(group, np.abs(size) * column) / weight for name, column in joined.items()}
        size = np.bincount(group, size).astype(np.float64)
    # A rate between two logged steps changes the sum quadratically; the error is far below the noise of a loss.
    return RatePath(
        at, np.interp(at, steps, sums), size, np.maximum(joined["rates"], LEAST_RATE * peak), joined["steps"],
        joined["sums"],
    )  # fmt: skip


Named = Mapping[str, Array]
Gain = Callable[[RatePath, Named], Array]
Slopes = Callable[[RatePath, Mapping[str, float]], dict[str, Array]]


def annealing_gain(path: RatePath, p: Named) -> Array:
    """Returns what the decay has gained by the annealing form, (draws, points); parameters are (draws, 1)."""
    since = np.maximum(path.steps[:, None] - path.drop_steps, 0.0)
    tau = p["tau"][:, :, None]
    return p["C"] * ((tau * -np.expm1(-since / tau)) @ path.drops)


def multi_power_gain(path: RatePath, p: Named) -> Array:
    """Returns what the decay has gained by the multi-power form, (draws, points); parameters are (draws, 1)."""
    since = np.maximum(path.sums[:, None] - path.drop_sums, 0.0)
    scale = p["C"] * path.rates ** -p["gamma"]  # (draws, changes)
    grown = np.log1p(scale[:, None, :] * since)
    return p["B"] * (-np.expm1(-p["beta"][:, :, None] * grown) @ path.drops)


def annealing_slopes(path: RatePath, p: Mapping[str, float]) -> dict[str, Array]:
    """Returns the derivatives of `annealing_gain` by the logarithms of its parameters, (points,) each."""
    since = np.maximum(path.steps[:, None] - path.drop_steps, 0.0)
    left = np.exp(-since / p["tau"])
    reached = p["tau"] * (1 - left)
    return {"C": p["C"] * (reached @ path.drops), "tau": p["C"] * ((reached - since * left) @ path.drops)}


def multi_power_slopes(path: RatePath, p: Mapping[str, float]) -> dict[str, Array]:
    """Returns the derivatives of `multi_power_gain` by the logarithms of its parameters, (points,) each."""
    since = np.maximum(path.sums[:, None] - path.drop_sums, 0.0)
    grown = p["C"] * path.rates ** -p["gamma"] * since
    log = np.log1p(grown)
    left = np.exp(-p["beta"] * log)
    by_scale = p["B"] * p["beta"] * left * (grown / (1 + grown))
    return {
        "B": p["B"] * ((1 - left) @ path.drops),
        "C": by_scale @ path.drops,
        "beta": p["B"] * p["beta"] * ((log * left) @ path.drops),
        "gamma": -p["gamma"] * (by_scale @ (np.log(path.rates) * path.drops)),
    }


@dataclass(frozen=True)
class Prior:
    """What is expected of a parameter before the fit: the median, and the standard deviation of its logarithm.

    per_rate  whether the median is of the parameter times the peak rate to this power
    """

    median: float
    sd: float
    per_rate: float = 0.0


@dataclass(frozen=True)
class Form:
    """One form of the law.

    gain    of the decay; slopes, its derivatives by the logarithms of the parameters
    priors  of the parameters that few schedules determine badly
    """

    name: str
    params: tuple[str, ...]
    formula: str
    source: str
    gain: Gain
    slopes: Slopes
    priors: tuple[tuple[str, Prior], ...]

    def losses(self, path: RatePath, values: Array) -> Array:
        """Returns the loss at the points of a path for parameters (draws, params), (draws, points)."""
        cells = max(1, len(path.steps) * max(1, len(path.drops)))
        parts = np.array_split(values, max(1, int(np.ceil(len(values) * cells / CELLS))))
        return np.concatenate([self._losses(path, part) for part in parts if len(part)])

    @np.errstate(all="ignore")
    def gradient(self, path: RatePath, values: Array) -> Array:
        """Returns the derivatives of the loss by the logs of the parameters `values`, (points, params)."""
        p = dict(zip(self.params, values.tolist(), strict=True))
        power = p["A"] * path.sums ** -p["alpha"]
        columns = {"E": np.full(len(power), p["E"]), "A": power, "alpha": -p["alpha"] * np.log(path.sums) * power}
        gains = self.slopes(path, p) if len(path.drops) else {}
        columns |= {name: -column for name, column in gains.items()}
        empty = np.zeros(len(power))
        return np.nan_to_num(np.column_stack([columns.get(name, empty) for name in self.params]))

    @np.errstate(all="ignore")
    def _losses(self, path: RatePath, values: Array) -> Array:
        p = {name: values[:, j : j + 1] for j, name in enumerate(self.params)}
        trend = p["E"] + p["A"] * path.sums ** -p["alpha"]
        loss = trend - self.gain(path, p) if len(path.drops) else trend
        return np.maximum(np.nan_to_num(loss, nan=LEAST_LOSS), LEAST_LOSS)


COMMON = (("alpha", Prior(0.5, 0.5)),)
# Medians: round numbers near the fits of three sizes in arXiv:2503.12811, table 7; of tau, a momentum of 0.999.
# Standard deviations: factors of about 2 for C, B and tau, and of 1.35 for the exponents.
ANNEALING = Form(
    "annealing", ("E", "A", "alpha", "C", "tau"),
    "L = E + A S1^-alpha - C S2, S2 = sum of (rate_{k-1} - rate_k) lambda^(i-k) over k <= i <= t, lambda = exp(-1/tau)",
    "Tissue et al. 2024, arXiv:2408.11029", annealing_gain, annealing_slopes,
    (*COMMON, ("C", Prior(1.5e-4, 2.0, per_rate=-1.0)), ("tau", Prior(1000.0, 1.0))),
)  # fmt: skip
MULTI_POWER = Form(
    "multi_power", ("E", "A", "alpha", "B", "C", "beta", "gamma"),
    "L = E + A S1^-alpha - B sum_k (rate_{k-1} - rate_k) (1 - (C rate_k^-gamma S_k + 1)^-beta)",
    "Luo et al. 2025, arXiv:2503.12811", multi_power_gain, multi_power_slopes,
    (*COMMON, ("B", Prior(0.13, 1.0, per_rate=-1.0)), ("C", Prior(2.0, 0.7)), ("beta", Prior(0.6, 0.3)),
     ("gamma", Prior(0.6, 0.3))),
)  # fmt: skip
FORMS = {form.name: form for form in (MULTI_POWER, ANNEALING)}
