"""The law of optimal hyperparameters: learning rate c N^a D^b, batch d D^e, weight decay g (D/N)^h; and critical batch.

Source: Li et al. 2025 (Step Law), arXiv:2503.04715; Bergsma et al. 2025, arXiv:2505.13738 (weight decay)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from kleiber.studies.laws.law import Array, Exponent, Law, Part, Real, Shape, law

# The scale of each hyperparameter's power law, and the input and name of each of its exponents.
POWERS: dict[str, tuple[str, dict[str, str]]] = {
    "lr": ("c", {"N": "a", "D": "b"}),
    "batch": ("d", {"D": "e"}),
    "decay": ("g", {"M": "h"}),
}
TERMS = {"lr": "c N^a D^b", "batch": "d D^e", "decay": "g (D/N)^h"}
SOURCE = "Li et al. 2025, arXiv:2503.04715"
LARGEST = 690.0  # of a logarithm whose exponential is finite
EXPONENT = Shape(-10.0, 10.0, log=False)
NAME = "hyperparameter"


@dataclass(frozen=True)
class HyperparameterLaw(Law):
    """The law of the optimal hyperparameters; its inputs are N and D, and its target is the learning rate.

    axes  the hyperparameters that are swept: lr and, where the table has them, batch and decay
    """

    axes: tuple[str, ...] = ("lr",)

    def for_params(self, names: Collection[str]) -> HyperparameterLaw:
        """Returns the law of the hyperparameters whose scales are among the parameters `names`."""
        return of_axes([axis for axis, (scale, _) in POWERS.items() if scale in names])

    @property
    def exponents(self) -> dict[str, str]:
        """Names of the parameters that are exponents, such as a, by their derived names, such as lr_N."""
        return {f"{axis}_{name}": exponent for axis in self.axes for name, exponent in POWERS[axis][1].items()}

    def coordinates(self, draws: Array) -> Array:
        """Returns draws of the parameters (draws, params) with the logarithms of the scales."""
        scales = np.array([name not in self.exponents.values() for name in self.params])
        return np.where(scales, np.log(np.where(scales, draws, 1.0)), draws)

    def optimum(self, axis: str, inputs: Mapping[str, Array], values: Array) -> Array:
        """Returns the optimal value of a hyperparameter for parameters (draws, params), (draws, rows)."""
        scale, exponents = POWERS[axis]
        named = {name: column[:, None] for name, column in self.named(np.atleast_2d(values)).items()}
        logs = np.log(named[scale])
        for name, exponent in exponents.items():
            logs = logs + named[exponent] * np.log(inputs[name])
        return np.exp(np.clip(logs, -LARGEST, LARGEST))


def of_axes(axes: Sequence[str]) -> HyperparameterLaw:
    """Returns the law of some hyperparameters, in the order lr, batch, decay."""
    kept = tuple(axis for axis in POWERS if axis in axes)
    params: dict[str, Shape] = {}
    for axis in kept:
        scale, exponents = POWERS[axis]
        params |= {scale: Shape(1e-300, 1e300), **dict.fromkeys(exponents.values(), EXPONENT)}
    derived = {
        f"{axis}_{name}": (lambda p, exponent=exponent: p[exponent])
        for axis in kept
        for name, exponent in POWERS[axis][1].items()
    }
    formula = ", ".join(f"{axis}* = {TERMS[axis]}" for axis in kept)

    def best_rate(N: Array, D: Array, *, c: Array, a: Array, b: Array, **_: Array) -> Array:
        return c * N**a * D**b

    return HyperparameterLaw(
        NAME, best_rate, ("N", "D"), params, formula, SOURCE, loss_fn="squared", derived=derived, axes=kept,
        swept=("lr", "batch", "decay"),
    )  # fmt: skip


@law(aliases=("mccandlish",), derived={"b_1M": lambda p: p["b"] * 1e6 ** p["e"]})
def critical_batch(
    D: Array, batch: Array, *, E: Part, A: Part, b: Annotated[Array, Shape(1e-3, 1e30)], e: Real, beta: Exponent
) -> Array:
    """Critical batch: L = E + A (D / (1 + batch/b*))^-beta with b* = b D^e, in tokens; b_1M is b* at D = 1M.

    At batch = b*, steps take twice the tokens that very small steps need for the same loss. Map losses at one size,
    each at the best learning rate for its batch, and leave out batches below the best one, where Adam's losses rise.
    Source: McCandlish et al. 2018, eq. 2.11, arXiv:1812.06162; Zhang et al. 2024, arXiv:2410.21676 (power of D)
    """
    return E + A * (D / (1 + batch / (b * D**e))) ** -beta
