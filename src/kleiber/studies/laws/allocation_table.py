"""The allocation exponent by approach and by counting convention, for tables of N and D.

The cooldown branches of trunks end at common token counts and so at different compute. Their losses are therefore
interpolated: log L of each size is a parabola in log C. Approach 1 then finds the compute at which the curves of two
sizes cross; approach 2 fits parabolas in log N at common budgets. Their intervals come from simulated tables with the
noise that the branches of a trunk share. Tables without trunks are analyzed at the budgets of their rows, by
`allocation`. A counting convention defines N and C (6 N D or exact FLOPs, with or without embeddings), and every
approach is fitted under each convention; none is recommended.
Source: Porian et al. 2024, arXiv:2406.19146 (explains Kaplan's exponent of .73 to .88 vs Chinchilla's .5)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np

from kleiber.inference.parabola import fit_parabola
from kleiber.studies.laws import allocation
from kleiber.studies.laws.allocation import Exponent, Vertex, envelope, regress, vertices
from kleiber.studies.laws.fit import depends, fit
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.uncertainty import Draws, interval, interval_ends
from kleiber.studies.laws.variance_components import Layout, VarianceComponents
from kleiber.studies.laws.verdicts import Verdict
from kleiber.types import Json

NEAR = 8.0  # sizes that differ by more than this factor cross where a size in between is better than both
BUDGETS = 9  # approach 2 uses at most this many budgets
DRAWS = 120  # simulated tables behind an interval
STANDARD = "6ND"  # the convention that others are compared with
FARTHEST = 4.0  # the allocation is reported up to this multiple of the largest compute of the rows


@dataclass(frozen=True)
class Curve:
    """The loss of one model size vs compute: log L as a polynomial in log C, linear for two budgets, else quadratic.

    log_n         log of the model size in parameters
    low, high     smallest and largest log C of the fitted rows
    coefficients  of the polynomial, highest power first
    """

    log_n: float
    low: float
    high: float
    coefficients: Array

    def at(self, log_c: Array) -> Array:
        return np.asarray(np.polyval(self.coefficients, log_c), dtype=np.float64)


def curves(N: Array, C: Array, loss: Array) -> list[Curve]:
    """Fits a curve to each size with at least two budgets; replicates are not averaged."""
    fitted_curves = []
    for size in np.unique(N):
        x, y = np.log(C[size == N]), np.log(loss[size == N])
        distinct = len(np.unique(np.round(x, 6)))
        if distinct >= 2:
            fitted = np.polyfit(x, y, min(2, distinct - 1))
            fitted_curves.append(Curve(float(np.log(size)), float(x.min()), float(x.max()), fitted))
    return fitted_curves


def crossings(size_curves: list[Curve]) -> list[Vertex]:
    """Approach 1: the compute at which the curves of two sizes cross; N_opt there is the geometric mean of the sizes.

    A crossing counts only if the larger size is better above it.
    """
    points = []
    for small, large in combinations(size_curves, 2):
        low, high = max(small.low, large.low), min(small.high, large.high)
        if high <= low or large.log_n - small.log_n > np.log(NEAR):
            continue
        x = np.linspace(low, high, 200)
        gap = small.at(x) - large.at(x)
        up = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
        if len(up) == 1:
            k = int(up[0])
            where = x[k] - gap[k] * (x[k + 1] - x[k]) / (gap[k + 1] - gap[k])
            points.append(Vertex(float(np.exp(where)), (small.log_n + large.log_n) / 2))
    return points


def parabola_minima(size_curves: list[Curve], least: int = 3) -> list[Vertex]:
    """Approach 2: minima of parabolas in log N at up to BUDGETS budgets at which at least `least` sizes have a curve.

    A minimum outside the sizes of its budget is ignored.
    """
    ends = np.unique([end for curve in size_curves for end in (curve.low, curve.high)])
    vertices_inside = []  # midpoints of ends too: between two ends the same sizes have a curve, however narrow the gap
    for budget in np.unique([*np.linspace(ends[0], ends[-1], 48), *(ends[1:] + ends[:-1]) / 2]):
        here = [curve for curve in size_curves if curve.low <= budget <= curve.high]
        if len(here) < least:
            continue
        x = np.array([curve.log_n for curve in here])
        y = np.array([float(curve.at(np.array(budget))) for curve in here])
        fit = fit_parabola(x, y)
        if fit is not None and x.min() < fit.vertex < x.max():
            vertices_inside.append(Vertex(float(np.exp(budget)), fit.vertex))
    keep = np.unique(np.linspace(0, len(vertices_inside) - 1, BUDGETS).round().astype(int)) if vertices_inside else []
    return [vertices_inside[i] for i in keep]


def exponents(
    N: Array, C: Array, loss: Array, noise: VarianceComponents | None, layout: Layout, level: float, seed: int = 0
) -> list[Exponent]:
    """Approaches 1 and 2; the intervals come from tables simulated with the noise in log L of trunks and rows.

    An approach needs three points whose budgets span at least 0.2 in log C. Empty if `noise` is None.
    """
    if noise is None:
        return []
    drawn = noise.draw(np.random.default_rng(seed), DRAWS, layout)
    simulated = [curves(N, C, losses) for losses in np.exp(np.log(loss)[None] + drawn)]
    answers = []
    for name, approach in (("1 envelope (ties)", crossings), ("2 isoflop (interpolated)", parabola_minima)):
        points = approach(curves(N, C, loss))
        fitted = _line(points)
        if fitted is None:
            continue
        lines = [line for line in (_line(approach(curve)) for curve in simulated) if line is not None]
        if len(lines) < 0.8 * DRAWS:
            continue
        lo, hi = interval(np.array([slope for slope, _ in lines]), level)
        answers.append(Exponent(name, fitted[0], float(lo), float(hi), _points_with_intervals(points, lines, level)))
    return answers


def _line(points: list[Vertex]) -> tuple[float, float] | None:
    """Returns slope and intercept of the least-squares line of log N against log C, both natural logarithms.

    None for fewer than three points, or if log C spans less than 0.2.
    """
    if len(points) < 3:
        return None
    x, y = np.log([p.compute for p in points]), np.array([p.log_n for p in points])
    if np.ptp(x) < 0.2:
        return None
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() - slope * x.mean())


def _points_with_intervals(
    points: list[Vertex], lines: list[tuple[float, float]], level: float
) -> list[dict[str, float]]:
    """Returns the points, each with the interval of N_opt at its compute from the lines of the simulated tables."""
    bars = []
    for point in points:
        spread = np.exp([slope * np.log(point.compute) + intercept for slope, intercept in lines])
        bars.append({"C": point.compute, "N": float(np.exp(point.log_n)), **interval_ends(spread, level)})
    return bars


def exponents_by_approach(model: NoiseModel, draws: Draws | None, level: float = 0.9) -> list[Exponent]:
    """Returns the exponent of every approach that the rows allow.

    Approaches 1 and 2 need three usable budgets; approach 3 needs a law whose parameters determine a_opt.
    """
    problem, C = model.fit.problem, model.compute
    assert C is not None
    N, loss = problem.inputs["N"], problem.target
    if model.averaged and model.clusters is not None:
        answers = exponents(N, C, loss, model.components(), model.layout, level)
    else:
        approaches = (
            regress("1 envelope", envelope(N, C, loss), level),
            regress("2 isoflop", vertices(N, C, loss), level),
        )
        answers = [exponent for exponent in approaches if exponent is not None]
    lost = {"A", "B"} & set(model.fit.dropped)
    if draws is not None and "a_opt" in draws.fit.law.derived and not lost:
        if depends(draws.fit.law.derive(draws.fit.undetermined())["a_opt"]):
            return answers
        value = float(draws.fit.law.derive(draws.fit.values)["a_opt"][0])
        lo, hi = interval(draws.derive()["a_opt"], level)
        answers.append(Exponent("3 parametric", value, float(lo), float(hi)))
    return answers


def conventions(columns: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Returns (N, C) by counting convention, from N, D, `Nnoemb` (without embeddings), `Cexact` (exact FLOPs)."""
    N, D = columns["N"], columns["D"]
    choices = {STANDARD: (N, 6 * N * D)}
    if "Nnoemb" in columns:
        choices["6ND without embeddings"] = (columns["Nnoemb"], 6 * columns["Nnoemb"] * D)
    if "Cexact" in columns:
        choices["exact FLOPs"] = (N, columns["Cexact"])
        choices["N = exact FLOPs / 6D"] = (columns["Cexact"] / (6 * D), columns["Cexact"])
        if "Nnoemb" in columns:
            choices["exact FLOPs, N without embeddings"] = (columns["Nnoemb"], columns["Cexact"])
    return choices


