"""The gap between two arms on a ladder of scales, and its extrapolation in training compute.

The gap is the log loss of the changed arm less that of the plain one, of the same seed. A line in log10 of the training
compute is fitted to the gaps of each seed, since a seed sees the same data at every scale: the seeds are the samples of
the line and of its extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kleiber.config.errors import Status
from kleiber.config.model_size import width_of
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import arm_name, uneven_grids
from kleiber.studies.compare.places import SAME_TOKENS, Place, refuse_twins
from kleiber.studies.decision import Estimate, mean_estimate
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import round_down
from kleiber.types import Config, Json

UNIT = "in the logarithm of the loss"
MOST_DECADES = 9.0  # largest factor of compute that is estimated, in log10
Losses = dict[str, dict[float, dict[int, float]]]  # by arm, learning rate and seed; inf for a run that diverged


@dataclass(frozen=True)
class Scale:
    """Two arms at one width and number of tokens, each at the rate of the least mean loss over all seeds.

    A rate at which a run diverged is not chosen while another has none.

    compute   training FLOPs of the plain arm, or of the changed one where no plain run finished; inf without either
    plain     log loss of the plain arm, by seed
    changed   log loss of the changed arm, by seed
    rates     learning rates of the two arms
    at_edge   the arms whose best rate is at an end of its grid, or whose grid has fewer than three rates
    diverged  the seeds that diverged at that rate, by arm, of arms in which runs diverged at every rate
    uneven    why the two arms were not tuned alike; "" where they were
    """

    width: int
    tokens: float
    compute: float
    plain: Mapping[int, float]
    changed: Mapping[int, float]
    rates: tuple[float, float]
    at_edge: Sequence[str] = ()
    diverged: Mapping[str, Sequence[int]] = field(default_factory=dict)
    uneven: str = ""

    @property
    def gaps(self) -> dict[int, float]:
        """The gap of each seed that both arms have."""
        return {seed: self.changed[seed] - self.plain[seed] for seed in sorted(self.plain.keys() & self.changed.keys())}

    @property
    def place(self) -> str:
        return f"width {self.width}, {self.tokens:,.0f} tokens"


@dataclass(frozen=True)
class Ladder:
    """The gaps of two arms by scale and seed.

    compute  (scales,) training FLOPs of the plain arm, ascending
    gaps     (seeds, scales) log loss of the changed arm less that of the plain one
    plain    (seeds, scales) log loss of the plain arm
    seeds    their seeds
    """

    compute: Array
    gaps: Array
    plain: Array
    seeds: Sequence[int]

    @property
    def x(self) -> Array:
        """log10 of compute, relative to the largest scale."""
        return np.log10(self.compute / self.compute.max())


def read_scales(runs: Sequence[Run], plain: str, changed: str) -> list[Scale]:
    """Reads two arms at the widths and numbers of tokens that both have, in order of compute."""
    losses, flops = losses_of(runs)
    scales = []
    for (width, tokens), by_arm in losses.items():
        if not {plain, changed} <= by_arm.keys():
            continue
        best, at_edge, diverged, grids = {}, [], {}, {}
        for arm in (plain, changed):
            grid = by_arm[arm]
            most = max(map(len, grid.values()))
            complete = {lr: list(by_seed.values()) for lr, by_seed in grid.items() if len(by_seed) == most}
            grids[arm] = sorted(complete)
            best[arm] = min(complete, key=lambda lr: divergences_and_mean(complete[lr]))
            if len(complete) < 3 or best[arm] in (grids[arm][0], grids[arm][-1]):
                at_edge.append(arm)
            if seeds := sorted(seed for seed, loss in grid[best[arm]].items() if math.isinf(loss)):
                diverged[arm] = seeds
        a, b = (log_losses(by_arm[arm][best[arm]]) for arm in (plain, changed))
        compute = [flops[place] for place in ((plain, width, tokens), (changed, width, tokens)) if place in flops]
        rates = (best[plain], best[changed])
        uneven = uneven_grids(grids)
        scales.append(Scale(width, tokens, [*compute, math.inf][0], a, b, rates, at_edge, diverged, uneven))
    return sorted(scales, key=lambda scale: scale.compute)


def divergences_and_mean(losses: Sequence[float]) -> tuple[int, float]:
    """Returns how many losses of a learning rate are infinite, and the mean of the others: less is better, in order."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return len(losses) - len(finite), sum(finite) / max(len(finite), 1)


def log_losses(by_seed: Mapping[int, float]) -> dict[int, float]:
    """Returns the log losses of the seeds that did not diverge."""
    return {seed: math.log(loss) for seed, loss in by_seed.items() if math.isfinite(loss)}


