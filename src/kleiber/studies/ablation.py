"""The study `ablation`: does a change still help at several times the largest run?

Two arms are trained on a ladder of widths and training lengths, each at its best learning rate there. The gap is the
log loss of the changed arm less that of the plain one, of the same seed. A line in log10 of the training compute is
fitted to the gaps of each seed, so that the seeds, which see the same data at every scale, are the samples of the line
and its extrapolation. Whether the sign holds at a larger scale may stay undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kleiber.config.errors import Status
from kleiber.config.model_size import width_of
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import SAME_TOKENS, arm_name, planned_arms
from kleiber.studies.compare.decision import Claim, Decision, Estimate, mean_estimate
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.table import round_down
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Json, Positive, Row

UNIT = "of the loss, in log"
SCALES = (2.0, 5.0, 10.0)  # multiples of the largest compute at which the gap is predicted


@dataclass(frozen=True)
class Ladder:
    """The gaps of two arms by scale and seed.

    compute  (scales,) training FLOPs of the plain arm, ascending
    places   width and tokens of each scale
    gaps     (seeds, scales) log loss of the changed arm less that of the plain one
    plain    (seeds, scales) log loss of the plain arm
    rates    best learning rate of each arm at each scale
    at_edge  scales, as text, at which the best rate of an arm is at an end of its grid
    """

    compute: Array
    places: Sequence[tuple[int, float]]
    gaps: Array
    plain: Array
    rates: Sequence[tuple[float, float]]
    at_edge: Sequence[str]

    @property
    def x(self) -> Array:
        """log10 of compute, relative to the largest scale."""
        return np.log10(self.compute / self.compute.max())


@dataclass(frozen=True, kw_only=True)
class Ablation(IntervalStudy):
    """The gap between two arms as a function of training compute, its prediction, and its worth in compute.

    arm     of a cell: set by the design
    target  multiple of the largest compute at which the change has to help: the claim that the study decides
    """

    decides: ClassVar[bool] = True

    arm: str | None = None
    target: Positive = 10.0

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Predicts the gap and decides the claim. Raises ValueError for other than two arms, or too few scales."""
        names = planned_arms([run.config for run in runs]) or list(dict.fromkeys(filter(None, map(arm_name, runs))))
        if len(names) != 2:
            raise ValueError(f"an ablation compares two arms, the plain one first, and these runs have {len(names)}")
        plain, changed = names
        ladder = read_ladder(runs, plain, changed)
        predictions = {scale: predict(ladder, scale, self.level) for scale in sorted({1.0, *SCALES, self.target})}
        goal = predictions[self.target]
        decision = self.decide(runs, ladder, goal, changed, plain)
        gain, crossing = compute_gain(ladder, self.level), crossings(ladder, self.level)
        rows = [{"times the largest run": scale, "gap": gap.value, "lo": gap.lo, "hi": gap.hi, "seeds": gap.n,
                 "sign": sign(gap)} for scale, gap in predictions.items()]  # fmt: skip
        verdicts: list[Json] = [
            {"code": f"sign_{row['times the largest run']:g}x", "level": "note",
             "text": f"at {row['times the largest run']:g} times the largest compute {changed} is {row['sign']}: "
             f"{Estimate(row['gap'], row['lo'], row['hi'], row['seeds'], UNIT).text()}"}
            for row in rows
        ]  # fmt: skip
        verdicts.append({"code": "crossing", "level": "note", "text": crossing_text(crossing)})
        if ladder.at_edge:
            text = f"the best learning rate is at the edge of its grid at {'; '.join(ladder.at_edge)}: widen design.lrs"
            verdicts.append({"code": "untuned", "level": "warn", "text": text})
        why = "the best rates are at the edge of their grids" if ladder.at_edge else ""
        comparison = {
            "schema": "kleiber.compare/1", "measure": "loss", "equal": "tokens", "level": self.level, "looks": 1,
            "decision": str(decision), "why": why, "more_seeds_needed": None,
            "estimates": [{"arm": changed, "against": plain, "equal": "tokens", "times": scale, "value": gap.value,
                           "lo": gap.lo, "hi": gap.hi, "n": gap.n, "unit": UNIT, "tuned": not ladder.at_edge}
                          for scale, gap in predictions.items()],
        }  # fmt: skip
        headline = (
            f"{changed} against {plain} at {self.target:g} times the largest compute: {decision}; predicted gap "
            f"{goal.text()}. At the largest run the change is worth {gain.text('.2f')}."
        )
        figures: Figures = {"gap": lambda: gap_figure(ladder, self.level, max(predictions))}
        tables = {"Predicted gap": rows, "Gap by scale": scale_rows(ladder, self.level)}
        return Findings(headline, verdicts, tables, figures, methods=METHODS.format(level=f"{self.level:.0%}"),
                        comparison=comparison)  # fmt: skip

    def decide(self, runs: Sequence[Run], ladder: Ladder, goal: Estimate, changed: str, plain: str) -> Decision:
        """Decides whether the changed arm has a lower loss at the target; unfinished or untuned runs test nothing."""
        unfinished = any(run.status not in (Status.FINISHED, Status.DIVERGED) for run in runs)
        if unfinished or ladder.at_edge:
            return Decision.NOT_TESTED
        return Claim(changed, plain).decide(goal)


