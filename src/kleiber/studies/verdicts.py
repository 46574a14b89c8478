"""What may be claimed: each verdict is a code, a level and a sentence; each test states what would make it speak.

Levels: `refuse` (the word law is not earned), `warn` (read this before quoting a number), `note`. It refuses to soften:
a verdict is computed from the rows and the fit, never switched off by a flag.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import fdtrc, stdtr

from kleiber.studies.backtest import Backtest
from kleiber.studies.fit import Fit, fit
from kleiber.studies.law import Array, Linear
from kleiber.studies.profile import Profile
from kleiber.studies.replicates import cells, lack_of_fit

ALPHA = 0.01  # level of each pre-asymptotic test; there are at most five, so a clean ladder passes 19 times in 20
SIZEABLE = 0.1  # change of an exponent when the lowest rung goes: the size that matters


@dataclass(frozen=True)
class Verdict:
    code: str
    level: str
    text: str


def pre_asymptotic(found: Fit) -> list[Verdict]:
    """Signs that the small rungs are not on the power law yet; empty means asymptotic as far as the rows can tell.

    Steepening: mean second difference of log L along log D (or log N) < 0, one-sided t over ladders, each rung's
    triple tested apart (Bonferroni). Early rungs: the law fitted without the lowest rung (and without the lowest two)
    fails to predict it (Chow's F test), and an exponent moves by more than .1 or the rung by more than 1 %. Negative
    floor: the fit with E of either sign is significantly better than with E >= 0, and wants E < 0.
    """
    reasons = [r for r in (_steepening(found), _early_rungs(found), _negative_floor(found)) if r]
    if not reasons:
        return []
    return [Verdict("pre_asymptotic", "refuse", "the small rungs are not on the law yet: " + "; ".join(reasons))]


def _steepening(found: Fit) -> str:
    problem = found.problem
    for along in ("D", "N", "C"):
        if along not in found.law.inputs:
            continue
        others = [name for name in found.law.inputs if name != along]
        bends = _bends(problem.inputs, np.log(problem.target), along, others)
        for rung, values in sorted(bends.items()):
            if len(values) < 3:
                continue
            sample = np.array(values)
            t = sample.mean() / max(sample.std(ddof=1) / np.sqrt(len(sample)), 1e-12)
            if stdtr(len(sample) - 1, t) < ALPHA / len(bends) and sample.mean() < -0.01:
                return f"log L against log {along} steepens near {along} = {rung:.3g} (bend {sample.mean():.3f}, {len(sample)} ladders)"
    return ""


def _bends(inputs, log_loss: Array, along: str, others: list[str]) -> dict[float, list[float]]:
    """Changes of local slope d log L / d log x at each inner rung, one per ladder (rows equal in all other inputs)."""
    ladder = cells({name: inputs[name] for name in others}) if others else np.zeros(len(log_loss), dtype=int)
    bends: dict[float, list[float]] = {}
    for number in np.unique(ladder):
        rows = ladder == number
        x = np.unique(inputs[along][rows])
        y = [log_loss[rows & (inputs[along] == value)].mean() for value in x]
        slopes = np.diff(y) / np.diff(np.log(x))
        for k in range(1, len(x) - 1):
            bends.setdefault(float(x[k]), []).append(float(slopes[k] - slopes[k - 1]))
    return bends


def _early_rungs(found: Fit) -> str:
    problem = found.problem
    whole = fit(found.law, problem.inputs, problem.target, "squared", space=problem.space)
    for along in ("D", "N"):
        if along not in found.law.inputs:
            continue
        rungs = np.unique(problem.inputs[along])
        for count in (1, 2):
            if len(rungs) < count + 3:
                continue
            low = problem.inputs[along] <= rungs[count - 1]
            dropped, spare = int(low.sum()), int((~low).sum()) - problem.num_params
            if spare < 3 or dropped > problem.num_rows / 2:
                continue
            rest = problem.rows(~low)
            late = fit(found.law, rest.inputs, rest.target, "squared", space=problem.space)
            statistic = ((whole.value - late.value) / dropped) / max(late.value / spare, 1e-300)
            if fdtrc(dropped, spare, max(statistic, 0.0)) >= ALPHA:
                continue
            names = [n for n, kind in found.law.params.items() if not isinstance(kind, Linear)]
            moved = max((abs(late.params[n] - whole.params[n]) for n in names), default=0.0)
            off = float(np.mean(problem.target[low] / late.predict(problem.rows(low).inputs) - 1))
            if moved > SIZEABLE or abs(off) > 0.01:
                return (
                    f"without the lowest {count} of {along} (up to {rungs[count - 1]:.3g}) an exponent moves by {moved:.2f}, "
                    f"and those rows lie {off:+.1%} off"
                )
    return ""


def _negative_floor(found: Fit) -> str:
    law, problem = found.law, found.problem
    if not isinstance(law.params.get("E"), Linear) or found.params["E"] > 1e-3 * problem.target.min():
        return ""
    spare = problem.num_rows - len(law.params)
    if spare < 3 or problem.num_rows < len(law.params) + 1:
        return ""
    either = replace(law, params={**law.params, "E": Linear(signed=True)}, start=None)
    free = fit(either, problem.inputs, problem.target, "squared", space=problem.space)
    bound = fit(law, problem.inputs, problem.target, "squared", space=problem.space)
    statistic = (bound.value - free.value) / max(free.value / spare, 1e-300)
    if free.params["E"] < 0 and fdtrc(1, spare, max(statistic, 0.0)) < 2 * ALPHA:
        return f"E sits at 0 and would be {free.params['E']:.3g} if it could"
    return ""


def identifiability(found: Fit, profiled: dict[str, Profile]) -> list[Verdict]:
    """One verdict per parameter that is not identified, one for narrow inputs, one for an ill-conditioned fit."""
    out = [
        Verdict("not_identified", "warn", f"{name} is not identified: the data put this term at 0 and it was dropped")
        for name in found.dropped
    ]
    out += [
        Verdict("not_identified", "warn", f"{name} is not identified: {profile.reason}")
        for name, profile in profiled.items()
        if profile.reason
    ]
    for name in narrow(found):
        decades = float(np.log10(np.ptp(found.problem.inputs[name]) / found.problem.inputs[name].min() + 1))
        out.append(
            Verdict("narrow_input", "warn", f"{name} spans {decades:.2f} decades, less than one: E is an extrapolation")
        )
    condition = found.covariance()[1]
    if condition > 1e8:
        out.append(Verdict("ill_conditioned", "warn", f"condition number of J'J is {condition:.1e} (> 1e8): parameters trade off"))
    return out


def narrow(found: Fit) -> list[str]:
    """Inputs among N, D, C that span less than a decade in a law with a floor E."""
    if "E" not in found.law.params:
        return []
    span = {name: found.problem.inputs[name] for name in ("N", "D", "C") if name in found.law.inputs}
    return [name for name, column in span.items() if column.max() < 10 * column.min()]


def replicates(found: Fit, level: float = 0.05) -> list[Verdict]:
    """Seed noise and the lack-of-fit test, or the statement that neither could be measured."""
    test = lack_of_fit(found)
    if test is None:
        return [Verdict("no_replicates", "note", "no cell was trained twice: seed noise is not measured, residuals mix it with misfit")]
    text = f"seed sd {test.seed_noise:.2g} ({test.pure_df} df), lack of fit F = {test.statistic:.2f}, p = {test.p_value:.2g}"
    if test.p_value < level:
        return [Verdict("lack_of_fit", "warn", f"residuals exceed the seed noise: {text}; intervals that assume noise are too narrow")]
    return [Verdict("fits_within_noise", "note", text)]


def backtest_verdicts(tests: list[Backtest], level: float = 0.9) -> list[Verdict]:
    """No law when the naive predictors do as well over all test rows; a warning for one-sided errors or bad coverage."""
    if not tests:
        return [Verdict("no_backtest", "warn", "no compute cut leaves enough rows on both sides: extrapolation is untested")]
    rows = np.array([test.n_test for test in tests], dtype=np.float64)
    own = float((rows * [test.mare for test in tests]).sum() / rows.sum())
    naive = {n: float((rows * [t.naive[n] for t in tests]).sum() / rows.sum()) for n in tests[0].naive}
    out = []
    best = min(naive, key=lambda n: naive[n])
    if own >= naive[best]:
        out.append(
            Verdict("no_law", "refuse", f"backtest error {own:.2%} does not beat the naive {best} ({naive[best]:.2%}): this is no law")
        )
    largest = max(tests, key=lambda test: test.cut)
    if largest.n_test >= 3 and abs(largest.bias) > 0.9 * largest.mare and largest.mare > 0.005:
        side = "low" if largest.bias < 0 else "high"
        out.append(Verdict("biased", "warn", f"above C = {largest.cut:.3g} every prediction is too {side} ({largest.bias:+.2%}): misfit, not noise"))
    coverage = float((rows * [test.coverage for test in tests]).sum() / rows.sum())
    if coverage < level - 0.25 and rows.sum() >= 4:
        out.append(Verdict("overconfident", "warn", f"the {level:.0%} interval held {coverage:.0%} of the larger runs"))
    return out
