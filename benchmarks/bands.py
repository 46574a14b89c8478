"""Compares rules for the band of a new run beyond the rows of a fit, on published tables and on one of our own.

    python benchmarks/bands.py --data FOLDER --out benchmarks/results/bands.json    # 1 to 10 minutes, one process

FOLDER holds the published tables (gemstones_hot.jsonl, marin_comma.csv, ...); a table that is missing is skipped. Every
table is cut along compute, or size, six times: the law is fitted below the cut and predicts the runs above it. Rules:

    before             parameters and noise alone: refits, and the standard deviation of the residuals as a run's noise.
                       It approximates the earlier release, whose refits were drawn by other kinds of bootstrap.
    inflation          x times the standard deviation of parameters and noise (studentized errors)
    forms              parameters, noise, and x times the spread of other forms fitted to the same rows
    per decade         parameters, noise, and a misfit of x per decade beyond the rows
    expected, weight w the product's rule, with EXPECTED = x and WEIGHT = w
    product            the product's rule as it stands, scored by `kleiber.studies.laws.backtest.backtests`

For each data set x is the least value at which the *other* data sets are covered at the level, every set counting the
same. In a coverage the runs of a trunk are one run, counted once a cut. Sets with few independent runs are pooled.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from published_tables import Source, sources
from scipy.special import ndtri
from scipy.stats import gmean

from kleiber.studies.laws import prediction
from kleiber.studies.laws.backtest import ABOVE, BELOW, Backtest, backtests
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit, refit
from kleiber.studies.laws.law import LAWS, Array
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.prediction import Evidence, Misfit
from kleiber.studies.laws.table import load
from kleiber.studies.laws.uncertainty import interval

LEVEL = 0.9
Z = float(ndtri((1 + LEVEL) / 2))
SHARES = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85)  # of the rows below a cut
FEWEST_RUNS = 10  # independent runs below which a set is pooled with others
FORMS = ("no_floor", "chinchilla_tied", "kaplan", "interaction")
POOR_FIT = 4.0  # times the law's residual sum of squares at which another form is left out
WEIGHTS = (1.0, 2.0, 4.0, 8.0)
TUNED = ("inflation", "forms", "per decade", *(f"expected, weight {weight:g}" for weight in WEIGHTS))
RULES = ("before", "product", *TUNED)
POOLED = "fewer than ten runs, pooled"


@dataclass(frozen=True)
class Cut:
    """What every rule needs of one cut of one table; arrays are by row above the cut.

    misfit  what the table's lower cuts show on the rows below this one
    runs    names of the runs
    before  standard deviation, in logs, of parameters and residuals
    forms   root mean square of the logs of other forms' predictions over the law's
    """

    source: Source
    product: Backtest
    evidence: Evidence
    misfit: Misfit
    runs: list[str]
    before: Array
    forms: Array

    def half_width(self, rule: str, x: float) -> Array:
        """Half of the band in logs."""
        known, decades = self.evidence.variance, self.evidence.decades
        if rule == "before":
            return Z * self.before
        if rule == "inflation":
            return x * Z * np.sqrt(known)
        if rule == "forms":
            return Z * np.sqrt(known + (x * self.forms) ** 2)
        if rule == "per decade":
            return Z * np.sqrt(known + (x * decades) ** 2)
        with patch.multiple(prediction, EXPECTED=x, WEIGHT=float(rule.split()[-1])):
            return Z * np.sqrt(known + (self.misfit.at_one_decade * decades**prediction.POWER) ** 2)

    def score(self, rule: str, x: float = 1.0) -> tuple[float, float]:
        """Share of independent runs in the band, and its median half-width relative to the prediction."""
        if rule == "product":
            return self.product.coverage, self.product.half_width
        half = self.half_width(rule, x)
        _, member, count = np.unique(self.evidence.cluster, return_inverse=True, return_counts=True)
        held = np.bincount(member, np.abs(self.evidence.error) <= half) / count
        return float(held.mean()), float(np.median(np.sinh(half)))


def cuts_of(source: Source, draws: int) -> list[Cut]:
    """The cuts of a table, from the lowest; those that leave the same rows count once."""
    law = find(source.law)
    table = load(source.frame, {}, (), law.inputs)
    model = fit_with_noise(table, law, None, 1e-3, None, source.cluster)
    assert model.along is not None
    _, along = model.along
    ordered, chosen = np.sort(along), {}
    for share in SHARES:
        cut = float(ordered[int(share * len(ordered))] / BELOW * 0.999)
        below, above = int((along < BELOW * cut).sum()), int((along > ABOVE * cut).sum())
        if below >= model.fit.problem.num_params + 2 and above:
            chosen.setdefault((below, above), cut)
    scores, shown = backtests(model, list(chosen.values()), LEVEL, draws)
    by_rows = {evidence.rows.tobytes(): evidence for evidence in shown.evidence}
    cuts, lower = [], Misfit()
    for score in scores:
        train, test = along < BELOW * score.cut, along > ABOVE * score.cut
        evidence = by_rows.get(np.flatnonzero(test).tobytes())
        if evidence is None:
            print(f"{source.name}: no band at {score.cut:g}", flush=True)
            continue
        names = evidence.cluster if source.cluster else table.frame.index[evidence.rows]
        runs = [f"{source.runs or source.name} {name}" for name in names]
        others = other_predictions(model, train, test, draws)
        cuts.append(Cut(source, score, evidence, lower.within(train), runs, *others))
        lower = Misfit((*lower.evidence, evidence))
    return cuts


def other_predictions(model: NoiseModel, train: NDArray, test: NDArray, draws: int) -> tuple[Array, Array]:
    """`before` and `forms` of a Cut."""
    part, tested, problem = refit(model.fit, train), model.fit.problem.rows(test), model.fit.problem.rows(train)
    predicted, sample = part.predict(tested.inputs), model.on_rows(part, train).draws(draws, 0)
    assert sample is not None
    lo, hi = np.log(np.maximum(interval(sample.predict(tested.inputs), LEVEL), 1e-300))
    residual = part.noise * {"log": 1.0, "log10": np.log(10), "linear": 1 / predicted}[tested.space]
    squares = []
    for name in FORMS if set(model.fit.law.inputs) == {"N", "D"} else ():
        form = fit(LAWS[name], problem.inputs, problem.target, problem.loss_fn, problem.delta, problem.space)
        if (form.residuals**2).sum() < POOR_FIT * (part.residuals**2).sum():
            squares.append(np.log(form.predict(tested.inputs) / predicted) ** 2)
    spread = np.sqrt(np.mean(squares, axis=0)) if squares else np.zeros_like(predicted)
    return np.hypot(residual, (hi - lo) / 2 / Z), spread


def tuned(cuts: Sequence[Cut], rule: str) -> float:
    """The least x at which the coverage, averaged over data sets, is the level."""
    grid = np.geomspace(0.1, 30, 60) if rule in ("inflation", "forms") else np.geomspace(0.002, 0.5, 60)
    for x in grid:
        shares = [coverage(group, rule, x) for group in by_set(cuts).values()]
        if np.mean(shares) >= LEVEL:
            return float(x)
    return float(grid[-1])


def by_set(cuts: Sequence[Cut]) -> dict[str, list[Cut]]:
    sets: dict[str, list[Cut]] = {}
    for cut in cuts:
        sets.setdefault(cut.source.data_set, []).append(cut)
    return sets


def coverage(cuts: Sequence[Cut], rule: str, x: float = 1.0) -> float:
    return average_over_runs(cuts, [cut.score(rule, x)[0] for cut in cuts])


def average_over_runs(cuts: Sequence[Cut], shares: Sequence[float]) -> float:
    return float(np.average(shares, weights=[cut.product.n_runs for cut in cuts]))


def summary(cuts: Sequence[Cut], x: dict[tuple[str, str], float]) -> dict[str, Any]:
    """Runs, and by rule the coverage, the median over cuts of the half-width, and its ratio to the one before."""
    tables: dict[str, list[int]] = {}
    for cut in cuts:
        tables.setdefault(cut.source.name, []).append(cut.product.n_runs)
    rules: dict[str, dict[str, float]] = {}
    for rule in RULES:
        scores = np.array([cut.score(rule, x.get((cut.source.data_set, rule), 1.0)) for cut in cuts])
        half = float(np.median(scores[:, 1]))
        rules[rule] = {
            "coverage": round(average_over_runs(cuts, scores[:, 0].tolist()), 3),
            "half_width": float(f"{half:.4g}"),
        }
        rules[rule]["ratio"] = round(half / rules["before"]["half_width"], 2)
        if len(values := {x[cut.source.data_set, rule] for cut in cuts if rule in TUNED}) == 1:
            rules[rule]["x"] = round(values.pop(), 4)
    runs = len({run for cut in cuts for run in cut.runs})
    return {"runs": runs, "runs_by_cut": tables, "rules": rules}


def compare(cuts: Sequence[Cut]) -> dict[str, Any]:
    """The summary of every data set, of those with few runs together, and of all."""
    names = list(by_set(cuts))
    x = {(name, rule): tuned([c for c in cuts if c.source.data_set != name], rule) for name in names for rule in TUNED}
    groups = by_set(cuts)
    few = [n for n in names if len({run for cut in groups[n] for run in cut.runs}) < FEWEST_RUNS]
    if few:
        groups[POOLED] = [cut for cut in cuts if cut.source.data_set in few]
    sets = {name: summary(group, x) for name, group in {**groups, "all": list(cuts)}.items()}
    return {
        "level": LEVEL, "EXPECTED": prediction.EXPECTED, "WEIGHT": prediction.WEIGHT, "sets": sets,
        "averages over sets": averages([sets[name]["rules"] for name in groups if name not in few]),
        "x tuned on all sets": {rule: round(tuned(cuts, rule), 4) for rule in TUNED},
    }  # fmt: skip


def averages(sets: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By rule the mean of the coverage and the geometric mean of the ratio; the pooled sets count as one."""
    means: dict[str, dict[str, float]] = {}
    for rule in RULES:
        share = np.mean([rules[rule]["coverage"] for rules in sets])
        means[rule] = {"coverage": round(float(share), 3)}
        means[rule]["ratio"] = round(float(gmean([rules[rule]["ratio"] for rules in sets])), 2)
    return means


def show(record: dict[str, Any]) -> None:
    for name, entry in record["sets"].items():
        print(f"\n{name}: {entry['runs']} independent runs above {sum(map(len, entry['runs_by_cut'].values()))} cuts")
        for rule, row in entry["rules"].items():
            x = f"x = {row['x']:.3g}" if "x" in row else ""
            print(f"  {rule:20} {row['coverage']:.2f}  +- {row['half_width']:.2%}  {row['ratio']:.2f} of before  {x}")
    for key in ("averages over sets", "x tuned on all sets"):
        print(f"\n{key}:", *(f"  {rule}: {value}" for rule, value in record[key].items()), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published tables")
    parser.add_argument("--draws", type=int, default=200, help="refits of a cut")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cuts = []
    for source in sources(args.data):
        mine = cuts_of(source, args.draws)
        print(f"{source.name}: {len(mine)} cuts", flush=True)
        cuts += mine
    record = compare(cuts)
    show(record)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
