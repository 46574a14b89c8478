"""The law of schedules, `kleiber fit --law schedule`: chooses its form by leaving schedules out, and judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.studies import Array, Settings, TableLaw, Verdict, parameter_lines
from kleiber.types import Json, Row
from kleiber_topics.schedules.choice import choice_lines, predict_point
from kleiber_topics.schedules.curves import ROLES, Curve, distinct_schedules, read_curves, rows_of_runs
from kleiber_topics.schedules.fit import Points, ScheduleFit, fit_curves, points_of
from kleiber_topics.schedules.forms import FORMS
from kleiber_topics.schedules.prediction import ScheduleRecord, predict_rows, schedule_line, summarize

if TYPE_CHECKING:
    from kleiber.charts import Chart

FEWEST = 10  # losses of a curve
TRANSFER, WEIGHT = 1.75e-3, 2.0  # error of the log loss for a new schedule before backtests; its weight in schedules
TO_CHOOSE = 3  # schedules: with two, a backtest fits one, which tells nothing about the form
MOST_LEFT_OUT = 6  # schedules that backtests leave out
MOST_DRAWS = 400  # recorded
MOST_CURVES, MOST_ROWS = 6, 150  # drawn, so that a page stays small: curves, and rows of each
FROM_PRIOR = 0.7  # a parameter is that of its prior if its standard deviation is at least this part of the prior's


@dataclass(frozen=True)
class LeftOut:
    """The prediction of a schedule that a fit has not seen, in the logarithm of the loss.

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


def fit(frame: pd.DataFrame, roles: Mapping[str, str], settings: Settings) -> tuple[Json, list[Verdict]]:
    """Fits both forms to curves; returns the record of the form with the smaller backtest error, and its verdicts.

    Raises ValueError for rows that no curve can have, and for runs of few losses.
    """
    curves = read_curves(frame, roles)
    for curve in curves:
        if len(curve.at) < FEWEST:
            raise ValueError(
                f"column {roles.get('loss', 'loss')!r}: run {curve.name!r} has {len(curve.at)} losses after its "
                f"warm-up, fewer than {FEWEST}: add points, or exclude the run with --where"
            )
    points, groups = points_of(curves), distinct_schedules(curves)
    fits = {name: fit_curves(form, curves, points) for name, form in FORMS.items()}
    tests = {name: _leave_out(fits[name], curves, points, groups) for name in fits} if len(groups) > 1 else {}
    name = next(iter(FORMS))
    if len(groups) >= TO_CHOOSE:
        name = min(FORMS, key=lambda each: np.mean([test.relative for test in tests[each]]))
    fitted, left_out = fits[name], tests.get(name, [])
    judged = [*_refusals(points, groups), *_form_verdicts(name, tests), *_prior_verdict(fitted)]
    judged += _naive_verdicts(left_out)
    draws = fitted.draws(settings.bootstrap, settings.seed)
    transfer = float(np.sqrt((WEIGHT * TRANSFER**2 + sum(test.excess for test in left_out)) / (WEIGHT + len(left_out))))
    every = np.concatenate(fitted.residuals)
    record: Json = {
        "schema": "kleiber.schedule/1", "law": "schedule", "form": name, "formula": fitted.form.formula,
        "source": fitted.form.source, "n": len(every), "rows": sum(len(curve.at) for curve in curves),
        "level": settings.level, "params": dict(zip(fitted.form.params, fitted.values.tolist(), strict=True)),
        "draws": draws[:MOST_DRAWS].tolist(), "cov": fitted.cov.tolist(), "domain": _domain(curves, points),
        "residual_rms": float(np.sqrt(np.mean(every**2))),
        "scatter": {"noise": fitted.noise.sd, "transfer": transfer, "inflation": fitted.noise.inflation},
        "curves": [_curve_row(curve, each) for curve, each in zip(curves, fitted.residuals, strict=True)],
        "backtests": [_test_row(test, form) for form, each in tests.items() for test in each],
    }  # fmt: skip
    return record, judged


def _leave_out(
    whole: ScheduleFit, curves: Sequence[Curve], points: Sequence[Points], groups: Sequence[Sequence[Curve]]
) -> list[LeftOut]:
    """Predicts the curves of each schedule from a fit to the others.

    whole  the fit to all curves
    """
    form = whole.form
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


