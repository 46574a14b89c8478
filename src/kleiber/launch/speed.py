"""The measured speed of a run, and the seconds of a step of another size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Speed:
    """Measured speed of one run.

    flops_per_step  training FLOPs of a step, by the key of the stage (`stage_key`)
    step            seconds of a step, by the same keys
    evaluation      seconds of an evaluated token, over seconds of a training token
    once            seconds that a stage spends once on preparing, compiling and writing, averaged over the stages
    memory_bytes    largest memory of the process so far
    """

    flops_per_step: Mapping[str, float]
    step: Mapping[str, float]
    evaluation: float
    once: float
    memory_bytes: int


def step_seconds(flops: float, key: str, speeds: Sequence[Speed]) -> float:
    """Returns the seconds of an optimizer step of `flops` FLOPs.

    FLOP/s are interpolated over the logarithm of the FLOPs of a step.

    key  of the stage (`stage_key`)
    """
    points: dict[float, list[float]] = {}
    for speed in speeds:
        for name in speed.step if key not in speed.step else (key,):
            points.setdefault(speed.flops_per_step[name], []).append(speed.flops_per_step[name] / speed.step[name])
    x, y = np.log([(at, np.median(values)) for at, values in sorted(points.items())]).T
    return flops / float(np.exp(np.interp(np.log(flops), x, y)))
