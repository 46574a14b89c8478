"""Which interval covers when runs share a trunk? Ways to resample and two delta methods on simulated ladders.

    python benchmarks/resampling.py --tables 60 --draws 99 --out benchmarks/results/resampling.json

Each table is a ladder of `coverage.py` with noise that the branches of a trunk share. Reported by setting and method
are the coverage of nominal 90 % intervals and their median width relative to an oracle, 2 x 1.645 standard deviations
of the estimates of `kleiber fit`; "own oracle" is the same of the estimates that the method belongs to. The methods:

pairs        refits of whole trunks drawn with replacement, on single runs
wild         refits of the fit plus residuals of trunks, adjusted as for CR2, times Webb's six-point weights
parametric   refits of the fit plus noise from variance components with redrawn degrees of freedom, on the means over
             the seeds of a size; the method "cluster t" of `kleiber fit`
CR2          delta method at the least-squares fit, Bell-McCaffrey residuals of trunks
components   delta method at the least-squares fit, variance components of trunks and rows

"+ t" denotes Student's t on the number of trunks less the parameters that trunks alone determine, or on Satterthwaite's
degrees of freedom for components; it multiplies the standard error, for refits that of their percentiles. Otherwise the
interval is the percentiles of the refits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from coverage import LADDERS, LAW, Setting, fitted, table
from scipy.special import stdtrit

from kleiber.studies.laws.fit import Fit, fit
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.solve import descend
from kleiber.studies.laws.uncertainty import bootstrap, interval

LEVEL = 0.9
NORMAL = 1.6449  # quantile of the standard normal distribution at (1 + LEVEL) / 2
PRODUCT = "parametric"
QUANTITIES = ("log alpha", "log beta", "logit a_opt")
WEBB = np.sqrt(np.array([1.5, 1.0, 0.5]))  # Webb 2014: these, and their negatives
SETTINGS = (
    (6, Setting("6 trunks, one seed, correlation .9", 0.9, seeds=1)),
    (6, Setting("6 trunks, one seed, correlation .5", 0.5, seeds=1)),
    (6, Setting("12 trunks, two seeds, correlation .9", 0.9)),
    (6, Setting("12 trunks, two seeds, correlation .5", 0.5)),
    (7, Setting("14 trunks, two seeds, correlation .9", 0.9)),
)


# QUANTITIES by the logs of alpha and beta, which are the last two coordinates of the solver.
CONTRASTS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])


def logs(values: np.ndarray) -> np.ndarray:
    """QUANTITIES of natural parameters, (rows, 3)."""
    return np.log(np.maximum(values[:, -2:], 1e-300)) @ CONTRASTS.T


def adjusted_residuals(least: Fit, trunk: np.ndarray) -> np.ndarray:
    """Residuals (I - H_gg)^(-1/2) e_g of each trunk g, unbiased for independent noise (Bell and McCaffrey 2002)."""
    jacobian = np.nan_to_num(least.problem.exact_jacobian(least.theta[None])[0])
    basis, _ = np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))
    adjusted = np.empty(len(trunk))
    for rows in (trunk == name for name in np.unique(trunk)):
        values, vectors = np.linalg.eigh(np.eye(rows.sum()) - basis[rows] @ basis[rows].T)
        root = np.where(values > 1e-9, 1 / np.sqrt(np.maximum(values, 1e-9)), 0.0)
        adjusted[rows] = vectors @ (root * (vectors.T @ -least.residuals[rows]))
    return adjusted


def wild(single: Fit, residuals: np.ndarray, trunk: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Natural parameters of `count` refits, (count, params)."""
    names, member = np.unique(trunk, return_inverse=True)
    weights = np.random.default_rng(seed).choice(np.concatenate([-WEBB, WEBB]), (count, len(names)))
    targets = single.problem.predict(single.theta[None]) + residuals * weights[:, member]
    theta, value = descend(single.problem, np.repeat(single.theta[None], count, 0), targets, None, None, 50, 1e-6)
    return single.problem.values(theta[np.isfinite(value)])


def symmetric(estimate: np.ndarray, half_width: np.ndarray) -> dict[str, np.ndarray]:
    return {"estimate": estimate, "lo": estimate - half_width, "hi": estimate + half_width}


