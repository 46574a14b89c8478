"""Approaches 1 and 2 on a ladder of trunks: branch points lie on a grid of tokens, so budgets are met by interpolation.

A size's final losses are smooth in log C, a parabola through its branches. Approach 1 asks where two sizes tie, which
is where the envelope goes from one to the other; approach 2 cuts the curves at common budgets. Intervals are simulated
with noise that branches of a trunk share: interpolated budgets are no independent points. It refuses to extrapolate a
curve.

The approaches on one fit, side by side: those that its rows allow, each with an interval.

A ladder of trunks goes by interpolation and simulated noise (`branched`), a plain table by its own budgets
(`approaches`). It refuses an exponent whose points it cannot give an interval.

How counting moves the exponent: the same runs under 6 N D and exact FLOPs, with and without embeddings.

It only relabels the axes of one table and refits; it refuses to recommend a convention.
Source: Porian et al. 2024, arXiv:2406.19146 (Kaplan's .73-.88 against Chinchilla's .5)

How to spend compute, by this table: the approaches, how counting moves them, and N_opt(C), D_opt(C) with bands.

For tables of N and D only; for others every list is empty. Approaches that disagree become a verdict.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np

from kleiber.studies.laws import allocation
from kleiber.studies.laws.allocation import Exponent, Vertex, envelope, regress, vertices
from kleiber.studies.laws.bootstrap import Draws, interval
from kleiber.studies.laws.fit import depends, fit
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.variance_components import Layout, VarianceComponents
from kleiber.studies.laws.verdicts import Verdict

NEAR = 8.0  # ties of sizes farther apart than this factor say where neither is best
BUDGETS = 9
DRAWS = 120


@dataclass(frozen=True)
class Curve:
    """One size's final losses: log L a polynomial in log C (of degree 2 from three points on), between its ends."""

    log_n: float
    low: float
    high: float
    coefficients: Array

    def at(self, log_c: Array) -> Array:
        return np.asarray(np.polyval(self.coefficients, log_c), dtype=np.float64)


def curves(N: Array, C: Array, loss: Array) -> list[Curve]:
    """A curve for each size with two budgets or more; replicates enter as they are."""
    found = []
    for size in np.unique(N):
        x, y = np.log(C[size == N]), np.log(loss[size == N])
        distinct = len(np.unique(np.round(x, 6)))
        if distinct >= 2:
            fitted = np.polyfit(x, y, min(2, distinct - 1))
            found.append(Curve(float(np.log(size)), float(x.min()), float(x.max()), fitted))
    return found


def ties(found: list[Curve]) -> list[Vertex]:
    """Approach 1: where the curves of two sizes cross, the larger one winning above, N_opt is their geometric mean."""
    points = []
    for small, large in combinations(found, 2):
        low, high = max(small.low, large.low), min(small.high, large.high)
        if high <= low or large.log_n - small.log_n > np.log(NEAR):
            continue
        x = np.linspace(low, high, 200)
        gap = small.at(x) - large.at(x)
        up = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
        if len(up) == 1:
            k = int(up[0])
            where = x[k] - gap[k] * (x[k + 1] - x[k]) / (gap[k + 1] - gap[k])
            points.append(Vertex(float(np.exp(where)), (small.log_n + large.log_n) / 2, 1.0, 2))
    return points


def cuts(found: list[Curve], least: int = 3) -> list[Vertex]:
    """Approach 2: the vertex of the parabola in log N at budgets where `least` sizes or more have a curve.

    At most BUDGETS budgets, evenly over those that allow it; a vertex outside its sizes is no minimum and is left out.
    """
    ends = np.unique([end for curve in found for end in (curve.low, curve.high)])
    held = []  # between two ends the same sizes have a curve, however narrow the window
    for budget in np.unique([*np.linspace(ends[0], ends[-1], 48), *(ends[1:] + ends[:-1]) / 2]):
        here = [curve for curve in found if curve.low <= budget <= curve.high]
        if len(here) < least:
            continue
        x = np.array([curve.log_n for curve in here])
        y = np.array([float(curve.at(np.array(budget))) for curve in here])
        vertex = _vertex(x, y)
        if x.min() < vertex < x.max():
            held.append(Vertex(float(np.exp(budget)), float(vertex), 1.0, len(here)))
    keep = np.unique(np.linspace(0, len(held) - 1, BUDGETS).round().astype(int)) if held else []
    return [held[i] for i in keep]


def _vertex(x: Array, y: Array) -> float:
    """Where the least-squares parabola through (x, y) is least; nan when it opens downwards."""
    centre = float(x.mean())
    design = np.vander(x - centre, 3)
    c2, c1, _ = np.linalg.solve(design.T @ design, design.T @ y)
    return -c1 / (2 * c2) + centre if c2 > 0 else float("nan")


def exponents(
    N: Array, C: Array, loss: Array, noise: VarianceComponents | None, layout: Layout, level: float, seed: int = 0
) -> list[Exponent]:
    """Approaches 1 and 2 with intervals simulated by the noise of trunks and rows in log L; none where it is unknown.

    An approach needs three points, over budgets that differ by a fifth at least; else it is not reported.
    """
    if noise is None:
        return []
    drawn = noise.draw(np.random.default_rng(seed), DRAWS, layout)
    simulated = [curves(N, C, one) for one in np.exp(np.log(loss)[None] + drawn)]
    found = []
    for name, approach in (("1 envelope (ties)", ties), ("2 isoflop (interpolated)", cuts)):
        points = approach(curves(N, C, loss))
        line = _line(points)
        if line is None:
            continue
        lines = [one for curve in simulated if (one := _line(approach(curve))) is not None]
        if len(lines) < 0.8 * DRAWS:
            continue
        lo, hi = interval(np.array([slope for slope, _ in lines]), level)
        found.append(Exponent(name, line[0], float(lo), float(hi), line[1], _bars(points, lines, level)))
    return found