def accounting(
    model: NoiseModel, drawn: Draws | None, draws: int = 100, seed: int = 0, level: float = 0.9
) -> list[Json]:
    """Returns a row for each counting convention and approach: {convention, approach, a, lo, hi, shift}.

    `shift` is the difference to the convention 6ND, None if that does not have the approach. Approach 3 refits the law
    with the convention's N; its a_opt assumes C = 6 N D with that N. If that N is the N of the model, the interval is
    taken from its draws `drawn`, so that the report has one interval for this number. Empty if 6ND is the only
    convention.
    """
    problem = model.fit.problem
    choices = conventions({**model.columns, **problem.inputs})
    if len(choices) < 2:
        return []
    rows: list[Json] = []
    base: dict[str, float] = {}
    for name, (N, C) in choices.items():
        if np.array_equal(N, problem.inputs["N"]):
            counted, refits = replace(model, columns={"C": C}), drawn
        else:
            counted = refit_with_counts(model, N, C)
            refits = counted.draws(draws, seed)
        for exponent in exponents_by_approach(counted, refits, level):
            if name == STANDARD:
                base[exponent.approach] = exponent.a
            shift = exponent.a - base[exponent.approach] if exponent.approach in base else None
            ends = {"a": exponent.a, "lo": exponent.lo, "hi": exponent.hi, "shift": shift}
            rows.append({"convention": name, "approach": exponent.approach, **ends})
    return rows


