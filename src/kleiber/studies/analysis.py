"""From a table to laws.json: flag suspects, fit, resample, profile, backtest, judge. The order is the method.

One call of `analyse` holds every step, so that no number leaves without its interval and no law without its verdicts.
It refuses to print and to write files (`command`, `record`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from kleiber.studies import exclusion, verdicts
from kleiber.studies import record as records
from kleiber.studies.allocation import allocate
from kleiber.studies.backtest import backtests, default_cuts, holdouts, rank
from kleiber.studies.bootstrap import Draws, interval
from kleiber.studies.fit import Fit, depends, objective_at
from kleiber.studies.law import LAWS, Array, Law
from kleiber.studies.pose import pose, scale_of
from kleiber.studies.profile import profiles
from kleiber.studies.table import DERIVED, Table

# Also the default in `command`, which imports nothing heavy.
MAX_DECADES = 3.0  # the farthest published extrapolation that held (2.6 decades, arXiv:2403.08540)
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
    posed = pose(table, law, options.loss_fn, options.delta, options.space, options.cluster)
    found, compute = posed.fit, posed.compute
    given = None if options.at is None else {"at": objective_at(found, options.at)}
    draws = posed.draws(options.bootstrap, options.seed)
    profiled = profiles(found, options.level)
    judged = [*verdicts.identifiability(found, profiled), *verdicts.pre_asymptotic(found)]
    judged += verdicts.settled(found, options.level)
    on_rows = _on_rows(found, table)
    judged += [*verdicts.replicates(on_rows), *verdicts.copies(on_rows)]
    tests = []
    along = posed.along
    if along is None and options.backtest is not None:
        raise ValueError(f"--backtest needs compute or size: {_without(table)}")
    if along is not None:
        cuts = default_cuts(along[1], found.problem.num_params) if options.backtest is None else options.backtest
        tests = backtests(posed, cuts, options.level, options.few, options.seed)
    judged += verdicts.backtest_verdicts(tests, options.level, "" if along is not None else _without(table))
    record = {
        "schema": "kleiber.law/1", "law": law.name, "formula": law.formula, "source": law.source,
        "n": found.problem.num_rows, "excluded": table.excluded, "suspects": suspects,
        "objective": _objective(found, table),
        "params": _params(found, profiled), "cov": found.covariance()[0].tolist(), "cov_of": _coordinates(found),
        "level": options.level, "derived": _derived(found, draws, options.level),
        "residual_rms": float(np.sqrt(np.mean(found.residuals**2))),
        "bootstrap": {"kind": draws.kind, "draws": len(draws.values)} if draws else None,
        "backtests": [{**asdict(test), "beats_naive": test.beats_naive} for test in tests],
        "domain": {name: [float(column.min()), float(column.max())] for name, column in _domain(table, found).items()},
        "runs_hash": table.hash(),
    }  # fmt: skip
    record |= allocate(posed, draws, judged, options.level, options.seed)
    if posed.noise is not None:
        record["trunk_noise"] = {**asdict(posed.noise), "correlation": posed.noise.correlation}
    if options.rank and compute is not None:
        record["ranking"] = rank([LAWS[name] for name in RANKED], found, compute)
        record["holdouts"] = holdouts(posed, options.level, max(options.few, 1), options.seed)
    if suspects:
        record["with_without"], why = _beside(record, other, law, options)
        judged.append(exclusion.verdict(suspects, every, options.exclude, why))
    if "E" in profiled:
        shape = profiled["E"]
        told = {"values": shape.values.tolist(), "statistic": shape.statistic.tolist(), "threshold": shape.threshold}
        record["profiles"] = {"E": told}
    record["draws"] = draws.values[: max(400, fewest_draws(options.level))].tolist() if draws else []
    if len(untold := found.untold()):
        record["untold"] = untold.tolist()
    record["noise"] = float(np.hypot(found.noise, posed.noise.between if posed.noise else 0.0))
    if not np.isfinite(found.noise):
        record["noise"] = None
    record["predictions"] = [predict(record, law, at, options.max_decades) for at in options.predict]
    record |= given or {}
    record["verdicts"] = [asdict(verdict) for verdict in judged]
    record["refused"] = any(verdict.level == "refuse" for verdict in judged)
    return record


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
    posed = pose(table, law, options.loss_fn, options.delta, options.space, options.cluster)
    draws = posed.draws(options.bootstrap, options.seed)
    params = _params(posed.fit, profiles(posed.fit, options.level))
    return {"n": posed.fit.problem.num_rows, "params": params, "derived": _derived(posed.fit, draws, options.level)}


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


def _params(found: Fit, profiled: Mapping) -> dict[str, dict]:
    """Value, profile interval and identifiability by parameter; an open end of an interval is null."""
    entries, tight = {}, verdicts.narrow(found)
    for name, value in found.params.items():
        profile = profiled.get(name)
        if profile is None:
            entries[name] = {"value": 0.0, "lo": 0.0, "hi": None, "identified": False, "reason": "dropped at 0"}
            continue
        lo, hi = (end if np.isfinite(end) else None for end in (profile.lo, profile.hi))
        reason = profile.reason or (tight if name == "E" else "")
        entries[name] = {"value": value, "lo": lo, "hi": hi, "identified": not reason, "reason": reason}
    for name, value in found.law.fixed.items():
        entries[name] = {"value": value, "lo": None, "hi": None, "identified": True, "fixed": True}
    return entries


def _derived(found: Fit, draws: Draws | None, level: float) -> dict[str, dict]:
    entries = {}
    sampled, untold = draws.derive() if draws else {}, found.law.derive(found.untold())
    for name, value in found.law.derive(found.values).items():
        lo, hi = interval(sampled[name], level) if name in sampled else (np.nan, np.nan)
        known = bool(np.isfinite([lo, hi, value[0]]).all()) and not found.dropped
        known = known and not depends(untold[name])
        entries[name] = {
            "value": float(value[0]) if np.isfinite(value[0]) else None,
            "lo": float(lo) if known else None, "hi": float(hi) if known else None, "identified": known,
        }  # fmt: skip
    return entries


def predict(record: Mapping, law: Law, at: Mapping[str, float], max_decades: float = MAX_DECADES) -> dict:
    """One prediction: value, the law's interval (lo, hi), one new run's (run_lo, run_hi), decades outside the rows.

    Beyond `max_decades` in any input or in C the value is null and `refused` says so; without intervals where the rows
    leave the answer open, as at another size than the only one. The intervals hold the sampling
    error only: misfit shows in the backtests.
    """
    unread = [name for name in at if name not in (*law.inputs, "N", "D", "C", "M")]
    if unread:
        raise ValueError(f"predict {unread[0]}={at[unread[0]]:g}: law {law.name!r} reads {', '.join(law.inputs)}")
    wrong = [name for name in at if not (0 < at[name] < np.inf if name in "NDCM" else np.isfinite(at[name]))]
    if wrong:
        raise ValueError(f"predict {wrong[0]}={at[wrong[0]]:g}: write a finite number above 0")
    full = complete(at)
    missing = [name for name in law.inputs if name not in full]
    if missing:
        raise ValueError(
            f"predict {dict(at)}: law {law.name!r} needs {', '.join(law.inputs)}; {', '.join(missing)} missing"
        )
    decades = outside(record["domain"], full)
    answer: dict = {"at": dict(at), "value": None, "lo": None, "hi": None, "decades": decades}
    if decades > max_decades:
        return answer | {"refused": f"{decades:.1f} decades beyond the rows, more than {max_decades:g}"}
    inputs = {name: np.array([full[name]]) for name in law.inputs}
    values = records.fitted_values(record)
    answer["value"] = float(law.predict(inputs, values)[0, 0])
    if not np.isfinite(answer["value"]):
        raise ValueError(f"predict {dict(at)}: law {law.name!r} has no value there")
    draws = np.array(record["draws"])
    untold = np.array(record.get("untold", ())).reshape(-1, len(law.params))
    if len(draws) and not depends(law.predict(inputs, untold)[:, 0]):
        lo, hi = interval(law.predict(inputs, draws)[:, 0], record["level"])
        found = _empty_fit(law, inputs, record, values)
        noisy = Draws(found, draws, "", np.full(len(draws), record["noise"] or 0.0)).predict_runs(inputs)[:, 0]
        run_lo, run_hi = interval(noisy, record["level"])
        answer |= {"lo": float(lo), "hi": float(hi), "run_lo": float(run_lo), "run_hi": float(run_hi)}
    return answer


def _empty_fit(law: Law, inputs: Mapping[str, Array], record: Mapping, values: Array) -> Fit:
    """A fit without rows: what a record remembers of one, enough to add noise on the right scale."""
    from kleiber.studies.solve import Problem

    objective = record["objective"]
    active = np.ones(len(law.params), dtype=bool)
    problem = Problem(
        law, inputs, np.ones(1), objective["kind"], objective["delta"] or 1e-3, objective["space"], active
    )
    return Fit(problem, values[0], objective["value"])


def complete(at: Mapping[str, float]) -> dict[str, float]:
    """A point with the inputs that follow from the others: C = 6 N D, D = C/(6 N), M = D/N."""
    full = {name: float(value) for name, value in at.items()}
    for role, (parts, rule) in DERIVED.items():
        if role not in full and all(part in full for part in parts):
            full[role] = rule(*(full[part] for part in parts))
    return full


def outside(domain: Mapping[str, Sequence[float]], at: Mapping[str, float]) -> float:
    """Decades by which a point lies outside the fitted rows, the largest over inputs and compute; 0 inside."""
    far = 0.0
    for name, (lo, hi) in domain.items():
        value = at.get(name)
        if value is not None and value > 0 and lo > 0:
            far = max(far, float(np.log10(value / hi)), float(np.log10(lo / value)))
    return far
