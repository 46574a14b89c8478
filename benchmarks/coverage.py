"""Do intervals cover, and does the test of a transient leave exact laws alone? Simulated tables of a known law.

    python benchmarks/coverage.py --tables 250 --workers 2 --out coverage.json     # 8 settings of 250 tables each

A table is a ladder of 6 sizes x 5 numbers of tokens (30 rows, or 60 with two seeds), an exact Chinchilla law and noise
of .6 % of the loss: of rows alone, falling with size, shared by the branches of a trunk, or with one outlier of 20 %.
Told are, by setting, the share of tables whose interval holds the truth, the median width over that of an oracle that
knows the sampling distribution of the same estimator, tables where a parameter is not identified, and tables refused.
Planted transients, of which three standard deviations of a seed are left when the law has absorbed what it can, tell
the power of the test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.studies.laws import laws_json
from kleiber.studies.laws.allocation import optimum
from kleiber.studies.laws.asymptotics import pre_asymptotic_reasons
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.table import load
from kleiber.studies.laws.transients import diagnose
from kleiber.studies.laws.uncertainty import interval

LAW = find("chinchilla")
SD = 0.006
PARAMETERS = ("E", "A", "B", "alpha", "beta")
QUANTITIES = (*PARAMETERS, "a_opt", "loss at 4x")


@dataclass(frozen=True)
class Ladder:
    """A true law and its sizes and tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    sizes: np.ndarray
    tokens: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return np.array([[self.E, self.A, self.B, self.alpha, self.beta]])


# The refit of Chinchilla's table by Besiroglu et al. 2024 (arXiv:2404.10102), and our own recorded ladder.
LADDERS = (
    Ladder(1.8172, 482.01, 2085.43, 0.3478, 0.3658, np.geomspace(1e8, 1e10, 6), 2e9 * 2.0 ** np.arange(5)),
    Ladder(0.96, 79.0, 176.0, 0.494, 0.431, 35552 * 26.4 ** (np.arange(6) / 5), 1e6 * 2.0 ** np.arange(5)),
)


@dataclass(frozen=True)
class Setting:
    """Noise of a table: correlation within a trunk, seeds of a size, its fall over the sizes, one outlier, a planted
    transient along N or D (then of which scale, in rungs)."""

    name: str
    correlation: float = 0.0
    seeds: int = 2
    falls: float = 1.0
    outlier: float = 0.0
    cluster: bool = True
    planted: tuple[str, float] | None = None


SETTINGS = (
    Setting("independent"),
    Setting("falling 6-fold with size", falls=6.0),
    Setting("trunk correlation .5", 0.5),
    Setting("trunk correlation .8", 0.8),
    Setting("trunk correlation .96", 0.96),
    Setting("trunk correlation .8, one seed", 0.8, seeds=1),
    Setting("trunk correlation .96, one seed", 0.96, seeds=1),
    Setting("trunk correlation .8, one outlier", 0.8, outlier=0.2),
)
PLANTED = (
    Setting("transient along D", 0.8, planted=("D", 2.0)),
    Setting("transient along D, independent", planted=("D", 2.0)),
    Setting("transient along D, one seed", 0.8, seeds=1, planted=("D", 2.0)),
)


def table(setting: Setting, ladder: Ladder, seed: int) -> pd.DataFrame:
    """Rows N, D, loss, trunk of one simulated ladder."""
    rng = np.random.default_rng([seed, 20261126])
    N, D, k = (a.ravel() for a in np.meshgrid(ladder.sizes, ladder.tokens, np.arange(setting.seeds), indexing="ij"))
    trunk = np.searchsorted(ladder.sizes, N) * setting.seeds + k
    shared = rng.normal(size=len(ladder.sizes) * setting.seeds)[trunk]
    noise = np.sqrt(1 - setting.correlation) * rng.normal(size=len(N)) + np.sqrt(setting.correlation) * shared
    span = np.log(N / N.min()) / np.log(N.max() / N.min())
    sd = SD * (np.sqrt(setting.falls) * setting.falls**-span)
    log_loss = np.log(LAW.predict({"N": N.astype(float), "D": D.astype(float)}, ladder.values)[0]) + sd * noise
    if setting.outlier:
        log_loss[rng.integers(len(N))] += setting.outlier
    if setting.planted:
        log_loss += planted(setting, ladder, N, D)
    return pd.DataFrame({"N": N, "D": D, "loss": np.exp(log_loss), "trunk": trunk})


