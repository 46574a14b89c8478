"""Backtests: fit the rows below a cut in compute (or in size if compute is unknown) and predict the rows above it.

The law is compared with two naive predictors: the loss of the nearest smaller run, and a straight line in log-log axes
through the two nearest smaller runs. A law that is not better than both has no predictive value. All errors are on rows
that were not used in the fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kleiber.studies.laws.fit import Fit, fit, refit
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.noise_model import NoiseModel
from kleiber.studies.laws.prediction import Evidence, Misfit, decades_outside, widen_interval
from kleiber.studies.laws.problem import Problem
from kleiber.studies.laws.table import round_down
from kleiber.studies.laws.uncertainty import interval, student_quantile
from kleiber.types import Json

NAIVE_LABELS = {"last_rung": "loss of the nearest smaller run", "line": "log-log line"}
LARGEST_ERROR = 1e6  # relative; a line through a loss of nearly 0 leads anywhere, also to infinity
SAME = 0.05  # values that differ by less count as one: budgets in whole batches are equal only to about a percent
BELOW, ABOVE = 0.85, 1.2  # a gap around each cut, since runs of nominally equal compute differ a little


@dataclass(frozen=True)
class Backtest:
    """Errors on the rows above one cut along C or N.

    mare, bias  mean absolute relative error, mean relative error
    n_runs      number of independent runs above the cut: trunks, or model sizes if seeds were averaged
    coverage    fraction of these runs within the prediction interval of a new run
    half_width  median half-width of that interval, relative to the loss
    """

    cut: float
    n_train: int
    n_test: int
    n_runs: int
    mare: float
    bias: float
    coverage: float
    half_width: float
    naive: dict[str, float] = field(default_factory=dict)
    along: str = "C"

    @property
    def beats_naive(self) -> bool:
        return all(self.mare < error for error in self.naive.values())


def default_cuts(compute: Array, num_params: int, count: int = 3) -> list[float]:
    """Returns up to `count` cuts, at about 1/2, 2/3 and 5/6 of the rows, that leave enough rows on both sides."""
    ordered = np.sort(compute)
    cuts = set[float]()
    for share in np.linspace(0.5, 0.85, count):
        cut = float(f"{ordered[min(int(share * len(ordered)), len(ordered) - 1)] / BELOW * 0.999:.3g}")
        if (compute < BELOW * cut).sum() >= num_params + 2 and (compute > ABOVE * cut).any():
            cuts.add(cut)
    return sorted(cuts)


def backtests(
    model: NoiseModel, cuts: Sequence[float], level: float = 0.9, draws: int = 200, seed: int = 0
) -> tuple[list[Backtest], Misfit]:
    """Returns a `Backtest` for each cut in ascending order, and the misfit that they show together.

    Each fits the rows with C < 0.85 cut and tests those with C > 1.2 cut; N replaces C if compute is unknown
    (`NoiseModel.along`). The prediction interval at a cut includes the misfit that lower cuts show on the rows below
    it. Raises ValueError if a side has too few rows.
    """
    assert model.along is not None
    along, compute = model.along
    done, misfit = [], Misfit()
    for cut in sorted(cuts):
        train, test = compute < BELOW * cut, compute > ABOVE * cut
        if train.sum() <= model.fit.problem.num_params or not test.any():
            raise ValueError(
                f"backtest cut {cut:g} leaves {train.sum()} rows below and {test.sum()} above; it needs more than "
                f"{model.fit.problem.num_params} rows below (the number of parameters) and at least 1 above: choose a "
                f"cut within the range of {along}, {compute.min():.3g} to {compute.max():.3g}"
            )
        scores, evidence = score(model, train, test, misfit, level, draws, seed)
        misfit = Misfit((*misfit.evidence, *evidence))
        done.append(Backtest(cut, **scores, along=along))
    return done, misfit


def score(
    model: NoiseModel, train: NDArray, test: NDArray, misfit: Misfit, level: float = 0.9, draws: int = 200,
    seed: int = 0,
) -> tuple[Json, tuple[Evidence, ...]]:  # fmt: skip
    """Fits the rows `train`; returns the errors on the rows `test` and the evidence of misfit.

    The prediction interval of a new run (`prediction`) includes the uncertainty of the parameters, noise, and the
    misfit within `train`. In the coverage, all rows of a trunk count as one run.
    """
    assert model.along is not None
    problem, (_, compute) = model.fit.problem, model.along
    part, tested = refit(model.fit, train), problem.rows(test)
    sample = model.on_rows(part, train).draws(draws, seed)
    predicted = part.predict(tested.inputs)
    cluster = np.flatnonzero(test) if model.clusters is None else model.clusters[test]
    runs, member, count = np.unique(cluster, return_inverse=True, return_counts=True)
    coverage, half_width, evidence = float("nan"), float("nan"), ()  # without draws nothing is covered or missed
    if sample is not None:
        columns = {**problem.inputs, "C": compute}
        ranges = {name: (float(column[train].min()), float(column[train].max())) for name, column in columns.items()}
        decades = decades_outside(ranges, {name: column[test] for name, column in columns.items()})
        ends = interval(sample.predict_runs(tested.inputs, seed, model.run_scale(test)), level)
        lo, hi = widen_interval(predicted, *ends, misfit.within(train).at_one_decade, decades, level)
        held = (lo <= tested.target) & (tested.target <= hi)
        coverage = float(np.mean(np.bincount(member, held) / count))
        half_width = float(np.median((hi - lo) / 2 / np.abs(predicted)))
        with np.errstate(all="ignore"):
            error = np.log(tested.target / predicted)
            variance = ((np.log(ends[1]) - np.log(ends[0])) / 2 / student_quantile(10**6, level)) ** 2
        if np.isfinite(error).all() and np.isfinite(variance).all():
            evidence = (Evidence(np.flatnonzero(test), cluster, error, variance, decades),)
    error = bounded(predicted / tested.target - 1)
    with np.errstate(over="ignore"):
        guesses = naive_predictions(part.problem, tested, compute[train], compute[test])
        naive = {name: float(np.mean(np.abs(bounded(guess / tested.target - 1)))) for name, guess in guesses.items()}
    scores = {
        "n_train": int(train.sum()), "n_test": int(test.sum()), "n_runs": len(runs),
        "mare": float(np.mean(np.abs(error))), "bias": float(np.mean(error)), "coverage": coverage,
        "half_width": half_width, "naive": naive,
    }  # fmt: skip
    return scores, evidence


def bounded(errors: Array) -> Array:
    """Returns relative errors of which none is larger than LARGEST_ERROR."""
    return np.fmax(np.fmin(errors, LARGEST_ERROR), -LARGEST_ERROR)


def holdouts(model: NoiseModel, misfit: Misfit, level: float = 0.9, draws: int = 200, seed: int = 0) -> list[Json]:
    """Returns the errors when the largest size, the top 4x of compute, or the two largest sizes are held out.

    Only for laws of N and D; a part is skipped if too few rows remain for the fit.
    """
    problem, compute = model.fit.problem, model.compute
    if set(problem.law.inputs) != {"N", "D"} or compute is None:
        return []
    sizes = np.unique(problem.inputs["N"])
    left_out = {"largest size": problem.inputs["N"] >= sizes[-1], "top 4x of compute": compute > compute.max() / 4}
    if len(sizes) > 4:
        left_out["two largest sizes"] = problem.inputs["N"] >= sizes[-2]
    rows = []
    for name, test in left_out.items():
        if (~test).sum() > problem.num_params + 1:
            scores, _ = score(model, ~test, test, misfit, level, draws, seed)
            beats = all(scores["mare"] < error for error in scores["naive"].values())
            rows.append({"name": name, **scores, "beats_naive": beats})
    return rows


def naive_predictions(train: Problem, test: Problem, c_train: Array, c_test: Array) -> dict[str, Array]:
    """Returns the predictions `last_rung` and `line` for each test row.

    They come from the nearest smaller runs in N at the row's D, else in D at its N, else in compute. Runs with other
    inputs equal to within 5 % belong together; in compute, only runs on the lower envelope of losses count.
    """
    last, line = np.empty(len(test.target)), np.empty(len(test.target))
    envelope = _envelope(c_train, train.target)
    for i in range(len(test.target)):
        row = {name: column[i] for name, column in test.inputs.items()}
        along = "N" if _ladder(train, row, "N") else "D"
        rungs = _ladder(train, row, along)
        x, y = rungs if rungs else envelope
        at = row[along] if rungs else c_test[i]
        last[i] = y[-1]
        slope = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2]) if len(x) > 1 and (y[-2:] > 0).all() else 0.0
        line[i] = y[-1] * (at / x[-1]) ** slope
    return {"last_rung": last, "line": line}


def _ladder(train: Problem, row: Mapping[str, float], along: str) -> tuple[Array, Array] | None:
    """Returns the training values of `along` below that of `row` in ascending order, and their mean losses.

    Only rows whose other inputs equal those of `row` to within 5 % count. None below two values.
    """
    if along not in train.inputs:
        return None
    same = np.ones(train.num_rows, dtype=bool)
    for name in train.law.inputs:
        if name != along:
            same &= np.abs(train.inputs[name] - row[name]) <= SAME * np.abs(row[name])
    rungs = round_down(train.inputs[along], SAME)
    same &= rungs < row[along] * 0.999
    x = np.unique(rungs[same])
    if len(x) < 2:
        return None
    return x, np.array([train.target[same & (rungs == rung)].mean() for rung in x])


def _envelope(compute: Array, loss: Array) -> tuple[Array, Array]:
    """Returns compute and loss on the lower envelope; on the upper one if the target rises with compute (N_opt)."""
    compute = round_down(compute, SAME)
    budgets = np.unique(compute)
    if len(budgets) < len(compute):  # of runs at the same compute, only the best counts
        rises = np.polyfit(np.argsort(np.argsort(compute)), loss, 1)[0] > 0
        loss = np.array([(loss[compute == c].max if rises else loss[compute == c].min)() for c in budgets])
        compute = budgets
    order = np.argsort(compute, kind="stable")
    half = len(order) // 2
    sign = 1.0 if loss[order][half:].mean() <= loss[order][:half].mean() else -1.0
    best = np.minimum.accumulate(sign * loss[order])
    step = np.flatnonzero(np.diff(best, prepend=np.inf) < 0)
    return compute[order][step], sign * best[step]


def rank(laws: Sequence[Law], fitted: Fit, compute: Array, share: float = 0.2) -> list[Json]:
    """Ranks laws by their error on the `share` of rows with the largest compute, which are left out of the fit.

    Where more rows have the largest compute, as in a table of budgets, all of them are left out. Also returns AIC =
    n log(RSS / n) + 2 p on the fitted rows. It does not decide the order, since a low AIC does not
    imply good extrapolation.
    """
    problem = fitted.problem
    cut = np.quantile(compute, 1 - share)
    test = compute > cut if (compute > cut).any() else compute >= cut
    train = ~test
    table: list[Json] = []
    for law in laws:
        if any(name not in problem.inputs for name in law.inputs) or train.sum() <= len(law.params) or not test.any():
            continue
        whole, part = problem.rows(train), problem.rows(test)
        space = problem.space if law.returns == "linear" else law.space
        refitted = fit(law, whole.inputs, whole.target, problem.loss_fn, problem.delta, space, whole.scale)
        error = refitted.predict(part.inputs) / part.target - 1
        rss = float((refitted.residuals**2).sum())
        aic = float(train.sum() * np.log(max(rss, 1e-300) / train.sum()) + 2 * len(law.params))
        mare, bias = float(np.abs(error).mean()), float(error.mean())
        table.append({"law": law.name, "mare": mare, "bias": bias, "aic": aic, "n_test": int(test.sum())})
    return sorted(table, key=lambda entry: entry["mare"])
