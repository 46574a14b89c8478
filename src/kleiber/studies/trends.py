"""What is said of forgetting's growth, asked of a grid without a law: how F changes from end to end of one input.

A law may not be identified where its trends are plain, and may be where one of them turns with another input: so each
is told with its range over the cells beside its mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kleiber.studies.claims import Claim, above, gap
from kleiber.studies.frontier import Noise

BASE = ["N", "M"]  # cells of one size and ratio go on from the same bases, so they are no independent samples
TRENDS = (
    ("grows_with_new_text", "beside", 1.0, "F grows with new text"),
    ("grows_with_pretraining", "M", 1.0, "F grows with pre-training tokens per parameter"),
    ("falls_with_size", "N", -1.0, "F falls with size"),
    ("falls_with_replay", "p", -1.0, "F falls with the replayed share"),
)


def trends(rows: Any, noise: Noise, level: float) -> list[Claim]:
    """Claims on F from the least to the largest value of each input, replay apart from the others; all at once
    (Bonferroni). An input that does not vary makes none.

    rows  the cells of a grid: N, M, p, n (seeds), F, their mean, and the steps of the plain cell `beside` them
    """
    found = [(*one, list(pairs(rows, one[1]))) for one in TRENDS]
    found = [one for one in found if one[-1]]
    each = 1 - (1 - level) / (1 + len(found))  # the growth with new text is asked twice
    made = []
    for code, column, sign, text, ends in found:
        rises = [sign * (high["F"] - low["F"]) for low, high in ends]
        made.append(claim(code, text, column, rises, ends, noise.half_width(each, terms(ends))))
        if column == "beside":
            longer = ends[0][1][column] / ends[0][0][column]
            slower = [longer * low["F"] - high["F"] for low, high in ends]
            half = noise.half_width(each, terms(ends) * (1 + longer**2) / 2)
            made.append(claim("power_below_1", "F grows more slowly than new text does", column, slower, ends, half))
    return made


def pairs(rows: Any, column: str) -> Iterator[tuple[Any, Any]]:
    """The cells at the least and at the largest value of an input, wherever both are, all else equal."""
    kept = rows if column == "p" else rows[rows["p"] == 0]
    low, high = kept[column].min(), kept[column].max()
    others = [name for name in ("N", "M", "beside", "p") if name != column]
    for _, one in kept.groupby(others):
        ends = [one[one[column] == value] for value in (low, high)]
        if low < high and all(map(len, ends)):
            yield ends[0].iloc[0], ends[1].iloc[0]


def terms(ends: list[tuple[Any, Any]]) -> float:
    """Variance of the mean difference over that of a run: as many independent differences as there are bases."""
    bases = min(len({tuple(cell[BASE]) for cell in side}) for side in zip(*ends, strict=True))
    return float(np.mean([1 / low["n"] + 1 / high["n"] for low, high in ends])) / bases


def claim(code: str, text: str, column: str, values: list[float], ends: list[tuple[Any, Any]], half: float) -> Claim:
    low, high = ends[0][0][column], ends[0][1][column]
    span = f"{min(values):+.4f} to {max(values):+.4f} over {len(values)} cells"
    unit = {"beside": " steps", "M": " tokens per parameter", "N": " parameters", "p": " of the tokens"}[column]
    mean = float(np.mean(values))
    return above(code, f"{text}: by {gap(mean, half)} from {low:g} to {high:g}{unit}, {span}", mean, half)