def judge(job: tuple[int, Setting, int, int]) -> dict[str, Any]:
    """Estimates and ends of intervals by method, of the QUANTITIES of one table."""
    num_sizes, setting, seed, draws = job
    ladder = LADDERS[seed % len(LADDERS)]
    ladder = replace(ladder, sizes=np.geomspace(ladder.sizes.min(), ladder.sizes.max(), num_sizes))
    rows = table(setting, ladder, seed)
    model = fitted(rows, setting)
    inputs, trunk = {name: rows[name].to_numpy(float) for name in ("N", "D")}, rows["trunk"].to_numpy()
    single = NoiseModel.of(fit(LAW, inputs, rows["loss"].to_numpy()), trunk)
    squared = NoiseModel.of(fit(LAW, inputs, rows["loss"].to_numpy(), "squared"), trunk)
    least, noise, one_noise = squared.fit, squared.components(), single.components()
    parametric = model.draws(draws, seed)
    assert noise is not None and one_noise is not None and parametric is not None
    assert parametric.method == "cluster t"

    residuals = adjusted_residuals(least, trunk)
    contrasts = CONTRASTS @ np.linalg.pinv(least.problem.exact_jacobian(least.theta[None])[0])[-2:]
    by_trunk = np.stack([np.bincount(trunk, row * residuals) for row in contrasts])
    variance, df = noise.variance(contrasts, squared.layout)
    t = float(stdtrit(max(noise.df_trunks, 1.0), (1 + LEVEL) / 2))
    robust = adjusted_residuals(single.fit, trunk)
    pairs = bootstrap(single.fit, draws, seed, one_noise, single.layout, None, trunk, "cluster bootstrap")
    refits = (
        ("pairs", single.fit, pairs.values),
        ("wild", single.fit, wild(single.fit, robust, trunk, draws, seed)),
        (PRODUCT, model.fit, parametric.values),
    )
    ends: dict[str, Any] = {}
    for name, found, values in refits:
        center, (lo, hi) = logs(found.values)[0], interval(logs(values), LEVEL)
        ends[name] = {"estimate": center, "lo": lo, "hi": hi}
        if name != PRODUCT:  # its draws hold the degrees of freedom already
            ends[name + " + t"] = symmetric(center, t * (hi - lo) / 2 / NORMAL)
    center = logs(least.values)[0]
    ends["CR2 + t"] = symmetric(center, t * np.sqrt((by_trunk**2).sum(1)))
    ends["components + t"] = symmetric(center, stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(variance))
    return {"setting": setting.name, "ladder": seed % len(LADDERS), "truth": logs(ladder.values)[0], "ends": ends}


def summary(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage, median width relative to the oracle, and the spread of the method's own estimates, by method."""

    def column(method: str, key: str) -> np.ndarray:
        return np.array([row["ends"][method][key] for row in tables])

    def spread(method: str) -> np.ndarray:
        """Width 2 x 1.645 sd of the estimates on the same ladder, (tables, quantities)."""
        return np.stack([2 * NORMAL * column(method, "estimate")[ladder == number].std(0) for number in ladder])

    truth, ladder = (np.array([row[key] for row in tables]) for key in ("truth", "ladder"))
    oracle, methods = spread(PRODUCT), {}
    for name in tables[0]["ends"]:
        lo, hi = column(name, "lo"), column(name, "hi")
        covered = (lo <= truth) & (truth <= hi)
        methods[name] = {
            "coverage": by_quantity(covered.mean(0)),
            "width / oracle": by_quantity(np.median((hi - lo) / oracle, axis=0)),
            "own oracle / oracle": by_quantity(np.median(spread(name) / oracle, axis=0)),
        }
    return {"tables": len(tables), "methods": methods}


def by_quantity(row: np.ndarray) -> dict[str, float]:
    return dict(zip(QUANTITIES, row.round(3).tolist(), strict=True))


def run(tables: int, draws: int, workers: int, out: Path | None) -> dict[str, Any]:
    """Summaries by setting, kept in `out` along the way."""
    jobs = [(sizes, setting, number, draws) for number in range(tables) for sizes, setting in SETTINGS]
    judged, results, began = [], {}, time.monotonic()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for answer in pool.map(judge, jobs):
            judged.append(answer)
            if len(judged) % (4 * len(SETTINGS)) and len(judged) < len(jobs):
                continue
            results = {s.name: summary([row for row in judged if row["setting"] == s.name]) for _, s in SETTINGS}
            if out:
                out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{len(judged)} of {len(jobs)} tables, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return results


def show(results: dict[str, Any]) -> None:
    for name, result in results.items():
        print(f"{name}, {result['tables']} tables: coverage (width / oracle)")
        print(f"  {'':16}" + "".join(f"{q:>14}" for q in QUANTITIES))
        for method, row in result["methods"].items():
            cells = [f"{row['coverage'][q]:.2f} ({row['width / oracle'][q]:.2f})" for q in QUANTITIES]
            print(f"  {method:16}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=60, help="of each setting")
    parser.add_argument("--draws", type=int, default=99, help="refits of a table by each way to resample")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    show(run(args.tables, args.draws, args.workers, args.out))


if __name__ == "__main__":
    main()
