"""Analyzes a table: finds suspect rows, fits the law, bootstraps, profiles, backtests and gives verdicts.

`analyze` does all of this, and so no parameter is reported without an interval and no law without verdicts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pandas as pd

from kleiber.studies.laws import laws_json, verdicts
from kleiber.studies.laws.allocation_table import allocate
from kleiber.studies.laws.asymptotics import beta_stability, pre_asymptotic
from kleiber.studies.laws.backtest import Backtest, backtests, default_cuts, holdouts, rank
from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.lack_of_fit import lack_of_fit
from kleiber.studies.laws.law import LAWS, Law
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.prediction import EXPECTED, MAX_DECADES, Misfit, predict
from kleiber.studies.laws.problem import convert, rho
from kleiber.studies.laws.table import Table, load
from kleiber.studies.laws.transients import diagnose
from kleiber.studies.laws.uncertainty import Draws, percent
from kleiber.types import Json, Row

RANKED = ("no_floor", "chinchilla_tied", "chinchilla", "kaplan", "interaction")


@dataclass(frozen=True)
class Options:
    """How to fit and test a law.

    None means: for loss_fn and space, as in the law's publication; for backtest, the default cuts.

    exclude        "suspects" excludes suspect rows from the fit, "none" only lists them
    find_suspects  whether to look for suspect rows; False if the target is not a loss
    at             a value for every parameter of the law; the objective is also evaluated there
    """

    loss_fn: str | None = None
    delta: float = 1e-3
    space: str | None = None
    bootstrap: int = 1000
    cluster: str | None = None
    seed: int = 0
    level: float = 0.9
    backtest: Sequence[float] | None = None
    predict: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    exclude: str = "none"
    find_suspects: bool = True
    max_decades: float = MAX_DECADES
    rank: bool = False
    at: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.exclude not in verdicts.CHOICES:
            raise ValueError(f"--exclude {self.exclude!r} must be one of {', '.join(verdicts.CHOICES)}")
        if not 0 < self.level < 1:
            raise ValueError(f"--level {self.level:g} must be between 0 and 1")

    @property
    def resamples_per_fit(self) -> int:
        """Number of resamples in each of the many fits of the backtests."""
        return min(self.bootstrap, max(200, fewest_draws(self.level)))


def fewest_draws(level: float) -> int:
    """Returns the fewest resamples for an interval of this level, so that one is expected beyond each of its ends."""
    return math.ceil(2 / (1 - level) - 1e-9)


def check_options(law: Law, options: Options, delta: float | None) -> None:
    """Raises ValueError for too few bootstrap resamples, and for an option of `kleiber fit` that would have no effect.

    delta  the value of --delta, if it was given
    """
    fewest, loss_fn = fewest_draws(options.level), options.loss_fn or law.loss_fn
    if 0 < options.bootstrap < fewest:
        raise ValueError(
            f"--bootstrap {options.bootstrap} must be at least {fewest} for {percent(options.level)} "
            "intervals, or 0 for no intervals"
        )
    if delta is not None and loss_fn != "huber":
        raise ValueError(
            f"--delta {delta:g} has no effect on the {loss_fn} loss of {law.name}; add --loss-fn huber or remove "
            "--delta"
        )
    if options.rank and law.fixed:
        raise ValueError(
            f"--rank fits all parameters of every law, so it excludes --fix {', '.join(law.fixed)}; remove one of the "
            "two options"
        )


def analyze(table: Table, law: Law, options: Options) -> Json:
    """Returns the record of a law fitted to a table, as in law.schema.json. Raises ValueError for unusable rows."""
    table.inputs(law)
    every = table
    rest = verdicts.without_suspects(table, law, options.space) if options.find_suspects else table
    suspects, other = rest.excluded[len(table.excluded) :], rest
    if options.exclude == "suspects":
        verdicts.check_enough(rest, law, suspects)
        table, other = rest, table
    model = _fit(table, law, options)
    at_values = None if options.at is None else {"at": objective_at(_on_all_rows(model, table), options.at)}
    draws = model.draws(options.bootstrap, options.seed)
    record, judged = _estimate(model, draws, table, options)
    tests, misfit = _backtest(model, table, options)
    judged += verdicts.backtest_verdicts(
        tests, options.level, "" if model.along is not None else _why_no_compute(table)
    )
    record |= {
        "excluded": table.excluded, "suspects": suspects,
        "backtests": [{**asdict(test), "beats_naive": test.beats_naive} for test in tests],
        "misfit": {"at_one_decade": misfit.at_one_decade, "tests": misfit.num_runs, "expected": EXPECTED},
    }  # fmt: skip
    record |= allocate(model, draws, judged, options.level, options.seed)
    if options.rank and model.compute is not None:
        record["ranking"] = rank([LAWS[name] for name in RANKED], model.fit, model.compute)
        record["holdouts"] = holdouts(model, misfit, options.level, max(options.resamples_per_fit, 1), options.seed)
    if suspects:
        record["with_without"], why = _compare_without_suspects(record, other, law, options)
        judged.append(verdicts.suspects_verdict(suspects, every, options.exclude, why))
    record["predictions"] = [predict(record, law, at, options.max_decades) for at in options.predict]
    record |= at_values or {}
    return verdicts.with_verdicts(record, judged)


def analyze_rows(frame: pd.DataFrame, law: Law, roles: Mapping[str, str], options: Options) -> Json:
    """Returns the record of a law fitted to rows, without numbers that are not finite.

    roles  column by role, for the inputs of the law and L, the target
    """
    return laws_json.without_nonfinite(analyze(load(frame, roles, (), law.inputs), law, options))


def _estimate(
    model: NoiseModel, draws: Draws | None, table: Table, options: Options
) -> tuple[Json, list[verdicts.Verdict]]:
    """Returns the entries of the record that need only the fit, and the verdicts on them."""
    fitted, law = model.fit, model.fit.law
    profiled = model.profiles(draws, options.level)
    params = laws_json.parameters(model, draws, profiled, options.level)
    noise, diagnostics, runs = model.components(), diagnose(model), fitted.on_rows(table)
    judged = [*verdicts.identifiability(fitted, params), *pre_asymptotic(diagnostics)]
    judged += beta_stability(diagnostics, options.level)
    columns = sorted({*law.inputs, *({"C"} & set(table.columns))})
    misfit = lack_of_fit(model)
    run_sd = max(fitted.noise, 0.0 if misfit is None else misfit.least_run_sd(fitted.problem.space))
    judged += [verdicts.misfit(model, misfit), *verdicts.copies(runs), *verdicts.pooling(model)]
    record = {
        "schema": "kleiber.law/1", "law": law.name, "formula": law.formula, "source": law.source,
        "n": fitted.problem.num_rows, "objective": _objective(_on_all_rows(model, table), table),
        "params": params, "cov": fitted.covariance()[0].tolist(),
        "cov_of": [f"log {name}" if law.params[name].log else name for name in fitted.kept],
        "level": options.level, "derived": laws_json.derived(fitted, draws, profiled, options.level),
        "residual_rms": float(np.sqrt(np.mean(_on_all_rows(model, table).residuals**2))),
        "bootstrap": {"method": draws.method, "draws": len(draws.values)} if draws else None,
        "domain": {name: [float(table.columns[name].min()), float(table.columns[name].max())] for name in columns},
        "runs_hash": table.hash(),
        "draws": draws.values[: max(400, fewest_draws(options.level))].tolist() if draws else [],
        "noise": None if noise is None else asdict(noise), "residual_sd": None if noise is None else run_sd,
    }  # fmt: skip
    if misfit is not None:
        record["lack_of_fit"] = misfit.record()
    if model.pooled is not None:
        record["pooled"] = model.pooled
    if model.seeds is not None:
        record["trunk_noise"] = {**asdict(model.seeds), "correlation": model.seeds.correlation}
    if "E" in profiled:
        shape = profiled["E"]
        curve = {"values": shape.values.tolist(), "statistic": shape.statistic.tolist(), "threshold": shape.threshold}
        record["profiles"] = {"E": curve}
    undetermined, flat = fitted.undetermined(), list(laws_json.flat_paths(profiled).values())
    if len(undetermined):
        record["untold"] = undetermined.tolist()
    if flat:
        record["flat"] = np.concatenate(flat).tolist()
    return record, judged


def _backtest(model: NoiseModel, table: Table, options: Options) -> tuple[list[Backtest], Misfit]:
    """Backtests at the requested or the default cuts; empty if the rows have neither C nor N.

    Raises ValueError if cuts are requested but the rows have neither C nor N.
    """
    if model.along is None:
        if options.backtest is not None:
            raise ValueError(
                f"--backtest cuts need the compute C or the size N of every row, but {_why_no_compute(table)}"
            )
        return [], Misfit()
    cuts = options.backtest
    if cuts is None:
        cuts = default_cuts(model.along[1], model.fit.problem.num_params)
    return backtests(model, cuts, options.level, options.resamples_per_fit, options.seed)


def _compare_without_suspects(record: Row, other: Table, law: Law, options: Options) -> tuple[list[Json], str]:
    """Compares the fits with and without the suspects; without a second fit, returns no rows and the reason."""
    try:
        beside = fit_briefly(other, law, replace(options, bootstrap=options.resamples_per_fit))
    except ValueError as error:
        return [], str(error)
    return verdicts.with_and_without(record, beside, options.exclude), ""


def _why_no_compute(table: Table) -> str:
    """Returns why the compute C of the rows is unknown."""
    if "C" not in table.columns:
        return "the table has no column C, and no N and D to compute it from; add --map C=COL"
    row = table.frame.index[int(np.argmin(np.isfinite(table.columns["C"])))]
    return f"C ({table.roles.get('C', 'computed from N and D')}) is not a finite number in row {row}"


def fit_briefly(table: Table, law: Law, options: Options) -> Json:
    """Fits without backtests and verdicts; returns n, params and derived, to be compared with the main fit."""
    model = _fit(table, law, options)
    draws = model.draws(options.bootstrap, options.seed)
    profiled = model.profiles(draws, options.level)
    params = laws_json.parameters(model, draws, profiled, options.level)
    values = laws_json.derived(model.fit, draws, profiled, options.level)
    return {"n": model.fit.problem.num_rows, "params": params, "derived": values}


def _fit(table: Table, law: Law, options: Options) -> NoiseModel:
    return fit_with_noise(table, law, options.loss_fn, options.delta, options.space, options.cluster)


def _on_all_rows(model: NoiseModel, table: Table) -> Fit:
    """Returns the fit with all rows if they were pooled; rows that are means over seeds stay, since they are fitted."""
    return model.fit if model.pooled is None else model.fit.on_rows(table)


def objective_at(fitted: Fit, params: Mapping[str, float]) -> Json:
    """Evaluates the objective of the fitted rows at other parameter values; returns {params, value, residual_rms}.

    Raises ValueError for an unknown or missing parameter, and if the law is not finite on some row.
    """
    problem, law = fitted.problem, fitted.law
    names = [*law.params, *law.fixed]
    unknown, missing = (", ".join(sorted(apart)) for apart in (set(params) - set(names), set(names) - set(params)))
    if unknown or missing:
        raise ValueError(
            f"--at must set every parameter of {law.name!r}, {', '.join(names)}, and no others"
            + f"; it lacks {missing}" * bool(missing) + f"; it also sets {unknown}" * bool(unknown)
        )  # fmt: skip
    answer = law.call(problem.inputs, {name: np.array([[value]]) for name, value in params.items()})
    residuals = problem.scaled(convert(answer, law.returns, problem.space)) - problem.observed
    if not np.isfinite(residuals).all():
        raise ValueError(f"--at {dict(params)}: law {law.name!r} is not finite on every row at these values")
    return {
        "params": dict(params),
        "value": float(rho(residuals, problem.loss_fn, problem.delta).sum()),
        "residual_rms": float(np.sqrt(np.mean(residuals**2))),
    }


def identified(record: Row) -> bool:
    """Returns whether every parameter of the record is identified."""
    return all(entry["identified"] for entry in record["params"].values())


def accepted(record: Row) -> bool:
    """Returns whether the law is identified and not refused; if not, the command's exit code is 3."""
    return identified(record) and not record["refused"]


def _objective(fitted: Fit, table: Table) -> Json:
    """Returns the entry `objective`; its value is a sum over rows.

    delta is None for a loss function without delta, sigma is None without a column of standard errors.
    """
    problem = fitted.problem
    delta = problem.delta if problem.loss_fn == "huber" else None
    return {"kind": problem.loss_fn, "delta": delta, "space": problem.space, "value": fitted.value,
            "sigma": table.roles.get("sigma")}  # fmt: skip
