"""Does the lack-of-fit test find a misfit like the recorded ladder's, and does it leave exact laws alone?

    python benchmarks/misfit.py --tables 80 --covered 15 --out benchmarks/results/misfit.json  # 20 minutes

Tables are ladders of 3, 5 and 7 sizes with two trunks each (6, 10, 14) of four branches, between the smallest and the
largest size of multirun/golden. Exact tables follow its law; the branches of a trunk share .5, .9 or .96 of the
variance of the noise, and in one setting the noise falls 6-fold with size. The planted misfit is the law with an
interaction of size and tokens that was fitted to the same ladder, with the noise between and within its trunks.
Reported by setting: the share of tables warned of (lack of fit), refused (`pre_asymptotic`), or either; for exact
tables, the share of 90 % intervals that contain the parameters; for planted ones, the share of new runs at the largest
size and tokens that the 90 % prediction interval contains.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.records.catalog import read_runs
from kleiber.studies.laws import laws_json
from kleiber.studies.laws.asymptotics import pre_asymptotic_reasons
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.lack_of_fit import lack_of_fit
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.table import load
from kleiber.studies.laws.transients import diagnose
from kleiber.studies.laws.uncertainty import Draws, interval
from kleiber.studies.report import study_of
from kleiber.studies.scaling import Scaling, at_least, finished_rows

LAW = find("chinchilla")
GOLDEN = Path("multirun/golden")
NUM_SIZES = (3, 5, 7)
TOKENS = 2e6 * 2.0 ** np.arange(4)
DRAWS = 199


@dataclass(frozen=True)
class Recorded:
    """The recorded ladder: its law, the law with an interaction, its sizes, and the noise of its runs."""

    exact: dict[str, float]
    bent: dict[str, float]
    sizes: np.ndarray
    sd: float
    correlation: float


@dataclass(frozen=True)
class Setting:
    """Sizes of a table, correlation of the branches of a trunk, fall of the noise over the sizes, and the truth."""

    num_sizes: int
    correlation: float
    falls: float = 1.0
    planted: bool = False

    @property
    def name(self) -> str:
        noise = f"correlation {self.correlation:.2g}" + f", falling {self.falls:g}-fold" * (self.falls != 1)
        return f"{'planted' if self.planted else 'exact'}, {2 * self.num_sizes} trunks, {noise}"


def recorded() -> Recorded:
    """Fits both laws to the rows of the recorded ladder from 2M tokens on."""
    runs = list(read_runs(GOLDEN))
    study = study_of(GOLDEN, runs)
    assert isinstance(study, Scaling)
    table = study.loaded(at_least(finished_rows(runs), TOKENS[0]))
    models = [fit_with_noise(table, find(name), None, 1e-3, None, "trunk") for name in ("chinchilla", "interaction")]
    exact, bent = (model.fit.params for model in models)
    seeds = models[0].seeds
    assert seeds is not None
    sizes = models[0].fit.problem.inputs["N"]
    return Recorded(exact, bent, np.unique(sizes), float(np.hypot(seeds.between, seeds.within)), seeds.correlation)


def truth(setting: Setting, ladder: Recorded) -> tuple[Law, np.ndarray]:
    name, values = ("interaction", ladder.bent) if setting.planted else ("chinchilla", ladder.exact)
    return find(name), np.array([list(values.values())])


def simulate(setting: Setting, ladder: Recorded, rng: np.random.Generator) -> pd.DataFrame:
    """Rows N, D, loss and trunk of one table."""
    sizes = np.geomspace(ladder.sizes[0], ladder.sizes[-1], setting.num_sizes)
    N, D = (axis.ravel() for axis in np.meshgrid(np.repeat(sizes, 2), TOKENS, indexing="ij"))
    trunk = np.repeat(np.arange(2 * setting.num_sizes), len(TOKENS))
    law, values = truth(setting, ladder)
    shared = rng.normal(size=2 * setting.num_sizes)[trunk]
    noise = np.sqrt(setting.correlation) * shared + np.sqrt(1 - setting.correlation) * rng.normal(size=len(N))
    span = np.log(N / N.min()) / np.log(N.max() / N.min())
    noise = ladder.sd * noise * setting.falls ** (0.5 - span)
    inputs: dict[str, np.ndarray] = {"N": N, "D": D}
    return pd.DataFrame({**inputs, "loss": law.predict(inputs, values)[0] * np.exp(noise), "trunk": trunk})


def judge(setting: Setting, ladder: Recorded, seed: int, covered: bool) -> dict[str, Any]:
    """Tests one table; with `covered`, its intervals too."""
    rng = np.random.default_rng([seed, setting.num_sizes, round(100 * setting.correlation), 20261130])
    rows = simulate(setting, ladder, rng)
    model = fit_with_noise(load(rows, {"L": "loss"}), LAW, None, 1e-3, None, "trunk")
    test, diagnostics = lack_of_fit(model), diagnose(model)
    answer: dict[str, Any] = {
        "warned": test is not None and bool(test.failed),
        "refused": diagnostics is not None and bool(pre_asymptotic_reasons(diagnostics)),
    }
    draws = model.draws(DRAWS, seed) if covered else None
    if draws is None:
        return answer
    if setting.planted:
        return answer | {"band": in_band(setting, ladder, model, draws, rng)}
    entries = laws_json.parameters(model, draws, model.profiles(draws, 0.9), 0.9)
    held = {}
    for name, value in ladder.exact.items():
        lo, hi = entries[name]["lo"], entries[name]["hi"]
        if lo is not None and hi is not None:
            held[name] = lo <= value <= hi
    return answer | {"held": held}


def in_band(setting: Setting, ladder: Recorded, model: NoiseModel, draws: Draws, rng: np.random.Generator) -> bool:
    """Returns whether the prediction interval of a new run at the largest size and tokens contains such a run."""
    test = lack_of_fit(model)
    least = 0.0 if test is None else test.least_run_sd("log")
    at = {"N": np.array([float(ladder.sizes[-1])]), "D": np.array([float(TOKENS[-1])])}
    refits = Draws(draws.fit, draws.values, draws.method, draws.noise, max(model.fit.noise, least))
    lo, hi = interval(refits.predict_runs(at)[:, 0], 0.9)
    law, values = truth(setting, ladder)
    run = law.predict(at, values)[0, 0] * np.exp(ladder.sd * rng.normal())
    return bool(lo <= run <= hi)


def summarize(rows: list[dict[str, Any]], coverage: bool = False) -> dict[str, Any]:
    """Returns the shares of some tables, with the coverage of their intervals if there are enough tables for it."""
    shares: dict[str, Any] = {"tables": len(rows)}
    shares |= {name: share([row[name] for row in rows]) for name in ("warned", "refused")}
    shares["warned or refused"] = share([row["warned"] or row["refused"] for row in rows])
    bands = [row["band"] for row in rows if "band" in row]
    held = [row["held"] for row in rows if "held" in row]
    if not coverage:
        return shares
    if bands:
        shares |= {"with intervals": len(bands), "new runs in the prediction interval": share(bands)}
    if held:
        names = list(dict.fromkeys(name for row in held for name in row))
        shares["with intervals"] = len(held)
        shares["coverage"] = {name: share([row[name] for row in held if name in row]) for name in names}
        shares["intervals"] = {name: sum(name in row for row in held) for name in names}
    return shares


def share(flags: list[bool]) -> float:
    return round(float(np.mean(flags)), 3)


def settings(correlation: float) -> list[Setting]:
    exact = [Setting(count, shared) for count in NUM_SIZES for shared in (0.5, 0.9, 0.96)]
    falling = [Setting(count, 0.9, falls=6.0) for count in (3, 7)]
    return [*exact, *falling, *(Setting(count, correlation, planted=True) for count in NUM_SIZES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=80, help="of each setting")
    parser.add_argument("--covered", type=int, default=15, help="of them, tables whose intervals are computed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ladder, began, found = recorded(), time.monotonic(), {}
    every: dict[str, list[dict[str, Any]]] = {"exact": [], "planted": []}
    for setting in settings(ladder.correlation):
        rows = [judge(setting, ladder, seed, seed < args.covered) for seed in range(args.tables)]
        found[setting.name] = summarize(rows)
        if setting.falls == 1:
            every["planted" if setting.planted else "exact"] += rows
        print(f"{time.monotonic() - began:.0f} s  {setting.name}: {found[setting.name]}", file=sys.stderr, flush=True)
        overall = {f"{kind}, all": summarize(rows, coverage=True) for kind, rows in every.items() if rows}
        if args.out:
            args.out.write_text(json.dumps(overall | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