def refit_with_counts(model: NoiseModel, N: Array, C: Array) -> NoiseModel:
    """Refits the law with other values of N and C for each row and for the runs that were averaged into it."""
    problem, runs = model.fit.problem, model.runs
    inputs = {**problem.inputs, "N": N}
    refitted = fit(problem.law, inputs, problem.target, problem.loss_fn, problem.delta, problem.space, problem.scale)
    runs = replace(runs, inputs={**runs.inputs, "N": N[runs.row]})
    return replace(model, fit=refitted, runs=runs, layout=replace(model.layout, log_size=np.log(N)), columns={"C": C})


def allocate(model: NoiseModel, draws: Draws | None, judged: list[Verdict], level: float, seed: int) -> dict[str, list]:
    """Returns approaches, accounting and allocation for the record; adds a verdict if approaches disagree."""
    record: dict[str, list] = {"approaches": [], "accounting": [], "allocation": []}
    compute = model.compute
    if set(model.fit.law.inputs) != {"N", "D"} or compute is None:
        return record
    compared = exponents_by_approach(model, draws, level)
    record["approaches"] = [asdict(exponent) for exponent in compared]
    apart = allocation.disagreement(compared)
    if apart:
        judged.append(Verdict("approaches_disagree", "warn", apart))
    record["accounting"] = accounting(model, draws, seed=seed, level=level)
    if draws:
        budgets = np.geomspace(compute.min(), FARTHEST * compute.max(), 13)
        record["allocation"] = allocation.allocation(draws, budgets, level)
    return record
