"""Is the ladder on the power law yet? Steepening slopes, transients, a floor that wants to be negative.

Small runs pass a transient before the power law (induction heads, warm-up). A law fitted through it fits well and
extrapolates badly, so the tests look for structure in the residuals, not for a large error. It refuses to say
"asymptotic" as more than "no sign of a transient in these rows".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit

from kleiber.studies.fit import Fit, fit
from kleiber.studies.law import Array, Linear
from kleiber.studies.replicates import cells
from kleiber.studies.solve import descend
from kleiber.studies.starts import columns_of
from kleiber.studies.student import reach

ALPHA = 0.01  # level of the slope and of the floor test; the transient test has 5 %: a clean ladder passes 9 in 10
SIZEABLE = 0.01  # relative size at the lowest rung below which a transient is no reason to refuse
MOVED = 0.1  # change of beta on doubling the least D that forbids the word law
NO_POWER = 1e-6  # an exponent below is at its bound
NULL_DRAWS = 4000


@dataclass(frozen=True)
class Transient:
    """The best-fitting transient: along which input, its scale, relative size at the lowest rung, and p-value."""

    along: str
    scale: float
    size: float
    p_value: float


def signs(found: Fit) -> list[str]:
    """Reasons to call the ladder pre-asymptotic; empty means no sign of it in these rows.

    Steepening: mean change of local slope d log L / d log D (or N) < 0, one-sided t over ladders, each rung tested
    apart (Bonferroni). Transient: `transient`, at 5 % and at least 1 % in size. Negative floor: a fit with E of either
    sign is significantly better than E >= 0, and wants E < 0. Moving: beta changes by more than .1, and at 1 % from 0,
    when D below twice its least is left out; `move` says more of it, and `detectable` what these rows cannot show.
    """
    if (
        {"L", "p"} & set(found.law.inputs)
        or found.law.returns != "linear"
        or not {"N", "D", "C"} & set(found.law.inputs)
    ):
        return []  # a law of replay is one of a second training, which begins on no transient of the first
    least = _squared(found)
    reasons = [_steepening(found), _moving(found), _negative_floor(found, least)]
    sign = transient(least)
    if sign is not None and sign.p_value < 5 * ALPHA and abs(sign.size) > SIZEABLE:
        reasons.append(
            f"a transient exp(-{sign.along}/{sign.scale:.2g}) is in the residuals (p = {sign.p_value:.2g}), "
            f"{sign.size:+.1%} at the smallest {sign.along}"
        )
    return [reason for reason in reasons if reason]


def transient(least: Fit) -> Transient | None:
    """The score test for an added term T exp(-x/x0), x = D, N or C, x0 on a grid over the lower half of the rungs.

    Residuals of the least-squares fit are regressed on each transient after projecting out the law's own gradient; the
    largest |t| is compared with its distribution under Gaussian noise (4000 draws), so the search over x0 is paid for.
    """
    found = _candidates(least)
    if found is None:
        return None
    choices, raw, z, basis, spare = found
    problem = least.problem
    direction = z / np.linalg.norm(z, axis=1, keepdims=True)
    noise = np.random.default_rng(0).normal(size=(NULL_DRAWS, problem.num_rows))
    noise -= (noise @ basis) @ basis.T
    null = _student(noise, direction, spare).max(1)
    residual = -least.residuals - (-least.residuals @ basis) @ basis.T
    score = _student(residual[None], direction, spare)[0]
    best = int(np.argmax(score))
    along, scale = choices[best]
    height = float(direction[best] @ residual) / float(np.linalg.norm(z[best]))
    size = height * float(np.abs(raw[best]).max())
    return Transient(along, scale, size, float((1 + (null >= score[best]).sum()) / (1 + NULL_DRAWS)))


def detectable(found: Fit) -> tuple[float, float, float] | None:
    """How large a transient exp(-D/D0) these rows would show: its size at the least D, for D0 = 1, 2 and 4 of them.

    Relative to the loss, for a test of known D0 at 5 % and a power of 90 %; the law's own terms absorb the rest of it.
    None without D or without noise to compare with.
    """
    if "D" not in found.law.inputs or found.law.returns != "linear":
        return None
    least = _squared(found)
    x = least.problem.inputs["D"]
    scales = x.min() * np.array([1.0, 2.0, 4.0])
    known = _candidates(least, {"D": scales})
    if known is None or not least.noise > 0 or len(known[0]) < len(scales):
        return None
    _, raw, z, _, spare = known
    needed = float(stdtrit(spare, 0.95) + stdtrit(spare, 0.9)) * least.noise
    sizes = needed * np.abs(raw).max(1) / np.linalg.norm(z, axis=1)
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def _candidates(
    least: Fit, scales: Mapping[str, Array] | None = None
) -> tuple[list[tuple[str, float]], Array, Array, Array, int] | None:
    """Transients to look for: (input, scale) of each, its rows, the same less what the law absorbs, and the law's
    basis.

    None when no degree of freedom is left, or no input has four rungs.
    """
    problem = least.problem
    jacobian = _tangent(least)
    basis, sizes, _ = np.linalg.svd(
        jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300), full_matrices=False
    )
    basis = basis[:, sizes > 1e-9]
    spare = problem.num_rows - basis.shape[1] - 1
    predicted = least.predict(problem.inputs)
    choices, tried = [], []
    for along in (name for name in ("D", "N", "C") if name in least.law.inputs):
        x = problem.inputs[along]
        rungs = np.unique(x)
        if len(rungs) < (4 if scales is None else 3):
            continue
        usual = np.geomspace(rungs[0] / 2, np.sqrt(rungs[0] * rungs[-1]), 8)
        for scale in usual if scales is None else scales.get(along, ()):
            z = np.exp(-x / scale)
            tried.append(z / predicted if problem.space != "linear" else z)
            choices.append((along, float(scale)))
    if not tried or spare < 3:
        return None
    raw = np.array(tried)
    scaled = problem.scaled(raw)
    z = scaled - (scaled @ basis) @ basis.T
    usable = np.linalg.norm(z, axis=1) > 1e-3 * np.linalg.norm(scaled, axis=1)
    if not usable.any():
        return None
    return [c for c, ok in zip(choices, usable, strict=True) if ok], raw[usable], z[usable], basis, spare


def _student(residuals: Array, direction: Array, spare: int) -> Array:
    """|t| of each direction in each residual vector, (vectors, directions)."""
    part = residuals @ direction.T
    rest = np.maximum((residuals**2).sum(1, keepdims=True) - part**2, 1e-300)
    return np.abs(part) / np.sqrt(rest / spare)


def _squared(found: Fit) -> Fit:
    """The same law by least squares, from where the robust fit ended."""
    problem = replace(found.problem, loss_fn="squared")
    theta, value = descend(problem, found.theta[None], rounds=100, tolerance=1e-10)
    return Fit(problem, theta[0], float(value[0]))


def _tangent(least: Fit) -> Array:
    """The law's gradient by row, dropped linear terms included: a floor at 0 must not read as a transient."""
    jacobian = least.problem.jacobian(least.theta[None])[0]
    if not least.dropped:
        return jacobian
    columns = columns_of(least.problem, least.values)[0]
    if least.problem.space != "linear":
        columns = columns / least.predict(least.problem.inputs)[:, None]
    lost = [k for k, j in enumerate(least.law.linear) if not least.problem.active[j]]
    return np.column_stack([jacobian, least.problem.scaled(columns[:, lost].T).T])


