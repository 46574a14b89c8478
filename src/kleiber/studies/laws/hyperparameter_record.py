"""The record (laws.json) of a law of optimal hyperparameters: estimates, backtests, verdicts and predictions.

A backtest fits the laws to the groups below a cut and trains nothing: the excess loss of the chosen hyperparameters in
each group above is interpolated in its sweep. The least loss of a noisy sweep is itself too low by chance, so this
excess is slightly too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kleiber.studies.laws.analysis import Options, fewest_draws
from kleiber.studies.laws.backtest import ABOVE, BELOW, SAME
from kleiber.studies.laws.hyperparameter_fit import JointFit, PowerLaw, draw, fit_jointly, fit_laws, sizes_of, values_of
from kleiber.studies.laws.hyperparameters import POWERS, HyperparameterLaw, of_axes
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.optima import EDGE, FEW, FLAT, INSIDE, Group, Optimum, groups_of, optima_of
from kleiber.studies.laws.optimum_prediction import compare_group, predict, summarize
from kleiber.studies.laws.table import Table, round_down
from kleiber.studies.laws.uncertainty import interval, student_quantile
from kleiber.studies.laws.verdicts import Verdict, with_verdicts
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

WIDEST = 2.0  # an exponent with a wider interval is not identified
NAMED = 10  # a verdict names at most so many groups
REASONS = {
    EDGE: "the least loss is at the edge of the grid: widen the grid",
    FLAT: "no convex surface fits the loss around the best run: add runs there",
    FEW: "too few combinations of hyperparameters around the best run: add runs there",
}


def backtests(form: HyperparameterLaw, inside: Sequence[Optimum], options: Options) -> list[Json]:
    """Returns a backtest at each requested cut in compute; by default of the largest size and the upper third.

    Raises ValueError for a requested cut that leaves too few groups on a side.
    """
    if not inside:
        return []
    N, D = sizes_of(inside)
    C = 6 * N * D
    cuts = [("C", cut) for cut in options.backtest or ()]
    if options.backtest is None:
        sizes = np.unique(N)
        cuts = [("N", float(np.sqrt(sizes[-2] * sizes[-1])))] if len(sizes) > 2 else []
        cuts += [("C", float(f"{np.quantile(C, 2 / 3):.3g}"))]
    tests = []
    for along, cut in cuts:
        values, (below, above) = (N, (1.0, 1.0)) if along == "N" else (C, (BELOW, ABOVE))
        train = [fit for fit, value in zip(inside, values, strict=True) if value < below * cut]
        test = [fit for fit, value in zip(inside, values, strict=True) if value > above * cut]
        laws = fit_laws(form.axes, train) if train else []
        if test and laws and all(law.determined for law in laws):
            tests.append(_backtest(form, laws, train, test, cut, along, options))
        elif options.backtest is not None:
            raise ValueError(
                f"backtest cut {cut:g} leaves {len(train)} groups with an optimum inside their grid below and "
                f"{len(test)} above; it needs enough below to determine the law, and at least 1 above: choose a cut "
                f"within the range of C, {C.min():.3g} to {C.max():.3g}"
            )
    return tests


def _backtest(
    form: HyperparameterLaw, laws: Sequence[PowerLaw], train: Sequence[Optimum], test: Sequence[Optimum], cut: float,
    along: str, options: Options,
) -> Json:  # fmt: skip
    """Returns the backtest of laws fitted to the groups `train`, on the groups `test`.

    mare_paired  mean excess loss of the law's choices in the `n_paired` groups whose sweeps contain both its choice and
                 the unchanged optimum of the largest group below, whose mean is naive.unchanged
    """
    values = values_of(laws, [law.theta for law in laws])[None]
    _, draws = draw(laws, train, max(options.resamples_per_fit, 100), options.seed)
    scatter = {law.axis: law.scatter for law in laws}
    chosen = [compare_group(fit, form, values, draws, scatter, options.level) for fit in test]
    nearest = max(train, key=lambda fit: fit.group.N * fit.group.D)
    unchanged_costs = np.array([fit.group.excess(nearest.log) for fit in test])
    law_costs = np.array([row["excess"] for row in chosen], dtype=np.float64)
    paired = np.isfinite(law_costs) & np.isfinite(unchanged_costs)
    law, unchanged = (float(costs[paired].mean()) if paired.any() else None for costs in (law_costs, unchanged_costs))
    return summarize(chosen) | {
        "cut": cut, "along": along, "n_train": len(train), "n_test": len(test), "n_runs": len(test),
        "naive": {"unchanged": unchanged}, "n_paired": int(paired.sum()), "mare_paired": law, "chosen": chosen,
    }  # fmt: skip


def backtest_verdicts(tests: Sequence[Row]) -> list[Verdict]:
    """Returns a warning without backtests, and where leaving the hyperparameters unchanged would have cost less."""
    if not tests:
        return [
            Verdict("no_backtest", "warn", "extrapolation was not tested: no cut leaves enough groups on both sides")
        ]
    out = []
    for test in tests:
        law, naive = test["mare_paired"], test["naive"]["unchanged"]
        if law is not None and naive is not None and naive <= law:
            text = (
                f"above {test['along']} = {test['cut']:.3g} the law's choice costs {law:.2%} of the loss, the "
                f"unchanged optimum of the largest group below {naive:.2%}, where sweeps contain both "
                f"({test['n_paired']} of {test['n_test']} groups)"
            )
            out.append(Verdict("no_better_than_unchanged", "warn", text))
    return out


def read_groups(table: Table, form: HyperparameterLaw) -> tuple[HyperparameterLaw, list[Group], list[Verdict]]:
    """Returns the law of the hyperparameters that the table varies, its groups, and notes on those that it does not.

    Sizes that differ by less than 5 % are equal, since runs of another batch end at another number of tokens. Raises
    ValueError if no learning rate is mapped, or if it does not vary within any group.
    """
    if "lr" not in table.columns:
        names = ", ".join(map(str, table.frame.columns))
        raise ValueError(
            f"law {form.name!r} needs the learning rate of every run; add --map lr=COL, where COL is one of {names}"
        )
    N, D = (round_down(table.columns[name], SAME) for name in ("N", "D"))
    mapped = [axis for axis in form.swept if axis in table.columns]
    varied = [axis for axis in mapped if _varies(N, D, table.columns[axis])]
    if "lr" not in varied:
        raise ValueError(
            f"lr ({table.roles['lr']}) has a single value in every group of equal N and D: the law needs a sweep of "
            "learning rates in each"
        )
    fixed = [
        Verdict("fixed_axis", "note", f"{axis} ({table.roles[axis]}) has one value in every group of equal N and D, so "
                "the law is that of this value")
        for axis in mapped if axis not in varied
    ]  # fmt: skip
    law = of_axes(varied)
    return law, groups_of(N, D, [table.columns[axis] for axis in law.axes], table.target), fixed


def _varies(N: Array, D: Array, values: Array) -> bool:
    pairs = np.unique(np.column_stack([N, D]), axis=0)
    return any(len(np.unique(values[(size == N) & (tokens == D)])) > 1 for size, tokens in pairs)


def analyze(table: Table, form: HyperparameterLaw, options: Options) -> tuple[HyperparameterLaw, Json]:
    """Fits the law to a table; returns the law of the hyperparameters that vary, and the record of laws.json.

    Raises ValueError for unusable rows.
    """
    form, groups, judged = read_groups(table, form)
    fits = optima_of(groups)
    inside = [fit for fit in fits if fit.place == INSIDE]
    laws = fit_laws(form.axes, inside or fits)
    judged += [*_place_verdicts(fits, form), *_identified(laws, inside)]
    determined = bool(inside) and all(law.determined for law in laws)
    method, draws = (
        draw(laws, inside, options.bootstrap, options.seed) if determined and options.bootstrap else ("", None)
    )
    joint = fit_jointly(laws, inside, options.level) if determined and options.bootstrap else None
    params, derived = _estimates(form, laws, draws, method, options.level, determined)
    judged += [
        Verdict("not_identified", "warn", f"{name} is not identified: {entry['reason']}")
        for name, entry in derived.items()
        if not entry["identified"]
    ]
    tests = backtests(form, inside, options)
    judged += backtest_verdicts(tests)
    residuals = joint.residuals if joint else np.array([fit.noise**0.5 for fit in inside])
    exponents = form.exponents.values()
    record: Json = {
        "schema": "kleiber.law/1", "law": form.name, "formula": form.formula, "source": form.source,
        "n": int(sum(fit.group.count[fit.used].sum() for fit in inside)), "excluded": table.excluded, "suspects": [],
        "objective": {"kind": "squared", "delta": None, "space": "log", "value": float((residuals**2).sum()),
                      "sigma": None},
        "params": params, "derived": derived,
        "cov": [] if draws is None else np.cov(form.coordinates(draws).T).tolist(),
        "cov_of": [] if draws is None else [name if name in exponents else f"log {name}" for name in form.params],
        "level": options.level, "residual_rms": float(np.sqrt(np.mean(residuals**2))) if len(residuals) else 0.0,
        "bootstrap": {"method": method, "draws": len(draws)} if draws is not None else None,
        "domain": {name: [float(end(table.columns[name])) for end in (np.min, np.max)] for name in ("N", "D", "C")},
        "runs_hash": table.hash(),
        "draws": [] if draws is None else draws[: max(400, fewest_draws(options.level))].tolist(),
        "noise": None, "residual_sd": None, "misfit": {"at_one_decade": 0.0, "tests": 0, "expected": 0.0},
        "scatter": {law.axis: law.scatter for law in laws},
        "optima": [_optimum_row(fit, form, options.level) for fit in fits],
        "approaches": [], "accounting": [], "allocation": [], "backtests": tests,
    }  # fmt: skip
    if joint is not None:
        record["joint"] = joint_estimates(form, joint)
        judged += _disagreements(derived, record["joint"])
        judged += _window_verdict(form, fits, derived)
    record["predictions"] = [predict(record, form, at, options.max_decades) for at in options.predict]
    return form, with_verdicts(record, judged)


def _estimates(
    form: HyperparameterLaw, laws: Sequence[PowerLaw], draws: Array | None, method: str, level: float, determined: bool
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Returns the entries of the parameters and of the exponents under their derived names."""
    values = values_of(laws, [law.theta for law in laws])
    params: dict[str, Json] = {}
    for j, (name, value) in enumerate(zip(form.params, values.tolist(), strict=True)):
        law = next(law for law in laws if name in (POWERS[law.axis][0], *POWERS[law.axis][1].values()))
        lo, hi = (float(end) for end in interval(draws[:, j], level)) if draws is not None else (None, None)
        reason = "" if law.determined else "the groups with an optimum inside their grid do not determine it"
        if not reason and not determined:
            reason = "the law of another hyperparameter is not determined by these groups"
        if not reason and name in form.exponents.values() and lo is not None and hi is not None and hi - lo > WIDEST:
            reason = f"its interval {format_interval(lo, hi, '.2f')} is wider than {WIDEST:g}"
        entry: Json = {"value": value, "lo": lo, "hi": hi, "identified": not reason, "reason": reason}
        params[name] = entry | ({"method": method} if method else {})
    return params, {name: dict(params[exponent]) for name, exponent in form.exponents.items()}


