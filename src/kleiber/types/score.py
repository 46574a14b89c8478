"""A measured number with its interval, and what a class says of the numbers that it measures. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

from kleiber.types import Json

Better = Literal["lower", "higher", "none"]
SCORE_LEVEL = 0.9  # of the intervals of scores


@dataclass(frozen=True)
class Metric:
    """What a number is, as the class that measures it declares it.

    label   what tables, figures and sentences call it, such as `accuracy`
    better  which values are better; "none" where neither is, as of a temperature or of a score that is best at 0
    unit    "" for a plain number, such as a share
    """

    label: str
    better: Better
    unit: str = ""


# By the name of a metric, or by a pattern of names such as distinct_{n}, whose label may contain {n}.
Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class Score:
    """A measured number.

    lo, hi  bounds of its 90 % interval; None where there is none
    n       number of items, such as questions or tokens, that it is computed from; None where it has no such number
    unit, better, label  as of a `Metric`; an evaluation leaves them out where it declares its metrics
    """

    value: float
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    unit: str = ""
    better: Better = "none"
    label: str = ""

    def to_json(self) -> Json:
        """The score as summary.json and `kleiber eval --json` have it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Json) -> Score:
        """The score of an object that `to_json` returned; a value of nan is null in a file."""
        return cls(**{**values, "value": math.nan if values["value"] is None else values["value"]})


Scores = dict[str, Score]  # by metric


def format_interval(lo: float, hi: float, style: str = ".4g") -> str:
    """Returns an interval as text, such as `[0.12, 0.34]`; `style` is the format of its ends."""
    return "[{0:{2}}, {1:{2}}]".format(lo, hi, style)


def values_of(scores: Mapping[str, Score]) -> dict[str, float]:
    """The values of scores."""
    return {name: score.value for name, score in scores.items()}


def find_metric(metrics: Metrics, name: str) -> Metric | None:
    """The declaration of a metric: that of its name, else of the first pattern that it matches; None without one.

    A placeholder of a pattern, such as {n}, stands for text without a slash. The label has it without underscores.
    """
    if name in metrics:
        return metrics[name]
    for pattern, metric in metrics.items():
        match = _compiled(pattern).fullmatch(name) if "{" in pattern else None
        if match:
            parts = {part: text.replace("_", " ") for part, text in match.groupdict().items()}
            return Metric(metric.label.format(**parts), metric.better, metric.unit)
    return None


def variants(metrics: Metrics, name: str, label: str) -> dict[str, Metric]:
    """The same metrics of a part or kind: `*` in `name` and `label` stands for the name and label of each."""
    return {
        name.replace("*", each): Metric(label.replace("*", metric.label), metric.better, metric.unit)
        for each, metric in metrics.items()
    }


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(f"(?P<{piece}>[^/]+)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)))


def described(score: Score, metrics: Metrics, name: str, place: str = "") -> Score:
    """The score with the direction and label of its metric, and its unit unless it has one; as it is if it has a label.

    metrics  those that its class declares; a metric that it does not declare is called by its name
    place    what the label says after the metric, such as `on docs`
    """
    if score.label:
        return score
    metric = find_metric(metrics, name) or Metric(name.replace("_", " ").replace("/", ", "), "none")
    label = f"{metric.label} {place}".rstrip(" ,")
    return replace(score, unit=score.unit or metric.unit, better=metric.better, label=label)
