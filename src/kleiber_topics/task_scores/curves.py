"""Laws of task scores between 0 and 1: as a function of a loss, or directly of parameters N and tokens D.

Each has a variant with a fixed chance level, an input `floor`, and one that fits it. Scores never exceed 1.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from kleiber.studies import Array, Exponent, Law, Part, Shape, describe

Middle = Annotated[Array, Shape(0.1, 12.0, log=False)]
Slope = Annotated[Array, Shape(0.3, 30.0)]
Rate = Annotated[Array, Shape(0.05, 5.0)]
Size = Annotated[Array, Shape(1e-2, 1e8)]
LARGEST = 500.0  # of an exponent


def sigmoid(loss: Array, floor: Array, *, top: Part, middle: Middle, slope: Slope) -> Array:
    """Sigmoid of the loss: floor + (1 - floor) min(top, 1) / (1 + exp(slope (loss - middle))).

    Source: Bhagia et al. 2024 (OLMo ladder), arXiv:2412.04403
    """
    logit = np.clip(slope * (loss - middle), -LARGEST, LARGEST)
    return floor + (1 - floor) * np.minimum(top, 1.0) / (1 + np.exp(logit))


def sigmoid_free(loss: Array, *, floor: Part, top: Part, middle: Middle, slope: Slope) -> Array:
    """Sigmoid of the loss with a fitted floor: floor + (1 - floor) min(top, 1) / (1 + exp(slope (loss - middle))).

    Source: Bhagia et al. 2024 (OLMo ladder), arXiv:2412.04403
    """
    return sigmoid(loss, np.minimum(floor, 1.0), top=top, middle=middle, slope=slope)


def exponential(loss: Array, floor: Array, *, k: Part, gamma: Rate) -> Array:
    """Exponential of the loss: min(floor + k exp(-gamma loss), 1).

    Source: Gadre et al. 2024, arXiv:2403.08540
    """
    return np.minimum(floor + k * np.exp(-gamma * loss), 1.0)


def exponential_free(loss: Array, *, floor: Part, k: Part, gamma: Rate) -> Array:
    """Exponential of the loss with a fitted floor: min(floor + k exp(-gamma loss), 1).

    Source: Gadre et al. 2024, arXiv:2403.08540
    """
    return exponential(loss, floor, k=k, gamma=gamma)


def direct(N: Array, D: Array, floor: Array, *, A: Size, B: Size, alpha: Exponent) -> Array:
    """Score of N and D: floor + (1 - floor) exp(-A N^-alpha - B D^-alpha).

    Source: Krajewski et al. 2025, arXiv:2512.08894, with N and D in place of compute
    """
    return floor + (1 - floor) * np.exp(-A * N**-alpha - B * D**-alpha)


def direct_free(N: Array, D: Array, *, floor: Part, A: Size, B: Size, alpha: Exponent) -> Array:
    """Score of N and D with a fitted floor: floor + (1 - floor) exp(-A N^-alpha - B D^-alpha).

    Source: Krajewski et al. 2025, arXiv:2512.08894, with N and D in place of compute
    """
    return direct(N, D, np.minimum(floor, 1.0), A=A, B=B, alpha=alpha)


FORMS = ("sigmoid", "exponential")
CURVES: dict[str, Law] = {
    function.__name__: describe(function)
    for function in (sigmoid, sigmoid_free, exponential, exponential_free, direct, direct_free)
}