def joint_estimates(form: HyperparameterLaw, joint: JointFit) -> dict[str, Json]:
    """Returns value and interval of each exponent by the joint fit, under its derived name."""
    values, lo, hi = (dict(zip(form.params, ends.tolist(), strict=True)) for ends in (joint.values, joint.lo, joint.hi))
    return {name: {"value": values[e], "lo": lo[e], "hi": hi[e]} for name, e in form.exponents.items()}


def _optimum_row(fit: Optimum, form: HyperparameterLaw, level: float) -> Json:
    """Returns the row of a group: its runs, its optimum with an interval, and the curvature of its surface."""
    group, quantile = fit.group, student_quantile(fit.df, level) if fit.df else np.nan
    row: Json = {"N": group.N, "D": group.D, "runs": int(group.count.sum()), "used": int(group.count[fit.used].sum()),
                 "place": fit.place, "loss": float(np.exp(group.losses.min()))}  # fmt: skip
    for j, axis in enumerate(form.axes):
        half = quantile * float(np.sqrt(fit.cov[j, j])) if fit.place == INSIDE else np.nan
        finite = np.isfinite(half)
        row[axis] = float(np.exp(fit.log[j])) if fit.place == INSIDE else None
        row |= {f"{axis}_{end}": float(np.exp(fit.log[j] + sign * half)) if finite else None
                for end, sign in (("lo", -1), ("hi", 1))}  # fmt: skip
        row[f"{axis}_best_run"] = float(np.exp(group.points[group.best, j]))
    return row | {"curvature": fit.curvature.tolist() if fit.place == INSIDE else None}


