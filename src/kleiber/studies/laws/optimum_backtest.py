"""Backtests of a law of optimal hyperparameters: what its choices cost in the sweeps of larger groups.

A backtest fits the laws to the groups below a cut and trains nothing: the excess loss of the chosen hyperparameters in
each group above is interpolated in its sweep. The least loss of a noisy sweep is itself too low by chance, so this
excess is slightly too high.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kleiber.studies.laws.analysis import Options
from kleiber.studies.laws.backtest import ABOVE, BELOW
from kleiber.studies.laws.hyperparameter_fit import PowerLaw, draw, fit_laws, sizes_of, values_of
from kleiber.studies.laws.hyperparameters import HyperparameterLaw
from kleiber.studies.laws.optima import Optimum
from kleiber.studies.laws.optimum_prediction import compare_group, summarize
from kleiber.studies.laws.verdicts import Verdict
from kleiber.types import Json, Row


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