def _steepening(found: Fit) -> str:
    problem = found.problem
    for along in ("D", "N", "C"):
        if along not in found.law.inputs:
            continue
        others = [name for name in found.law.inputs if name != along]
        bends = _bends(problem.inputs, np.log(problem.target), along, others)
        for rung, values in sorted(bends.items()):
            if len(values) < 3:
                continue
            sample = np.array(values)
            t = sample.mean() / max(sample.std(ddof=1) / np.sqrt(len(sample)), 1e-12)
            if stdtr(len(sample) - 1, t) < ALPHA / len(bends) and sample.mean() < -0.01:
                bend = f"bend {sample.mean():.3f}, {len(sample)} ladders"
                return f"log L against log {along} steepens near {along} = {rung:.3g} ({bend})"
    return ""


def _bends(inputs: Mapping[str, Array], log_loss: Array, along: str, others: list[str]) -> dict[float, list[float]]:
    """Changes of local slope d log L / d log x at each inner rung, one per ladder (rows equal in all other inputs)."""
    ladder = cells({name: inputs[name] for name in others}) if others else np.zeros(len(log_loss), dtype=int)
    bends: dict[float, list[float]] = {}
    for number in np.unique(ladder):
        rows = ladder == number
        x = np.unique(inputs[along][rows])
        y = [log_loss[rows & (inputs[along] == value)].mean() for value in x]
        slopes = np.diff(y) / np.diff(np.log(x))
        for k in range(1, len(x) - 1):
            bends.setdefault(float(x[k]), []).append(float(slopes[k] - slopes[k - 1]))
    return bends