def _place_verdicts(fits: Sequence[Optimum], form: HyperparameterLaw) -> list[Verdict]:
    """Returns a warning for each reason why groups have no optimum; they are left out of the laws."""
    out = []
    for place, reason in REASONS.items():
        names = [f"N = {fit.group.N:.3g}, D = {fit.group.D:.3g}" for fit in fits if fit.place == place]
        if names:
            unnamed = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
            many = f"{len(names)} of {len(fits)} groups are left out ({'; '.join([*names[:NAMED], *unnamed])})"
            out.append(Verdict(place if place != FEW else "few_runs", "warn", f"{many}: {reason}"))
    return out


def _identified(laws: Sequence[PowerLaw], inside: Sequence[Optimum]) -> list[Verdict]:
    """Returns a refusal for each power law that the groups do not determine."""
    out = []
    for law in laws:
        needed = len(law.theta) + 1
        if inside and law.determined:
            continue
        inputs = {"N": "sizes", "D": "numbers of tokens", "M": "tokens per parameter"}
        names = " and ".join(inputs[name] for name in POWERS[law.axis][1])
        text = (
            f"the law of {law.axis} needs at least {needed} groups of several {names}, not in proportion, with an "
            f"optimum inside their grid, and there {'is' if len(inside) == 1 else 'are'} {len(inside) or 'none'}"
        )
        out.append(Verdict("few_groups", "refuse", text))
    return out


