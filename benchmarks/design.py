"""What a design saves: interval efficiency under the assumed law, in a simulation that trains nothing.

The baseline is a 7 x 7 IsoFLOP grid from scratch. Every other design is cut down until its 90 % interval for the loss
at the compute-optimal point of C* is the baseline's, and its cost is told as a share of the baseline's. These are
statements about intervals if the law and the covariance are right, not about accuracy: misfit is not made smaller by
any design (python benchmarks/design.py; about ten seconds of numpy).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kleiber.studies.designs.search import Elimination, Noise, Points, Rules, log_variance
from kleiber.studies.laws.allocation import optimum

LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # Besiroglu et al. 2024, 2404.10102
C_MAX, SPAN, BUDGETS, SIZES, DECAY = 1e21, 4.0, 7, 7, 0.2
RATIO = (1.0, 400.0)  # tokens per parameter of every design, which the baseline's extremes fill
FREE = Rules(points=5, sizes=2, replicates=0)  # the mathematics alone; the shipped design has stricter ones


def size_at(flops: float) -> float:
    return float(optimum({name: np.array([value]) for name, value in LAW.items()}, flops)[0][0])


def made(pairs: list[tuple[float, float]], shared: bool) -> Points:
    """Points at C = 6 N D; one trunk a size where `shared`, else one a point."""
    N, D = np.array(pairs).T
    trunk = np.unique(N, return_inverse=True)[1] if shared else np.arange(len(N))
    return Points(N, D, trunk, 6 * N)


def isoflop(shared: bool, num_sizes: int = 11) -> Points:
    """7 budgets over two decades x 7 sizes a factor 4 around the optimum; on one ladder of sizes where `shared`."""
    budgets = np.geomspace(C_MAX / 100, C_MAX, BUDGETS)
    if not shared:
        grid = [(size_at(c) * r, c) for c in budgets for r in np.geomspace(1 / SPAN, SPAN, SIZES)]
    else:
        ladder = np.geomspace(size_at(budgets[0]) / SPAN, size_at(budgets[-1]) * SPAN, num_sizes)
        near = SPAN * 1.25  # a ladder that serves all budgets meets none of them exactly
        grid = [(n, c) for c in budgets for n in ladder if size_at(c) / near <= n <= size_at(c) * near]
    return made([(n, c / (6 * n)) for n, c in grid], shared)


def candidates(shared: bool, least: float, ratio: tuple[float, float], seeds: int = 1) -> Points:
    """A grid of sizes and budgets within the bounds on D/N, of one seed or of several."""
    ladder = np.geomspace(size_at(C_MAX * least) / 6, size_at(C_MAX) * 6, 24)
    budgets = np.geomspace(C_MAX * least, C_MAX, 14)
    points = within(made([(n, c / (6 * n)) for n in ladder for c in budgets], shared), ratio)
    for _ in range(seeds - 1):
        points = points.join(points)
    return points


def within(points: Points, ratio: tuple[float, float]) -> Points:
    held = points.D / points.N
    return points.keep((held >= ratio[0]) & (held <= ratio[1]))


def reduced(points: Points, goal: float, flops: float, noise: Noise, rules: Rules) -> tuple[Points, float]:
    """The last design on the way down whose interval is still no wider than the goal's, and its cost in FLOPs."""
    left = Elimination(points, [LAW], flops, noise, DECAY, rules)
    best = None
    while left.log_variance <= goal:
        best = points.keep(left.alive.copy())
        if not left.step():
            break
    return (best, best.cost(DECAY)) if best is not None else (points, float("nan"))


def optimal(
    noise: Noise, flops: float, shared: bool = True, least: float = 0.01, cap: float = 1.0,
    ratio: tuple[float, float] = RATIO, base_ratio: tuple[float, float] = RATIO, rules: Rules = FREE,
) -> str:  # fmt: skip
    """The optimal design's cost and interval, relative to the baseline's under the same bounds."""
    base = within(isoflop(shared=False), base_ratio)
    goal, price = log_variance(base, LAW, flops, noise), float((6 * base.N * base.D).sum())
    grid = candidates(shared, least, ratio, 2 if rules.replicates else 1)
    points, cost = reduced(grid.keep(cap * C_MAX * 1.001 >= 6 * grid.N * grid.D), goal, flops, noise, rules)
    return line(points, cost / price, float(np.exp(0.5 * (log_variance(points, LAW, flops, noise) - goal))))


def line(points: Points, cost: float, interval: float) -> str:
    if not cost < np.inf:
        return f"cannot match: all {len(points)} candidates give {interval:.2f} of the interval"
    return f"cost {cost:.2f}   interval {interval:.2f}   {told(points)}"


def told(points: Points) -> str:
    return f"{len(points)} points on {len(np.unique(points.trunk))} trunks"


def main() -> None:
    usual, far = Noise(), 100 * C_MAX
    base, branched = isoflop(shared=False), isoflop(shared=True)
    price = float((6 * base.N * base.D).sum())
    apart = 0.5 * (log_variance(branched, LAW, far, usual) - log_variance(base, LAW, far, usual))
    print("Interval efficiency under the assumed law: cost and interval relative to a 7 x 7 IsoFLOP grid from scratch,")
    print(f"kappa {usual.kappa:g}, ell {usual.ell:g}, rho {usual.rho:g}, C* = 100 C_max, cooldowns of {DECAY:.0%}")
    rows = {
        "IsoFLOP grid from scratch": line(base, 1.0, 1.0),
        "the same on WSD branches": line(branched, branched.cost(DECAY) / price, float(np.exp(apart))),
        "optimal, from scratch": optimal(usual, far, shared=False),
        "optimal on WSD branches": optimal(usual, far),
        "  >= 12 points, 6 sizes, 2 replicates": optimal(usual, far, rules=Rules()),
    }
    told_of(rows)
    wsd, best = (float(rows[name].split()[1]) for name in ("the same on WSD branches", "optimal on WSD branches"))
    print(f"goals: branches alone <= .60 {'met' if wsd <= 0.6 else 'missed'}, ", end="")
    print(f"optimal <= .30 {'met' if best <= 0.3 else 'missed'}")
    print("Sensitivity of the optimal design on WSD branches (interval efficiency under the assumed law)")
    told_of(
        {
            "rho 0": optimal(replace(usual, rho=0.0), far), "rho .8": optimal(replace(usual, rho=0.8), far),
            "ell .7": optimal(replace(usual, ell=0.7), far), "ell 3": optimal(replace(usual, ell=3.0), far),
            "kappa 0": optimal(replace(usual, kappa=0.0), far), "kappa 16": optimal(replace(usual, kappa=16.0), far),
            "C* = 10 C_max": optimal(usual, 10 * C_MAX), "C* = 1000 C_max": optimal(usual, 1000 * C_MAX),
            "runs >= C_max/1000": optimal(usual, far, least=1e-3), "no run above C_max/2": optimal(usual, far, cap=0.5),
            "D/N in [2, 300], of the baseline too": optimal(usual, far, ratio=(2, 300), base_ratio=(2, 300)),
            "D/N in [2, 300], not of the baseline": optimal(usual, far, ratio=(2, 300)),
        }
    )  # fmt: skip


def told_of(rows: dict[str, str]) -> None:
    for name, text in rows.items():
        print(f"  {name:<38} {text}")


if __name__ == "__main__":
    main()
