"""The law of a task's score: from parameters N and tokens D through the loss (chained), or directly.

Chained: a loss law L(N, D), then the score as a curve of the loss (`curves`). Direct: the score of N and D. The
route with the smaller error on runs above several cuts in compute is recorded, unless the user names one. Intervals are
percentiles of refits to the fit plus resampled residuals; the loss and the score of one run are resampled together, so
correlated errors of the two stages stay correlated. Extrapolations have an additional error on the logit scale, which
grows with the distance; its prior comes from published tables, and backtests of the table update it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from kleiber.studies import (
    POWER,
    Array,
    Fit,
    Settings,
    TableLaw,
    Verdict,
    decades_outside,
    descend,
    find,
    fit,
    parameter_lines,
)
from kleiber.types import Json, Row
from kleiber_topics.task_scores.curves import CURVES, FORMS
from kleiber_topics.task_scores.prediction import (
    DownstreamRecord,
    logit,
    predict_point,
    predict_rows,
    prediction_lines,
)
from kleiber_topics.task_scores.runs import FEWEST, Runs, read_runs

LOSS_LAW = "chinchilla_tied"  # extrapolates better than two exponents on few runs of published tables
CUTS = (0.5, 0.65, 0.8)  # fractions of the runs below the cuts of the backtests
CHANCE = 0.01  # largest p-value of the rank correlation of score and loss
EXPECTED = 0.15  # prior error on the logit scale, one decade of compute outside the runs
WEIGHT = 2.0  # weight of the prior, in backtests
ROUTES = ("chained", "direct")


@dataclass(frozen=True)
class Model:
    """A fitted route: the law of the loss (None for the direct route) and that of the score."""

    route: str
    loss: Fit | None
    score: Fit

    def predict(self, runs: Runs) -> Array:
        """Predicts the scores at N and D of the runs, (runs,)."""
        if self.loss is not None:
            runs = replace(runs, loss=self.loss.predict(runs.inputs(self.loss.law)))
        return self.score.predict(runs.inputs(self.score.law))


def fit_route(runs: Runs, route: str, form: str) -> Model:
    """Fits one route. `form` is that of the curve of the loss."""
    curve = CURVES[("direct" if route == "direct" else form) + ("" if runs.floor is not None else "_free")]
    loss = None
    if route == "chained":
        law = find(LOSS_LAW)
        loss = fit(law, runs.inputs(law), runs.loss)
    return Model(route, loss, fit(curve, runs.inputs(curve), runs.acc, "squared", space="linear"))


def fit_scores(frame: pd.DataFrame, roles: Mapping[str, str], settings: Settings) -> tuple[Json, list[Verdict]]:
    """Fits the law to a table; returns its record and verdicts. Raises ValueError for unusable rows."""
    form = settings.form or "sigmoid"
    if form not in FORMS:
        raise ValueError(f"--form {form!r} of law 'downstream' must be one of {', '.join(FORMS)}")
    if settings.route not in (None, *ROUTES):
        raise ValueError(f"--route {settings.route!r} must be one of {', '.join(ROUTES)}")
    runs = read_runs(frame, roles)
    tests = backtests(runs, form)
    errors = {route: float(np.mean([test["mae"][route] for test in tests])) for route in ROUTES} if tests else {}
    route = settings.route or min(errors, key=errors.__getitem__, default="chained")
    model = fit_route(runs, route, form)
    draws = bootstrap(model, runs, settings.bootstrap, settings.seed)
    record: Json = {
        "schema": "kleiber.downstream/1", "law": "downstream", "route": route, "chosen_by": "user" if settings.route
        else "backtests" if tests else "default", "formula": model.score.law.formula, "source": model.score.law.source,
        "n": len(runs), "level": settings.level, "domain": _domain(runs),
        "floor": None if runs.floor is None else float(np.median(runs.floor)), "score": _stage(model.score, draws),
        "loss": None if model.loss is None else _stage(model.loss, draws), "draws": len(draws.noise),
        "residuals": draws.residuals.tolist(), "noise": draws.noise.tolist(), "checkpoint_noise": runs.noise,
        "misfit": misfit(tests, route), "backtests": tests, "residual_rms": float(np.sqrt(np.mean(
            (model.predict(runs) - runs.acc) ** 2))),
    }  # fmt: skip
    return record, judge(runs, record)


def _domain(runs: Runs) -> dict[str, list[float]]:
    columns = {"N": runs.N, "D": runs.D, "C": runs.compute}
    return {name: [float(column.min()), float(column.max())] for name, column in columns.items()}


def backtests(runs: Runs, form: str) -> list[Json]:
    """Returns, for each cut in compute, the mean absolute error of each route and of naive forecasts above it.

    logit_error  root mean square error of each route on the logit scale, divided by decades^POWER
    """
    out: list[Json] = []
    ordered = np.sort(runs.compute)
    for cut in sorted({float(ordered[int(share * len(runs))]) for share in CUTS}):
        train = runs.compute < cut
        if train.sum() < FEWEST or len(np.unique(runs.N[train])) < 2:
            continue
        below, above = runs.keep(train), runs.keep(~train)
        far = decades_outside(_domain(below), {"N": above.N, "D": above.D, "C": above.compute})
        try:
            predicted = {route: fit_route(below, route, form).predict(above) for route in ROUTES}
        except ValueError:  # a part of the runs may be too few for one of the laws
            continue
        last = below.acc[np.argsort(below.compute)[-3:]].mean()
        floor = 0.0 if above.floor is None else above.floor
        scale = np.maximum(far, 0.1) ** POWER
        error = {name: (logit(value, floor) - logit(above.acc, floor)) / scale for name, value in predicted.items()}
        out.append({
            "cut": cut, "n_train": int(train.sum()), "n_test": int((~train).sum()),
            "mae": {name: float(np.abs(value - above.acc).mean()) for name, value in predicted.items()},
            "naive": {"last_runs": float(np.abs(last - above.acc).mean())},
            "logit_error": {name: float(np.sqrt(np.mean(value**2))) for name, value in error.items()},
        })  # fmt: skip
    return out


def misfit(tests: Sequence[Row], route: str) -> float:
    """Returns the error on the logit scale one decade outside the runs: a prior, updated by backtests."""
    total = WEIGHT * EXPECTED**2 + sum(test["logit_error"][route] ** 2 for test in tests)
    return float(np.sqrt(total / (WEIGHT + len(tests))))


@dataclass(frozen=True)
class Refits:
    """Parameters of refits by stage (draws, params), residuals (runs, 2) of log loss and score, noise of each draw."""

    score: Array
    loss: Array | None
    residuals: Array
    noise: Array


def bootstrap(model: Model, runs: Runs, count: int, seed: int) -> Refits:
    """Refits both stages to the fit plus residuals, of which those of one run are drawn together.

    Residuals are scaled to the degrees of freedom, and each draw by the sampling distribution of their variance.
    """
    rng = np.random.default_rng(seed)
    stages = [model.score] if model.loss is None else [model.score, model.loss]
    n = len(runs)
    spare = max(n - max(stage.problem.num_params for stage in stages), 1)
    residuals = [-stage.residuals * np.sqrt(n / max(n - stage.problem.num_params, 1)) for stage in stages]
    drawn = rng.integers(n, size=(count, n))
    scale = np.sqrt(spare / rng.chisquare(spare, size=count))
    values: list[Array] = []
    for stage, residual in zip(stages, residuals, strict=True):
        targets = stage.problem.predict(stage.theta[None]) + residual[drawn] * scale[:, None]
        theta = np.repeat(stage.theta[None], count, 0)
        theta = descend(stage.problem, theta, targets)[0] if count else theta
        values.append(stage.problem.values(theta))
    pair = np.column_stack([residuals[1] if model.loss is not None else np.zeros(n), residuals[0]])
    return Refits(values[0], None if model.loss is None else values[1], pair, scale)


def _stage(fitted: Fit, draws: Refits) -> Json:
    """Returns the record of one stage: its law, parameters and refits."""
    values = draws.loss if fitted.law.name == LOSS_LAW else draws.score
    return {"law": fitted.law.name, "params": fitted.params, "draws": [] if values is None else values.tolist()}


def judge(runs: Runs, record: Row) -> list[Verdict]:
    """Returns what limits the law: a task without signal is refused."""
    out = []
    rank, chance = map(float, np.array(spearmanr(runs.acc, -runs.loss, alternative="greater")))
    if not chance <= CHANCE:
        text = (
            f"not predictable: the score does not rise as the loss falls (rank correlation {rank:.2f}, "
            f"p = {chance:.2g}); the task has no signal at these sizes"
        )
        out.append(Verdict("not_predictable", "refuse", text))
    tests = record["backtests"]
    worse = [test for test in tests if test["mae"][record["route"]] >= test["naive"]["last_runs"]]
    if tests and len(worse) == len(tests):
        text = "not predictable: on the runs above every cut, the score of the largest fitted runs is as close"
        out.append(Verdict("not_predictable", "refuse", text))
    elif worse:
        text = f"the score of the largest fitted runs is as close as the law above {len(worse)} of {len(tests)} cuts"
        out.append(Verdict("naive_wins", "warn", text))
    if not tests:
        out.append(Verdict("no_backtest", "warn", f"{len(runs)} runs are too few for a backtest"))
    if (top := record["score"]["params"].get("top")) is not None and top < 1:
        out.append(Verdict("ceiling", "note", f"the fitted ceiling is {top:.3g} of the range above the floor"))
    return out


def lines(record: Row) -> list[str]:
    """Returns the printed lines of a record."""
    through = f" through the loss ({record['loss']['law']})" if record["loss"] else ""
    out = [
        f"downstream, {record['route']}{through}: {record['formula']}   ({record['source']})",
        f"{record['n']} runs fitted, residual rms {record['residual_rms']:.3g}, route by {record['chosen_by']}",
    ]
    for stage in filter(None, (record["loss"], record["score"])):
        draws = np.array(stage["draws"]).reshape(-1, len(stage["params"]))
        out += parameter_lines([*stage["params"]], [*stage["params"].values()], draws, record["level"], 10)
    for test in record["backtests"]:
        errors = ", ".join(f"{name} {error:.3f}" for name, error in {**test["mae"], **test["naive"]}.items())
        out.append(f"  backtest C < {test['cut']:.3g}: mean absolute error on {test['n_test']} runs: {errors}")
    return out


def downstream() -> TableLaw:
    """The law of `kleiber fit --law downstream`."""
    return TableLaw(
        roles=("N", "D", "loss", "acc", "floor", "run"), options=("form", "route"), record=DownstreamRecord,
        fit=fit_scores, lines=lines, predict_rows=predict_rows, predict_point=predict_point,
        prediction_lines=prediction_lines,
    )  # fmt: skip
