"""Alarms of the callback `stability`: bounds of measures, and the layer that a spike of the gradient comes from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A bound of a measure, beyond which there is an alarm.

    key    argument of the callback that sets it
    value  None: no alarm
    below  whether values below the bound are beyond it, instead of values above
    measure  what is measured, as an alarm says it
    """

    key: str
    value: float | None
    measure: str
    below: bool = False

    def is_crossed(self, value: float) -> bool:
        """Whether a value is beyond the bound; NaN is."""
        if self.value is None:
            return False
        return not (value >= self.value if self.below else abs(value) <= self.value)


class Alarms:
    """Compares measures with their bounds. An alarm begins when a value crosses its bound, and ends when it is back.

    counts  number of alarms that have begun, by kind
    active  the alarms that have begun and not ended
    """

    def __init__(self, bounds: dict[str, Bound]) -> None:
        self.bounds, self.counts = bounds, dict[str, int]()
        self.active: set[str] = set()

    def count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def check(self, measures: dict[str, list[float]]) -> list[str]:
        """The texts of the alarms that begin, each with the layer, head or matrix, the value and the bound.

        measures  by name, such as attention_logit/<layer>, one value or one for each head
        """
        texts: list[str] = []
        for name, values in measures.items():
            kind, _, part = name.partition("/")
            bound = self.bounds[kind]
            for head, value in enumerate(values):
                alarm, place = f"{name}/{head}", f"layer {part}" if part.isdecimal() else part
                place += f", head {head}" if kind.startswith("attention") else ""
                if not bound.is_crossed(value):
                    self.active.discard(alarm)
                elif alarm not in self.active:
                    self.active.add(alarm)
                    self.count(kind)
                    side = "below" if bound.below else "above"
                    limit = f"callbacks.stability.{bound.key}={bound.value:g}"
                    texts.append(f"{bound.measure}{place and ' of '}{place} is {value:.3g}, {side} {limit}")
        return texts


def rescaled(norms: Mapping[str, float], total: float) -> dict[str, float]:
    """Gradient norms by part of the model as they were before clipping, when the global norm was `total`."""
    clipped = math.hypot(*norms.values())
    return {name: norm * total / clipped for name, norm in norms.items()} if clipped else dict(norms)


def relative_to_others(norms: Mapping[str, float]) -> dict[str, float]:
    """The gradient norm of each layer over the median of the other layers; empty where that median is 0."""
    layers = {name: norm for name, norm in norms.items() if name.startswith("layer ")}
    ratios: dict[str, float] = {}
    for name, norm in layers.items():
        others = [other for key, other in layers.items() if key != name]
        middle = statistics.median(others) if others else 0.0
        if middle:
            ratios[name] = norm / middle
    return ratios


def steepest_part(norms: Mapping[str, float], usual: Mapping[str, float]) -> str:
    """The part of the model whose gradient norm grew most over its usual one, and its share, such as "99 % of it in
    layer 1"; where norms are not finite, the parts with such norms. Without usual norms, the part with the largest one.
    """
    wrong = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if wrong:
        return "not finite in " + ("every layer" if len(wrong) == len(norms) else ", ".join(wrong[:3]))
    total = math.hypot(*norms.values())
    growth = {name: norm / usual.get(name, 0.0) if usual.get(name) else 0.0 for name, norm in norms.items()}
    name = max(norms, key=lambda part: (growth[part], norms[part]))
    return f"{norms[name] / total if total else 0:.0%} of it in {name}"
