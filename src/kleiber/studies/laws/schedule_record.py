"""The record (laws.json) of a law of schedules: chooses its form by leaving schedules out, and judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from kleiber.studies.laws.analysis import Options, fewest_draws
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.problem import rho
from kleiber.studies.laws.schedule_fit import DELTA, Points, ScheduleFit, fit_curves, points_of
from kleiber.studies.laws.schedule_table import FEWEST, Curve, curves_of, distinct_schedules
from kleiber.studies.laws.schedules import FORMS, ScheduleLaw
from kleiber.studies.laws.table import Table
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.studies.laws.verdicts import Verdict
from kleiber.types import Json, Row

METHOD = "curve noise"
TRANSFER, WEIGHT = (
    1.75e-3,
    2.0,
)  # error of the log loss for a new schedule before backtests, and its weight in schedules
EXPECTED = 0.01  # error of the log loss one decade of steps outside the rows
TO_CHOOSE = 3  # schedules: with two, a backtest fits one, which tells nothing about the form
MOST_LEFT_OUT = 6  # schedules that backtests leave out
FROM_PRIOR = 0.7  # a parameter is that of its prior if its standard deviation is at least this part of the prior's


@dataclass(frozen=True)
class LeftOut:
    """The prediction of a schedule that a fit has not seen, in log loss.

    error   predicted minus observed at the points
    sd      of the prediction at the points, by the noise and the parameters
    other   error of a naive prediction: the mean of the other curves at the same steps; None where none goes so far
    """

    name: str
    n_train: int
    error: Array
    sd: Array
    losses: Array
    other: float | None

    @property
    def relative(self) -> float:
        """Mean absolute error, relative to the loss."""
        return float(np.abs(np.expm1(self.error)).mean())

    @property
    def excess(self) -> float:
        """Mean square error of the log loss beyond what noise and parameters explain; at least 0."""
        return max(float((self.error**2 - self.sd**2).mean()), 0.0)


def analyze(rows: Table, options: Options) -> tuple[ScheduleLaw, Json]:
    """Fits both forms to curves; returns the form with the smaller backtest error, and the record of laws.json.

    Raises ValueError for steps that do not increase within a run, and for runs of few losses.
    """
    curves = curves_of(rows)
    for curve in curves:
        if len(curve.at) < FEWEST:
            raise ValueError(
                f"column {rows.roles['L']!r}: run {curve.name!r} has {len(curve.at)} losses after its warm-up, fewer "
                f"than {FEWEST}: add points, or exclude the run with --where"
            )
    points, groups = points_of(curves), distinct_schedules(curves)
    fits = {form.form: fit_curves(form, curves, points) for form in FORMS}
    tests = {name: _leave_out(fits[name], curves, points, groups) for name in fits} if len(groups) > 1 else {}
    form = FORMS[0]
    if len(groups) >= TO_CHOOSE:
        form = min(FORMS, key=lambda each: np.mean([test.relative for test in tests[each.form]]))
    fitted, left_out = fits[form.form], tests.get(form.form, [])
    judged = [*_refusals(points, groups), *_form_verdicts(form, tests), *_prior_verdict(fitted)]
    judged += _naive_verdicts(left_out)
    draws = fitted.draws(options.bootstrap, options.seed) if options.bootstrap else None
    transfer = float(np.sqrt((WEIGHT * TRANSFER**2 + sum(test.excess for test in left_out)) / (WEIGHT + len(left_out))))
    at = fitted.values[None]
    derived = None if draws is None else form.derive(draws)
    every = np.concatenate(fitted.residuals)
    delta = DELTA * fitted.noise.sd
    record: Json = {
        "schema": "kleiber.law/1", "law": form.name, "formula": form.formula, "source": form.source,
        "n": len(every), "excluded": rows.excluded, "suspects": [],
        "objective": {"kind": "huber", "delta": delta, "space": "log",
                      "value": float(rho(every, "huber", delta).sum()), "sigma": None},
        "params": _estimates(form.named(at), None if draws is None else form.named(draws), options.level),
        "derived": _estimates(form.derive(at), derived, options.level),
        "cov": fitted.cov.tolist(), "cov_of": [f"log {name}" for name in form.params],
        "level": options.level, "residual_rms": float(np.sqrt(np.mean(every**2))),
        "bootstrap": None if draws is None else {"method": METHOD, "draws": len(draws)},
        "domain": _domain(curves, points), "runs_hash": rows.hash(),
        "draws": [] if draws is None else draws[: max(400, fewest_draws(options.level))].tolist(),
        "noise": None, "residual_sd": None,
        "misfit": {"at_one_decade": EXPECTED, "tests": 0, "expected": EXPECTED},
        "scatter": {"noise": fitted.noise.sd, "transfer": transfer, "inflation": fitted.noise.inflation},
        "curves": [_curve_row(curve, each) for curve, each in zip(curves, fitted.residuals, strict=True)],
        "approaches": [], "accounting": [], "allocation": [],
        "backtests": [_test_row(test, name, fitted) for name, each in tests.items() for test in each],
        "predictions": [], "verdicts": [asdict(verdict) for verdict in judged],
        "refused": any(verdict.level == "refuse" for verdict in judged), "form": form.form,
    }  # fmt: skip
    if record["refused"]:
        unknown = {"identified": False, "reason": "these schedules do not determine it"}
        record["params"] |= {
            name: entry | unknown for name, entry in record["params"].items() if name not in ("E", "A", "alpha")
        }
    rows_read = sum(len(curve.at) for curve in curves)
    return form, record | ({"pooled": rows_read} if rows_read > len(every) else {})


def _leave_out(
    whole: ScheduleFit, curves: Sequence[Curve], points: Sequence[Points], groups: Sequence[Sequence[Curve]]
) -> list[LeftOut]:
    """Predicts the curves of each schedule from a fit to the others.

    whole  the fit to all curves
    """
    form = whole.law
    number = {id(curve): g for g, group in enumerate(groups) for curve in group}
    tests = []
    for g, group in enumerate(groups[:MOST_LEFT_OUT]):
        kept = [i for i, curve in enumerate(curves) if number[id(curve)] != g]
        gone = [i for i, curve in enumerate(curves) if number[id(curve)] == g]
        fitted = fit_curves(form, [curves[i] for i in kept], [points[i] for i in kept], whole)
        draws = fitted.draws(100, 0)
        predicted = [np.log(form.losses(points[i].path, fitted.values[None])[0]) for i in gone]
        spread = [np.log(form.losses(points[i].path, draws)).std(0) for i in gone]
        observed = np.concatenate([points[i].logs for i in gone])
        tests.append(
            LeftOut(
                group[0].name, len(kept), np.concatenate(predicted) - observed,
                np.hypot(np.concatenate(spread), fitted.noise.sd), np.exp(observed),
                _naive([points[i] for i in kept], [points[i] for i in gone]),
            )
        )  # fmt: skip
    return tests


def _naive(kept: Sequence[Points], gone: Sequence[Points]) -> float | None:
    """Returns the mean relative error if curves are predicted by the mean of the others at the same steps."""
    errors = []
    for curve in gone:
        steps = curve.path.steps
        others = np.array([np.interp(steps, each.path.steps, each.logs, np.nan, np.nan) for each in kept])
        with_others = np.isfinite(others).any(0)
        if with_others.any():
            mean = np.nanmean(others[:, with_others], axis=0)
            errors.append(np.abs(np.expm1(mean - curve.logs[with_others])))
    return float(np.concatenate(errors).mean()) if errors else None


def _estimates(values: Mapping[str, Array], draws: Mapping[str, Array] | None, level: float) -> dict[str, Json]:
    """Returns value and interval of each quantity, from values (1,) and draws (draws,) by its name."""
    entries: dict[str, Json] = {}
    for name, value in values.items():
        lo, hi = (None, None) if draws is None else (float(end) for end in interval(draws[name], level))
        method = {} if draws is None else {"method": METHOD}
        entries[name] = {"value": float(value[0]), "lo": lo, "hi": hi, "identified": True, "reason": ""} | method
    return entries


def _domain(curves: Sequence[Curve], points: Sequence[Points]) -> dict[str, list[float]]:
    """Returns the smallest and largest step, sum of rates, and peak rate."""
    columns = {
        "step": np.concatenate([curve.at for curve in curves]),
        "lr_sum": np.concatenate([each.path.sums for each in points]),
        "lr": np.array([curve.rates.max() for curve in curves]),
    }
    return {name: [float(column.min()), float(column.max())] for name, column in columns.items()}


def _curve_row(curve: Curve, residuals: Array) -> Json:
    return {"run": curve.name, "rows": len(curve.at), "first": float(curve.at[0]), "last": float(curve.at[-1]),
            "lr": float(curve.rates.max()), "rms": float(np.sqrt(np.mean(residuals**2)))}  # fmt: skip


def _test_row(test: LeftOut, form: str, fitted: ScheduleFit) -> Json:
    z = 1.645
    naive = {} if test.other is None else {"other_schedules": test.other}
    return {
        "cut": None, "along": "schedule", "name": test.name, "form": form, "n_train": test.n_train,
        "n_test": len(test.error), "n_runs": 1, "mare": test.relative, "bias": float(np.expm1(test.error).mean()),
        "mae": float(np.abs(test.losses * np.expm1(test.error)).mean()),
        "coverage": float(np.mean(np.abs(test.error) <= z * np.hypot(test.sd, TRANSFER))), "naive": naive,
    }  # fmt: skip


def _refusals(points: Sequence[Points], groups: Sequence[Sequence[Curve]]) -> list[Verdict]:
    """Returns a refusal for curves that cannot determine how the loss depends on the schedule."""
    out = []
    if len(groups) < 2:
        text = f"all {len(points)} curves have one schedule, {groups[0][0].name!r}: the law needs two or more"
        out.append(Verdict("one_schedule", "refuse", text))
    elif not any(len(each.path.drops) and each.path.drops.sum() > 0 for each in points):
        out.append(Verdict("no_decay", "refuse", "no curve has a learning rate that decays, so its gain is unknown"))
    return out


def _form_verdicts(form: ScheduleLaw, tests: Row) -> list[Verdict]:
    """Returns a note on the backtest errors of both forms."""
    if not tests:
        return [Verdict("no_backtest", "warn", "no schedule could be left out, so the form was not tested")]
    errors = {name: float(np.mean([test.relative for test in each])) for name, each in tests.items()}
    listed = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
    text = f"the form is {form.form}, by the mean error for schedules that were left out of the fit: {listed}"
    if len(next(iter(tests.values()))) < TO_CHOOSE:
        text = (
            f"the form is {form.form}, the more accurate one in its publication: with two schedules, leaving one out "
            f"decides little ({listed})"
        )
    return [Verdict("form", "note", text)]


def _prior_verdict(fitted: ScheduleFit) -> list[Verdict]:
    """Returns a note on parameters that follow their prior."""
    spread = np.sqrt(np.diag(fitted.cov)) / fitted.prior_sd
    names = [name for name, part in zip(fitted.law.params, spread, strict=True) if part >= FROM_PRIOR]
    if not names:
        return []
    text = f"{', '.join(names)} follow published fits more than these curves: predictions include this uncertainty"
    return [Verdict("from_prior", "note", text)]


def _naive_verdicts(tests: Sequence[LeftOut]) -> list[Verdict]:
    lost = [test for test in tests if test.other is not None and test.other < test.relative]
    return [
        Verdict("lost_to_naive", "warn", f"for the schedule of {test.name!r}, the mean of the other curves at the same "
                f"step is closer: error {test.other:.2%} against {test.relative:.2%}")
        for test in lost
    ]  # fmt: skip


def lines(entry: Row) -> list[str]:
    """Returns the printed lines of the backtests and of the noise."""
    chosen = [test for test in entry["backtests"] if test["form"] == entry["form"]]
    out = [
        f"  left out {test['name']}: error {test['mae']:.4f} nats ({test['mare']:.2%}), bias {test['bias']:+.2%}"
        for test in chosen
    ]
    scatter = entry["scatter"]
    out.append(
        f"  noise of a curve {scatter['noise']:.2%}, {scatter['inflation']:.3g} points count as one; error for another "
        f"schedule {scatter['transfer']:.2%}"
    )
    return out


def headline(entry: Row) -> str:
    """Returns how well the law predicts a schedule that was left out, or why it decides nothing."""
    refusal = next((verdict["text"] for verdict in entry["verdicts"] if verdict["level"] == "refuse"), None)
    if refusal:
        return f"The curves do not determine the law: {refusal}."
    errors = [test["mae"] for test in entry["backtests"] if test["form"] == entry["form"]]
    text = f"The {entry['form']} form predicts a schedule that was left out with a mean absolute error of"
    return f"{text} {np.mean(errors):.4f} nats, over {len(errors)} schedules."


def methods(entry: Row) -> str:
    """Returns the paragraph on methods."""
    return (
        "Both forms were fitted to the log losses of all curves with a Huber loss; points of a curve count by the "
        "autocorrelation time of the residuals. Parameters that few schedules determine badly have priors near "
        "published fits. The form with the smaller error for schedules left out of the fit was kept. Intervals at "
        f"{percent(entry['level'])} are percentiles of parameters drawn from the posterior distribution; bands of a "
        "new run also have the noise of a curve and the error for another schedule."
    )