def _disagreements(derived: Mapping[str, Row], joint: Mapping[str, Row]) -> list[Verdict]:
    """Returns a warning for each exponent whose intervals by the two estimates do not overlap."""
    return [
        Verdict("approaches_disagree", "warn", f"the joint fit disagrees on {name}: {joint[name]['value']:.3f} "
                f"{format_interval(joint[name]['lo'], joint[name]['hi'], '.3f')} against {entry['value']:.3f} "
                f"{format_interval(entry['lo'], entry['hi'], '.3f')} in two steps")
        for name, entry in derived.items()
        if joint[name]["lo"] > entry["hi"] or joint[name]["hi"] < entry["lo"]
    ]  # fmt: skip


def _window_verdict(form: HyperparameterLaw, fits: Sequence[Optimum], derived: Mapping[str, Row]) -> list[Verdict]:
    """Returns how the exponents change with surfaces of twice the window: a warning if one leaves its interval."""
    refits = optima_of([fit.group for fit in fits], 2 * fits[0].window)
    used, widened = (f"{100 * each[0].window:.2g}%" for each in (fits, refits))
    if all(np.array_equal(fit.used, refit.used) for fit, refit in zip(fits, refits, strict=True)):
        text = f"no other window was tested: the runs within {widened} of the least loss are those of the surfaces"
        return [Verdict("window", "note", text)]
    wider = [fit for fit in refits if fit.place == INSIDE]
    laws = fit_laws(form.axes, wider) if wider else []
    if not laws or not all(law.determined for law in laws):
        return []
    values = dict(zip(form.params, values_of(laws, [law.theta for law in laws]), strict=True))
    exponents = {name: values[exponent] for name, exponent in form.exponents.items()}
    moved = [name for name, value in exponents.items() if not derived[name]["lo"] <= value <= derived[name]["hi"]]
    text = ", ".join(f"{name} = {value:.3f}" for name, value in exponents.items())
    text = f"with surfaces over runs within {widened} of the least loss, in place of {used}: {text}"
    text += f"; outside the interval: {', '.join(moved)}" * bool(moved)
    return [Verdict("window", "warn" if moved else "note", text)]