def _line(points: list[Vertex]) -> tuple[float, float] | None:
    """Slope and intercept of log N on log C by least squares."""
    if len(points) < 3:
        return None
    x, y = np.log([p.compute for p in points]), np.array([p.log_n for p in points])
    if np.ptp(x) < 0.2:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() - slope * x.mean())


def _bars(points: list[Vertex], lines: list[tuple[float, float]], level: float) -> list[dict[str, float]]:
    """The points, with intervals of N_opt at their compute from the line through each draw's points."""
    bars = []
    for point in points:
        spread = np.exp([slope * np.log(point.compute) + intercept for slope, intercept in lines])
        lo, hi = interval(spread, level)
        bars.append({"C": point.compute, "N": float(np.exp(point.log_n)), "lo": float(lo), "hi": float(hi)})
    return bars


def compare(model: NoiseModel, draws: Draws | None, level: float = 0.9) -> list[Exponent]:
    """Every approach that the rows allow: 1 and 2 need three usable budgets, 3 a law with a_opt."""
    problem, C = model.fit.problem, model.compute
    assert C is not None
    N, D, loss = problem.inputs["N"], problem.inputs["D"], problem.target
    if model.averaged and model.clusters is not None:
        found = exponents(N, C, loss, model.components(), model.layout, level)
    else:
        both = (
            regress("1 envelope", envelope(N, C, loss), level),
            regress("2 isoflop", vertices(N, D, C, loss), level),
        )
        found = [one for one in both if one is not None]
    lost = {"A", "B"} & set(model.fit.dropped)
    if draws is not None and "a_opt" in draws.fit.law.derived and not lost:
        if depends(draws.fit.law.derive(draws.fit.untold())["a_opt"]):
            return found
        value = float(draws.fit.law.derive(draws.fit.values)["a_opt"][0])
        lo, hi = interval(draws.derive()["a_opt"], level)
        found.append(Exponent("3 parametric", value, float(lo), float(hi), float("nan")))
    return found


def conventions(columns: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """(N, C) by convention, for the columns at hand: N total, `Nnoemb` without embeddings, `Cexact` counted FLOPs."""
    N, D = columns["N"], columns["D"]
    found = {"6ND": (N, 6 * N * D)}
    if "Nnoemb" in columns:
        found["6ND without embeddings"] = (columns["Nnoemb"], 6 * columns["Nnoemb"] * D)
    if "Cexact" in columns:
        found["exact FLOPs"] = (N, columns["Cexact"])
        found["N = exact FLOPs / 6D"] = (columns["Cexact"] / (6 * D), columns["Cexact"])
        if "Nnoemb" in columns:
            found["exact FLOPs, N without embeddings"] = (columns["Nnoemb"], columns["Cexact"])
    return found


def accounting(
    model: NoiseModel, drawn: Draws | None, draws: int = 100, seed: int = 0, level: float = 0.9
) -> list[dict]:
    """One row per convention and approach: {convention, approach, a, lo, hi, shift}, shift against 6ND.

    Approach 3 is refitted in the convention's N; its a_opt assumes C = 6 N D in that N. Where N is the model's own, its
    interval is that of the refits `drawn` already, so that one number has one interval. Empty with 6ND alone.
    """
    problem = model.fit.problem
    choices = conventions({**model.columns, **problem.inputs})
    if len(choices) < 2:
        return []
    rows, base = [], {}
    for name, (N, C) in choices.items():
        if np.array_equal(N, problem.inputs["N"]):
            counted, refits = replace(model, columns={"C": C}), drawn
        else:
            counted = recounted(model, N, C)
            refits = counted.draws(draws, seed)
        for exponent in compare(counted, refits, level):
            base.setdefault(exponent.approach, exponent.a)
            shift = exponent.a - base[exponent.approach]
            rows.append(
                {
                    "convention": name,
                    "approach": exponent.approach,
                    "a": exponent.a,
                    "lo": exponent.lo,
                    "hi": exponent.hi,
                    "shift": shift,
                }
            )
    return rows


def recounted(model: NoiseModel, N: Array, C: Array) -> NoiseModel:
    """The law fitted anew with other sizes by row, and the runs behind the rows with them."""
    problem, runs = model.fit.problem, model.runs
    inputs = {**problem.inputs, "N": N}
    refitted = fit(problem.law, inputs, problem.target, problem.loss_fn, problem.delta, problem.space, problem.scale)
    runs = replace(runs, inputs={**runs.inputs, "N": N[runs.row]})
    return replace(model, fit=refitted, runs=runs, layout=replace(model.layout, log_size=np.log(N)), columns={"C": C})


FARTHEST = 4.0  # compute over that of the largest run, up to which an allocation is told


def allocate(model: NoiseModel, draws: Draws | None, judged: list[Verdict], level: float, seed: int) -> dict[str, list]:
    """The record's approaches, accounting and allocation; a disagreement is added to `judged`."""
    found: dict[str, list] = {"approaches": [], "accounting": [], "allocation": []}
    compute = model.compute
    if set(model.fit.law.inputs) != {"N", "D"} or compute is None:
        return found
    compared = compare(model, draws, level)
    found["approaches"] = [{k: v for k, v in asdict(one).items() if k != "log_k"} for one in compared]
    apart = allocation.disagreement(compared)
    if apart:
        judged.append(Verdict("approaches_disagree", "warn", apart))
    found["accounting"] = accounting(model, draws, seed=seed, level=level)
    if draws:
        budgets = np.geomspace(compute.min(), FARTHEST * compute.max(), 13)
        found["allocation"] = allocation.allocation(draws, budgets, level)
    return found