def arm_at_width(config: Config) -> str | None:
    """Returns the arm and the width of a run, which this study tells apart; None for a run of no arm."""
    arm = (config.get("study") or {}).get("arm")
    return None if arm is None else f"{arm}, width {width_of(config['model'])}"


def losses_of(runs: Sequence[Run]) -> tuple[dict[tuple[int, float], Losses], dict[tuple[str, int, float], float]]:
    """Returns the losses by width and tokens; and the training FLOPs by arm, width and tokens.

    A run that diverged has an infinite loss at all lengths of its width at which no run of its arm, rate and seed has
    finished; where no run of its width has, at all lengths. Raises ValueError as `refuse_twins`.
    """
    ended = [run for run in runs if arm_name(run) is not None]
    rows = [(run, row) for run in ended if run.finished for row in run.leaf_rows() if row["loss"] is not None]
    if not rows:
        raise ValueError("no finished run here belongs to an arm: this study reads cells of design=arms")
    tokens = round_down(np.array([float(row["tokens"]) for _, row in rows]), SAME_TOKENS).tolist()
    losses: dict[tuple[int, float], Losses] = {}
    flops: dict[tuple[str, int, float], float] = {}
    placed = []
    for (run, row), length in zip(rows, tokens, strict=True):
        arm, width, lr, seed = str(arm_name(run)), width_of(run.config["model"]), float(row["lr"]), run.config["seed"]
        placed.append((Place(f"{arm}, width {width}", length, lr, seed), run.name, run.config))
        loss = float(row["loss"]) if math.isfinite(row["loss"]) else math.inf
        losses.setdefault((width, length), {}).setdefault(arm, {}).setdefault(lr, {})[seed] = loss
        flops[arm, width, length] = float(row["flops"])
    refuse_twins(placed)
    finished = [*losses]
    for run in ended:
        if run.status == Status.DIVERGED:
            width, lr = width_of(run.config["model"]), float(run.config["optimizer"]["lr"])
            lengths = [length for at, length in finished if at == width] or [length for _, length in finished]
            for length in lengths:
                by_arm = losses.setdefault((width, length), {})
                by_arm.setdefault(str(arm_name(run)), {}).setdefault(lr, {}).setdefault(run.config["seed"], math.inf)
    return losses, flops


def ladder_of(scales: Sequence[Scale]) -> Ladder:
    """Returns the ladder of the seeds that have all scales. Raises ValueError below three scales or two seeds."""
    seeds = sorted(set.intersection(*(set(scale.gaps) for scale in scales))) if scales else []
    if len(scales) < 3 or len(seeds) < 2:
        raise ValueError(
            f"the two arms share {len(scales)} scales and {len(seeds)} seeds, and an ablation needs at least three "
            "scales of two seeds: add values of model.width or training lengths to both arms, or seeds"
        )
    plain, gaps = (
        np.array([[by_seed[seed] for by_seed in parts] for seed in seeds])
        for parts in ([scale.plain for scale in scales], [scale.gaps for scale in scales])
    )
    return Ladder(np.array([scale.compute for scale in scales]), gaps, plain, seeds)


def lines(ladder: Ladder) -> Array:
    """Returns intercept (at the largest scale) and slope per decade of the gap of each seed, (seeds, 2)."""
    design = np.column_stack([np.ones(len(ladder.x)), ladder.x])
    return np.asarray(np.linalg.lstsq(design, ladder.gaps.T, rcond=None)[0].T, dtype=np.float64)


def predicted(ladder: Ladder, times: float) -> list[float]:
    """Returns the gap of each seed at a multiple of the largest compute, on the line of the seed."""
    fitted = lines(ladder)
    return (fitted[:, 0] + fitted[:, 1] * math.log10(times)).tolist()


def predict(ladder: Ladder, times: float, level: float) -> Estimate:
    """Returns the gap at a multiple of the largest compute, with Student's interval over the lines of the seeds."""
    estimate = mean_estimate(predicted(ladder, times), level, UNIT)
    assert estimate is not None
    return estimate


def sign(gap: Estimate) -> str:
    """Returns better, worse or undecided: the sign of a gap whose interval excludes 0."""
    if gap.lo is None or gap.hi is None or gap.lo <= 0 <= gap.hi:
        return "undecided"
    return "better" if gap.value < 0 else "worse"


