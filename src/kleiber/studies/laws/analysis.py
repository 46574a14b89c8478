"""From a table to laws.json: flag suspects, fit, resample, profile, backtest, judge. The order is the method.

One call of `analyse` holds every step, so that no number leaves without its interval and no law without its verdicts.
It refuses to print and to write files (`command`, `record`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from kleiber.studies.laws import estimates, exclusion, verdicts
from kleiber.studies.laws.allocation_table import allocate
from kleiber.studies.laws.backtest import Backtest, backtests, default_cuts, holdouts, rank
from kleiber.studies.laws.bootstrap import Draws
from kleiber.studies.laws.extrapolation import EXPECTED, Misfit
from kleiber.studies.laws.fit import Fit, objective_at
from kleiber.studies.laws.law import LAWS, Array, Law
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise, scale_of
from kleiber.studies.laws.prediction import MAX_DECADES, predict
from kleiber.studies.laws.table import Table
from kleiber.studies.laws.transients import diagnose

RANKED = ("no_floor", "chinchilla_tied", "chinchilla", "kaplan", "interaction")


@dataclass(frozen=True)
class Options:
    """How to fit and judge; None means the law's own convention (loss_fn, space) or the default cuts (backtest).

    exclude       none, or suspects: what `exclusion` finds is left out, and not only flagged
    find_suspects whether to look for any; not where the target is no loss, which a bad learning rate raises
    at            every parameter of the law by name: the objective there is told beside the fit
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
        if self.exclude not in exclusion.CHOICES:
            raise ValueError(f"--exclude {self.exclude!r}: must be one of {', '.join(exclusion.CHOICES)}")
        if not 0 < self.level < 1:
            raise ValueError(f"--level {self.level:g} must lie in (0, 1)")

    @property
    def few(self) -> int:
        """Resamples where many refits are needed, such as for backtests."""
        return min(self.bootstrap, max(200, fewest_draws(self.level)))


def fewest_draws(level: float) -> int:
    """Resamples of which an interval at this level leaves one out on either side."""
    return math.ceil(2 / (1 - level) - 1e-9)


def analyse(table: Table, law: Law, options: Options) -> dict:
    """The record of one law on one table, as laws.json holds it (law.schema.json); ValueError for unusable rows."""
    table.inputs(law)
    every = table
    rest = exclusion.without_suspects(table, law, options.space) if options.find_suspects else table
    suspects, other = rest.excluded[len(table.excluded) :], rest
    if options.exclude == "suspects":
        exclusion.check_enough(rest, law, suspects)
        table, other = rest, table
    model = _fitted(table, law, options)
    given = None if options.at is None else {"at": objective_at(model.fit, options.at)}
    draws = model.draws(options.bootstrap, options.seed)
    record, judged = _estimated(model, draws, table, options)
    tests, misfit = _tested(model, table, options)
    judged += verdicts.backtest_verdicts(tests, options.level, "" if model.along is not None else _without(table))
    record |= {
        "excluded": table.excluded, "suspects": suspects,
        "backtests": [{**asdict(test), "beats_naive": test.beats_naive} for test in tests],
        "misfit": {"at_one_decade": misfit.at_one_decade, "tests": misfit.num_runs, "expected": EXPECTED},
    }  # fmt: skip
    record |= allocate(model, draws, judged, options.level, options.seed)
    if options.rank and model.compute is not None:
        record["ranking"] = rank([LAWS[name] for name in RANKED], model.fit, model.compute)
        record["holdouts"] = holdouts(model, misfit, options.level, max(options.few, 1), options.seed)
    if suspects:
        record["with_without"], why = _beside(record, other, law, options)
        judged.append(exclusion.verdict(suspects, every, options.exclude, why))
    record["predictions"] = [predict(record, law, at, options.max_decades) for at in options.predict]
    record |= given or {}
    record["verdicts"] = [asdict(verdict) for verdict in judged]
    record["refused"] = any(verdict.level == "refuse" for verdict in judged)
    return record