@dataclass(frozen=True)
class Move:
    """beta over all rows and over those of twice the least D, and the interval of the change.

    The interval is without bounds, and `late` nan, where the rows above cannot tell a beta of their own.
    """

    early: float
    late: float
    lo: float
    hi: float
    least: float

    @property
    def moved(self) -> bool:
        """By more than .1, and not by chance."""
        return abs(self.late - self.early) > MOVED and not self.lo < 0 < self.hi

    @property
    def settled(self) -> bool:
        """Whether a move of more than .1 is excluded."""
        return self.lo > -MOVED and self.hi < MOVED


def move(found: Fit, level: float = 0.9) -> Move | None:
    """What doubling the least D does to beta; None for laws without both, with too few rows above, and where beta is
    at 0: then nothing depends on D.

    The variance of the change is that of the smaller table less that of all (both at the smaller table's noise).
    """
    least = _squared(found)
    problem, names = least.problem, [n for n, on in zip(least.law.params, least.problem.active, strict=True) if on]
    if "beta" not in names or "D" not in least.law.inputs or least.params["beta"] < NO_POWER:
        return None
    high = problem.inputs["D"] >= 1.999 * problem.inputs["D"].min()
    if high.all() or high.sum() < problem.num_params + 3:
        return None
    early, lowest = least.params["beta"], float(problem.inputs["D"].min())
    untold = Move(early, float("nan"), -float("inf"), float("inf"), lowest)
    if len(np.unique(problem.inputs["D"][high])) < 3:  # E, B and beta are three
        return untold
    rest, j = problem.rows(high), names.index("beta")
    theta, value = descend(rest, least.theta[None], rounds=100, tolerance=1e-10)
    late = Fit(rest, theta[0], float(value[0]))
    if not late.noise > 0 or not least.noise > 0:
        return None
    gained = late.covariance()[0][j, j] / late.noise**2 - least.covariance()[0][j, j] / least.noise**2
    if not gained > 0:  # more rows tell more, unless the fits are not of one law
        return untold
    sd = max(late.noise, least.noise) * float(np.sqrt(gained))
    change, half = late.theta[j] - least.theta[j], reach(rest.num_rows - rest.num_params, level) * sd
    ends = [early * float(np.exp(change + side * half)) - early for side in (-1, 1)]
    return Move(early, late.params["beta"], ends[0], ends[1], lowest)


def _moving(found: Fit) -> str:
    change = move(found, 0.99)
    if change is None or not change.moved:
        return ""
    return f"beta moves from {change.early:.2f} to {change.late:.2f} on doubling the least D"


def _negative_floor(found: Fit, least: Fit) -> str:
    law, problem = found.law, found.problem
    if not isinstance(law.params.get("E"), Linear) or found.params["E"] > 1e-3 * problem.target.min():
        return ""
    spare = problem.num_rows - len(law.params)
    if spare < 3:
        return ""
    either = replace(law, params={**law.params, "E": Linear(signed=True)}, start=None)
    free = fit(either, problem.inputs, problem.target, "squared", space=problem.space)
    statistic = (least.value - free.value) / max(free.value / spare, 1e-300)
    if free.params["E"] < 0 and fdtrc(1, spare, max(statistic, 0.0)) < 2 * ALPHA:
        return f"E sits at 0 and would be {free.params['E']:.3g} if it could"
    return ""