def compute_gain(ladder: Ladder, level: float) -> Estimate | None:
    """Returns the factor of compute that the plain arm needs to reach the loss of the changed one at the largest scale.

    Its logarithm is the mean gap over the mean slope of the plain arm, with Student's interval over seeds by the delta
    method. None unless the interval of the slope is below 0, and for a factor that may exceed 10**MOST_DECADES.
    """
    design = np.column_stack([np.ones(len(ladder.x)), ladder.x])
    slopes = np.linalg.lstsq(design, ladder.plain.T, rcond=None)[0][1]
    slope = mean_estimate(slopes.tolist(), level, "")
    if slope is None or slope.hi is None or slope.hi >= 0:
        return None
    gaps = lines(ladder)[:, 0]
    ratio = gaps.mean() / slope.value
    estimate = mean_estimate((ratio + (gaps - ratio * slopes) / slope.value).tolist(), level, "")
    if estimate is None or estimate.lo is None or estimate.hi is None or estimate.hi > MOST_DECADES:
        return None
    value, lo, hi = (10.0**place for place in (estimate.value, estimate.lo, estimate.hi))
    return Estimate(value, lo, hi, estimate.n, "times the compute")


def crossings(ladder: Ladder, level: float) -> tuple[float | None, float | None, float | None]:
    """Returns where the mean line is 0, and the ends of the range in which its band contains 0.

    Multiples of the largest compute; None for what is below the smallest scale or beyond a thousand times the largest.
    """
    grid: NDArray[np.float64] = np.linspace(float(ladder.x.min()), 3.0, 400)
    values = np.array([predict(ladder, 10**place, level).value for place in grid.tolist()])
    turn = np.flatnonzero(np.sign(values[1:]) != np.sign(values[:-1]))
    at = zero_between(grid, values, int(turn[0])) if len(turn) else None
    grid = grid if at is None else np.sort(np.append(grid, at))  # the band may be narrower than a step of the grid
    margins = np.array([margin(predict(ladder, 10**place, level)) for place in grid.tolist()])
    inside = np.flatnonzero(margins >= 0)
    low = zero_between(grid, margins, int(inside[0]) - 1) if len(inside) and inside[0] > 0 else None
    high = zero_between(grid, margins, int(inside[-1])) if len(inside) and inside[-1] < len(grid) - 1 else None
    at, low, high = (None if place is None else 10**place for place in (at, low, high))
    return at, low, high


def margin(gap: Estimate) -> float:
    """How far 0 lies inside the interval of a gap; negative outside, and without an interval."""
    return -math.inf if gap.lo is None or gap.hi is None else min(gap.hi, -gap.lo)


def zero_between(grid: NDArray[np.float64], values: NDArray[np.float64], left: int) -> float:
    """Returns where the line through two neighbors, the numbers `left` and `left` + 1, is 0."""
    step, rise = grid[left + 1] - grid[left], values[left + 1] - values[left]
    return float(grid[left] - step * values[left] / rise) if np.isfinite(rise) and rise else float(grid[left + 1])


def crossing_text(crossing: tuple[float | None, float | None, float | None]) -> str:
    """Formats the scale at which the sign of the gap may change."""
    at, low, high = crossing
    if at is None:
        return "the line of the gap does not change its sign between the smallest scale and 1,000 times the largest"
    ends = ["below the smallest" if low is None else f"{low:.3g}", "beyond 1,000" if high is None else f"{high:.3g}"]
    return f"the line of the gap changes its sign at {at:.3g} [{', '.join(ends)}] times the largest compute"


def check(ladder: Ladder, scale: Scale, level: float) -> Json:
    """Compares the gap at a scale that the ladder does not have with its prediction.

    The prediction of a seed is compared with the gap of the same seed. It holds if the interval of the mean of these
    differences contains 0; a sign is right or wrong if the predicted and the measured gap both exclude 0.
    """
    times = scale.compute / float(ladder.compute.max())
    fitted = lines(ladder)
    by_seed = dict(zip(ladder.seeds, (fitted[:, 0] + fitted[:, 1] * math.log10(times)).tolist(), strict=True))
    errors = [gap - by_seed[seed] for seed, gap in scale.gaps.items() if seed in by_seed]
    error, measured = mean_estimate(errors, level, UNIT), mean_estimate(list(scale.gaps.values()), level, UNIT)
    predicted = predict(ladder, times, level)
    signs = {sign(predicted), "undecided" if measured is None else sign(measured)}
    right = "undecided" if "undecided" in signs else "right" if len(signs) == 1 else "wrong"
    holds = None if error is None or error.lo is None or error.hi is None else error.lo <= 0 <= error.hi
    return {
        "width": scale.width, "tokens": scale.tokens, "times the largest fitted": times,
        "predicted": predicted.value, "predicted lo": predicted.lo, "predicted hi": predicted.hi,
        "measured": None if measured is None else measured.value,
        "lo": None if measured is None else measured.lo, "hi": None if measured is None else measured.hi,
        "seeds": len(errors), "sign": right, "holds": holds,
    }  # fmt: skip