def planted(setting: Setting, ladder: Ladder, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """A transient exp(-x/x0) of which three seed sd are left at its largest row once the law has absorbed the rest."""
    assert setting.planted is not None
    along, scale = setting.planted
    x = {"N": N, "D": D}[along]
    exact = fit(LAW, {"N": N, "D": D}, LAW.predict({"N": N, "D": D}, ladder.values)[0])
    basis, _ = np.linalg.qr(exact.problem.jacobian(exact.theta[None])[0])
    term = np.exp(-x / (scale * x.min()))
    left = term - basis @ (basis.T @ term)
    return 3 * SD * term / np.abs(left).max()


def fitted(rows: pd.DataFrame, setting: Setting) -> NoiseModel:
    return fit_with_noise(load(rows, {"L": "loss"}), LAW, None, 1e-3, None, "trunk" if setting.cluster else None)


def at_4x(ladder: Ladder) -> dict[str, np.ndarray]:
    """N and D at the true optimum of 4x the largest compute."""
    truth: dict[str, np.ndarray] = dict(zip(PARAMETERS, ladder.values[0][:, None], strict=True))
    N, D = optimum(truth, 4 * 6 * float(ladder.sizes.max() * ladder.tokens.max()))
    return {"N": N, "D": D}


def quantities(values: np.ndarray, ladder: Ladder) -> np.ndarray:
    """QUANTITIES by row of parameters, on the scale on which widths are compared: logs, and logits of a share."""
    alpha, beta = values[:, 3], values[:, 4]
    with np.errstate(all="ignore"):
        loss = np.log(LAW.predict(at_4x(ladder), values)[:, 0])
        return np.column_stack([np.log(values), np.log(beta / alpha), loss])


def judge(job: tuple[Setting, int, int]) -> dict[str, Any]:
    """One table: truth held, log widths, the estimate, what is not identified, and the reasons of a refusal."""
    setting, seed, draws = job
    ladder = LADDERS[seed % len(LADDERS)]
    model = fitted(table(setting, ladder, seed), setting)
    tested = diagnose(model)
    reasons = pre_asymptotic_reasons(tested) if tested is not None else []
    told: dict[str, Any] = {"setting": setting.name, "ladder": seed % len(LADDERS), "refused": reasons}
    if setting.planted:
        return told
    sample = model.draws(draws, seed)
    assert sample is not None
    profiled = model.profiles(sample, 0.9)
    entries = {
        **laws_json.parameters(model, sample, profiled, 0.9),
        **laws_json.derived(model.fit, sample, profiled, 0.9),
    }
    truth = quantities(ladder.values, ladder)[0]
    ends = {}
    for name in (*PARAMETERS, "a_opt"):
        entry = entries[name]
        if entry["lo"] is not None and entry["hi"] is not None:
            ends[name] = [
                logit(end) if name == "a_opt" else np.log(max(end, 1e-300)) for end in (entry["lo"], entry["hi"])
            ]
    lo, hi = interval(sample.predict(at_4x(ladder))[:, 0])
    ends["loss at 4x"] = [float(np.log(lo)), float(np.log(hi))]
    told["identified"] = all(entries[name]["identified"] for name in PARAMETERS)
    told["missing"] = [name for name in (*PARAMETERS, "a_opt") if not entries[name]["identified"]]
    told["estimate"] = quantities(model.fit.values, ladder)[0].tolist()
    told["ends"] = ends
    told["held"] = {
        name: bool(ends[name][0] <= truth[j] <= ends[name][1]) for j, name in enumerate(QUANTITIES) if name in ends
    }
    return told


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage, widths over the oracle's, not identified and refused, of the tables of one setting."""
    told: dict[str, Any] = {"tables": len(rows), "refused": share([bool(row["refused"]) for row in rows])}
    if "held" not in rows[0]:
        return told
    told["not identified"] = share([not row["identified"] for row in rows])
    told["coverage"], told["width / oracle"] = {}, {}
    for j, name in enumerate(QUANTITIES):
        told["coverage"][name] = share([row["held"][name] for row in rows if name in row["held"]])
        ratios = []
        for number in range(len(LADDERS)):
            mine = [row for row in rows if row["ladder"] == number]
            oracle = 2 * 1.6449 * float(np.std([row["estimate"][j] for row in mine if np.isfinite(row["estimate"][j])]))
            ratios += [(row["ends"][name][1] - row["ends"][name][0]) / oracle for row in mine if name in row["ends"]]
        told["width / oracle"][name] = round(float(np.median(ratios)), 3)
    return told


def share(flags: list[bool]) -> float:
    return round(float(np.mean(flags)), 3)


def run(settings: tuple[Setting, ...], tables: int, draws: int, workers: int, seed: int = 0) -> dict[str, Any]:
    """The summaries of all settings by name."""
    jobs = [(setting, seed + number, draws) for number in range(tables) for setting in settings]
    found: dict[str, list[dict[str, Any]]] = {setting.name: [] for setting in settings}
    began = time.monotonic()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for done, told in enumerate(pool.map(judge, jobs, chunksize=4), 1):
            found[told["setting"]].append(told)
            if done % 50 == 0:
                print(f"{done} of {len(jobs)} tables, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {name: summary(rows) for name, rows in found.items()}


def show(found: dict[str, Any]) -> None:
    print(f"{'setting':36}" + "".join(f"{name:>12}" for name in QUANTITIES) + f"{'not ident.':>11}{'refused':>9}")
    for name, told in found.items():
        if "coverage" not in told:
            print(f"{name:36}{'':95}{told['refused']:9.3f}")
            continue
        cells = [f"{told['coverage'][q]:.2f} ({told['width / oracle'][q]:.2f})" for q in QUANTITIES]
        print(
            f"{name:36}"
            + "".join(f"{cell:>11}" for cell in cells)
            + f"{told['not identified']:11.3f}{told['refused']:9.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=250, help="of each setting")
    parser.add_argument("--draws", type=int, default=199, help="refits of a table")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = tuple(setting for setting in (*SETTINGS, *PLANTED) if args.only in setting.name)
    found = run(chosen, args.tables, args.draws, args.workers, args.seed)
    show(found)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