def _test_row(test: LeftOut, form: str) -> Json:
    z = 1.645
    naive = {} if test.other is None else {"other_schedules": test.other}
    return {
        "name": test.name, "form": form, "n_train": test.n_train, "n_test": len(test.error),
        "mare": test.relative, "bias": float(np.expm1(test.error).mean()),
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


def _form_verdicts(form: str, tests: Mapping[str, Sequence[LeftOut]]) -> list[Verdict]:
    """Returns a note on the backtest errors of both forms."""
    if not tests:
        return [Verdict("no_backtest", "warn", "no schedule could be left out, so the form was not tested")]
    errors = {name: float(np.mean([test.relative for test in each])) for name, each in tests.items()}
    listed = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
    text = f"the form is {form}, by the mean error for schedules that were left out of the fit: {listed}"
    if len(next(iter(tests.values()))) < TO_CHOOSE:
        text = (
            f"the form is {form}, the more accurate one in its publication: with two schedules, leaving one out "
            f"decides little ({listed})"
        )
    return [Verdict("form", "note", text)]


def _prior_verdict(fitted: ScheduleFit) -> list[Verdict]:
    """Returns a note on parameters that follow their prior."""
    spread = np.sqrt(np.diag(fitted.cov)) / fitted.prior_sd
    names = [name for name, part in zip(fitted.form.params, spread, strict=True) if part >= FROM_PRIOR]
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


def lines(record: Row) -> list[str]:
    """Returns the printed lines of a record; those of a refused law have no parameters of the decay."""
    pooled = f" of {record['rows']:,}" if record["rows"] > record["n"] else ""
    shown = 3 if record["refused"] else len(record["params"])
    draws = np.array(record["draws"]).reshape(-1, len(record["params"]))[:, :shown]
    names, values = [*record["params"]][:shown], [*record["params"].values()][:shown]
    scatter = record["scatter"]
    return [
        f"schedule, {record['form']}: {record['formula']}   ({record['source']})",
        f"{len(record['curves'])} curves, {record['n']:,} points{pooled}, residual rms {record['residual_rms']:.3g}",
        *parameter_lines(names, values, draws, record["level"], 10),
        *(
            f"  left out {test['name']}: error {test['mae']:.4f} nats ({test['mare']:.2%}), bias {test['bias']:+.2%}"
            for test in record["backtests"] if test["form"] == record["form"]
        ),
        f"  noise of a curve {scatter['noise']:.2%}, {scatter['inflation']:.3g} points count as one; error for another "
        f"schedule {scatter['transfer']:.2%}",
    ]  # fmt: skip


def prediction_lines(record: Row, prediction: Row) -> list[str]:
    """Formats the prediction of a run; a row of a table has no line, since `summarize` has those of each curve."""
    if "decay" in prediction:
        return choice_lines(prediction, record["level"])
    return [schedule_line(prediction, record["level"])] if "curve" in prediction else []


def fitted(rows: Sequence[Row]) -> Chart:
    """Observed loss (points) and predicted loss (line) vs step, for the first curves."""
    import altair as alt

    from kleiber.charts import Marks, kind_color
    from kleiber.charts import lines as line_chart

    table = pd.DataFrame(
        [{"run": row["run"], "step": row["at"]["step"], "observed": row["observed"], "predicted": row["value"]}
         for row in rows]
    )  # fmt: skip
    names = list(dict.fromkeys(table["run"]))[:MOST_CURVES]
    parts = [part.iloc[:: max(1, len(part) // MOST_ROWS)] for name, part in table.groupby("run") if name in names]
    shown = pd.concat(parts, ignore_index=True)
    tables = [
        Marks(rows=shown, value="observed", points=8, opacity=0.4, tips=["run:N", "step:Q", "observed:Q"]),
        Marks(rows=shown, value="predicted", line=1.6, tips=["run:N", "step:Q", "predicted:Q"]),
    ]
    x = alt.X("step:Q", title="optimizer step", axis=alt.Axis(format="~s"))
    y = alt.Y("predicted:Q", title="loss (nats per token)", scale=alt.Scale(zero=False))
    color = kind_color(names, "run", alt.Legend(orient="bottom", columns=1))
    return line_chart(tables, x, y, "Loss vs step", color=color, subtitle="points: observed; lines: the law")


def schedule() -> TableLaw:
    """The law of `kleiber fit --law schedule`."""
    return TableLaw(
        roles=ROLES, options=("schedule", "steps"), record=ScheduleRecord, fit=fit, lines=lines,
        predict_rows=predict_rows, predict_point=predict_point, prediction_lines=prediction_lines,
        summarize=summarize, read_runs=rows_of_runs, figures=lambda rows: {"fit": lambda: fitted(rows)},
    )  # fmt: skip