METHODS = (
    "Both arms were trained at every width and length with the same seeds and learning rates, and enter each scale at "
    "the rate of the least mean loss over all seeds. The gap is the difference of log losses of the same seed. A line "
    "in log10 of the training compute was fitted to the gaps of each seed; predictions are means over these lines with "
    "Student's intervals at {level}. The intervals hold if the gap is a line in log compute. The compute-equivalent "
    "gain is the gap at the largest scale over the slope of the plain arm's log loss in log compute."
)


def read_ladder(runs: Sequence[Run], plain: str, changed: str) -> Ladder:
    """Reads the losses of two arms at the scales that both have, for the seeds that have all of them.

    Raises ValueError for fewer than three scales or two seeds.
    """
    losses, flops = losses_of(runs)
    places = sorted(
        {(width, tokens) for arm, width, tokens in losses if arm == plain}, key=lambda at: flops[plain, *at]
    )
    kept, rates, edges, by_arm = [], [], [], {plain: [], changed: []}
    for width, tokens in places:
        if (changed, width, tokens) not in losses:
            continue
        best = {}
        for arm in (plain, changed):
            grid = losses[arm, width, tokens]
            most = max(map(len, grid.values()))
            means = {lr: sum(by_seed.values()) / most for lr, by_seed in grid.items() if len(by_seed) == most}
            best[arm] = min(means, key=lambda lr: means[lr])
            if len(means) < 3 or best[arm] in (min(means), max(means)):
                edges.append(f"width {width}, {tokens:,.0f} tokens ({arm})")
            by_arm[arm].append(grid[best[arm]])
        kept.append((width, tokens))
        rates.append((best[plain], best[changed]))
    seeds = set.intersection(*(set(by_seed) for parts in by_arm.values() for by_seed in parts)) if kept else set()
    if len(kept) < 3 or len(seeds) < 2:
        raise ValueError(
            f"the two arms share {len(kept)} scales and {len(seeds)} seeds, and an ablation needs at least three "
            "scales of two seeds: add values of model.width or training lengths to both arms, or seeds"
        )
    order = sorted(seeds)
    a, b = (np.log([[by_seed[seed] for by_seed in by_arm[arm]] for seed in order]) for arm in (plain, changed))
    compute = np.array([flops[plain, *place] for place in kept])
    return Ladder(compute, kept, b - a, a, rates, edges)


Place = tuple[str, int, float]


def losses_of(runs: Sequence[Run]) -> tuple[dict[Place, dict[float, dict[int, float]]], dict[Place, float]]:
    """Returns the loss by arm, width and tokens, then by rate and seed; and the training FLOPs of each place."""
    rows = []
    for run in runs:
        arm = arm_name(run)
        if arm is None or run.status != Status.FINISHED:
            continue
        for row in run.leaf_rows():
            if row["loss"] is not None and math.isfinite(row["loss"]):
                rows.append((arm, width_of(run.config["model"]), run.config["seed"], row))
    if not rows:
        raise ValueError("no finished run here belongs to an arm: this study reads cells of design=arms")
    tokens = round_down(np.array([float(row["tokens"]) for *_, row in rows]), SAME_TOKENS)
    losses: dict[Place, dict[float, dict[int, float]]] = {}
    flops: dict[Place, float] = {}
    for (arm, width, seed, row), length in zip(rows, tokens.tolist(), strict=True):
        losses.setdefault((arm, width, length), {}).setdefault(float(row["lr"]), {})[int(seed)] = float(row["loss"])
        flops[arm, width, length] = float(row["flops"])
    return losses, flops