def _estimated(
    model: NoiseModel, draws: Draws | None, table: Table, options: Options
) -> tuple[dict, list[verdicts.Verdict]]:
    """What the fit itself gives: parameters with intervals, what predictions need of it, and the verdicts on it."""
    found, law = model.fit, model.fit.law
    profiled = estimates.profile_parameters(model, draws, options.level)
    params = estimates.parameters(model, draws, profiled, options.level)
    noise, diagnostics, on_rows = model.components(), diagnose(model), _on_rows(found, table)
    judged = [*verdicts.identifiability(found, params), *verdicts.pre_asymptotic(diagnostics)]
    judged += verdicts.settled(diagnostics, options.level)
    judged += [*verdicts.replicates(on_rows), *verdicts.copies(on_rows)]
    record = {
        "schema": "kleiber.law/1", "law": law.name, "formula": law.formula, "source": law.source,
        "n": found.problem.num_rows, "objective": _objective(found, table),
        "params": params, "cov": found.covariance()[0].tolist(), "cov_of": _coordinates(found),
        "level": options.level, "derived": estimates.derived(found, draws, profiled, options.level),
        "residual_rms": float(np.sqrt(np.mean(found.residuals**2))),
        "bootstrap": {"method": draws.method, "draws": len(draws.values)} if draws else None,
        "domain": {name: [float(column.min()), float(column.max())] for name, column in _domain(table, found).items()},
        "runs_hash": table.hash(),
        "draws": draws.values[: max(400, fewest_draws(options.level))].tolist() if draws else [],
        "noise": None if noise is None else asdict(noise), "residual_sd": found.noise if noise is not None else None,
    }  # fmt: skip
    if model.seeds is not None:
        record["trunk_noise"] = {**asdict(model.seeds), "correlation": model.seeds.correlation}
    if "E" in profiled:
        shape = profiled["E"]
        curve = {"values": shape.values.tolist(), "statistic": shape.statistic.tolist(), "threshold": shape.threshold}
        record["profiles"] = {"E": curve}
    if len(untold := found.untold()):
        record["untold"] = untold.tolist()
    if flat := list(estimates.flat_paths(profiled).values()):
        record["flat"] = np.concatenate(flat).tolist()
    return record, judged


def _tested(model: NoiseModel, table: Table, options: Options) -> tuple[list[Backtest], Misfit]:
    """Backtests at the cuts that were asked for, else at the default ones; none where neither C nor N is known."""
    if model.along is None:
        if options.backtest is not None:
            raise ValueError(f"--backtest needs compute or size: {_without(table)}")
        return [], Misfit()
    cuts = options.backtest
    if cuts is None:
        cuts = default_cuts(model.along[1], model.fit.problem.num_params)
    return backtests(model, cuts, options.level, options.few, options.seed)


def _beside(record: Mapping, other: Table, law: Law, options: Options) -> tuple[list[dict], str]:
    """The fit with the suspects and the fit without them; or nothing and why the one not asked for cannot be."""
    try:
        found = brief(other, law, replace(options, bootstrap=options.few))
    except ValueError as error:
        return [], str(error)
    return exclusion.with_and_without(record, found, options.exclude), ""


def _without(table: Table) -> str:
    """Why no compute is known."""
    if "C" not in table.columns:
        return "no column is C, and N and D do not give it; add --map C=COL"
    row = table.frame.index[int(np.argmin(np.isfinite(table.columns["C"])))]
    return f"C ({table.roles.get('C', 'derived')}) has no number in row {row}"


def brief(table: Table, law: Law, options: Options) -> dict:
    """n, params and derived alone: the fit beside others, without backtests and verdicts."""
    model = _fitted(table, law, options)
    draws = model.draws(options.bootstrap, options.seed)
    profiled = estimates.profile_parameters(model, draws, options.level)
    params = estimates.parameters(model, draws, profiled, options.level)
    values = estimates.derived(model.fit, draws, profiled, options.level)
    return {"n": model.fit.problem.num_rows, "params": params, "derived": values}


def _fitted(table: Table, law: Law, options: Options) -> NoiseModel:
    return fit_with_noise(table, law, options.loss_fn, options.delta, options.space, options.cluster)


def identified(record: Mapping) -> bool:
    """Whether every parameter of a record is identified."""
    return all(entry["identified"] for entry in record["params"].values())


def accepted(record: Mapping) -> bool:
    """Whether the law is identified and not refused: exit code 3 when not."""
    return identified(record) and not record["refused"]


def _on_rows(found: Fit, table: Table) -> Fit:
    """The fitted parameters on the table's own rows, where replicates are still apart."""
    scale = scale_of(table, found.problem.space)
    problem = replace(found.problem, inputs=table.inputs(found.law), target=table.target, scale=scale)
    return replace(found, problem=problem)


def _domain(table: Table, found: Fit) -> dict[str, Array]:
    names = {*found.law.inputs, *({"C"} & set(table.columns))}
    return {name: table.columns[name] for name in sorted(names)}


def _coordinates(found: Fit) -> list[str]:
    names = [name for name, on in zip(found.law.params, found.problem.active, strict=True) if on]
    return [f"log {name}" if found.law.params[name].log else name for name in names]


def _objective(found: Fit, table: Table) -> dict:
    """What was minimised; delta is null where the loss has none, sigma where no column holds standard errors.

    The value is the unscaled sum over rows.
    """
    problem = found.problem
    delta = problem.delta if problem.loss_fn == "huber" else None
    return {"kind": problem.loss_fn, "delta": delta, "space": problem.space, "value": found.value,
            "sigma": table.roles.get("sigma")}  # fmt: skip