def lines(ladder: Ladder) -> Array:
    """Returns intercept (at the largest scale) and slope per decade of the gap of each seed, (seeds, 2)."""
    design = np.column_stack([np.ones(len(ladder.x)), ladder.x])
    return np.asarray(np.linalg.lstsq(design, ladder.gaps.T, rcond=None)[0].T, dtype=np.float64)


def predict(ladder: Ladder, times: float, level: float) -> Estimate:
    """Returns the gap at a multiple of the largest compute, with Student's interval over the lines of the seeds."""
    fitted = lines(ladder)
    estimate = mean_estimate((fitted[:, 0] + fitted[:, 1] * math.log10(times)).tolist(), level, UNIT)
    assert estimate is not None
    return estimate


def sign(gap: Estimate) -> str:
    """Returns better, worse or undecided: the sign of a gap whose interval excludes 0."""
    if gap.lo is None or gap.hi is None or gap.lo <= 0 <= gap.hi:
        return "undecided"
    return "better" if gap.value < 0 else "worse"


def compute_gain(ladder: Ladder, level: float) -> Estimate:
    """Returns the factor of compute that the plain arm needs to reach the loss of the changed one at the largest scale.

    The interval is Student's over seeds on the logarithm.
    """
    design = np.column_stack([np.ones(len(ladder.x)), ladder.x])
    slopes = np.linalg.lstsq(design, ladder.plain.T, rcond=None)[0][1]
    estimate = mean_estimate((lines(ladder)[:, 0] / slopes.mean()).tolist(), level, "")
    assert estimate is not None
    ends = [None if end is None else float(10**end) for end in (estimate.lo, estimate.hi)]
    return Estimate(float(10**estimate.value), ends[0], ends[1], estimate.n, "times the compute")


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


def scale_rows(ladder: Ladder, level: float) -> list[Json]:
    """Returns a table row for each scale: its place, the best rates and the gap with its interval over seeds."""
    rows = []
    for j, ((width, tokens), (a, b)) in enumerate(zip(ladder.places, ladder.rates, strict=True)):
        gap = mean_estimate(ladder.gaps[:, j].tolist(), level, UNIT)
        assert gap is not None
        rows.append({"width": width, "tokens": tokens, "compute": float(ladder.compute[j]), "gap": gap.value,
                     "lo": gap.lo, "hi": gap.hi, "rate of the plain arm": a, "rate of the changed arm": b})  # fmt: skip
    return rows


def gap_figure(ladder: Ladder, level: float, times: float) -> object:
    """Gap vs training compute: each scale with its interval, the line, and its band up to the largest prediction."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import log_axis, with_title

    largest = float(ladder.compute.max())
    at = np.geomspace(ladder.compute.min(), times * largest, 60)
    band = pd.DataFrame([{"C": C, **_band_row(predict(ladder, C / largest, level))} for C in at.tolist()])
    points = pd.DataFrame([{"C": row["compute"], **{key: 100 * row[key] for key in ("gap", "lo", "hi")}}
                           for row in scale_rows(ladder, level)])  # fmt: skip
    x = log_axis("C", "training compute (FLOPs)", at)
    y, low = (alt.Y(f"{name}:Q", title="loss relative to the plain arm (%)") for name in ("gap", "lo"))
    base, line = alt.Chart(points).encode(x=x), alt.Chart(band).encode(x=x)
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(y=y)
    inside = line.transform_filter(f"datum.C <= {largest}").mark_line(color="black", strokeWidth=2).encode(y=y)
    layers = [
        zero, line.mark_area(opacity=0.2, color="#444").encode(y=low, y2="hi:Q"),
        line.mark_line(color="black", strokeDash=[5, 4]).encode(y=y), inside,
        base.mark_rule(color="#0072B2").encode(y=low, y2="hi:Q"),
        base.mark_point(filled=True, size=50, opacity=1, color="#0072B2").encode(y=y),
    ]  # fmt: skip
    subtitle = f"points: scales, {level:.0%} intervals over seeds; line and band: fitted, dashed where predicted"
    return with_title(alt.layer(*layers), "Gap of the two arms vs training compute", subtitle=subtitle)


def _band_row(gap: Estimate) -> Row:
    ends: Mapping[str, float | None] = {"gap": gap.value, "lo": gap.lo, "hi": gap.hi}
    return {key: None if value is None else 100 * value for key, value in ends.items()}
