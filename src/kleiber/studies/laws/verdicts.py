"""What may be claimed: each verdict is a code, a level and a sentence; each test states what would make it speak.

Levels: `refuse` (the word law is not earned), `warn` (read this before quoting a number), `note`. It refuses to soften:
a verdict is computed from the rows and the fit, never switched off by a flag.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kleiber.studies.laws.asymptotics import MOVED, move, signs
from kleiber.studies.laws.backtest import Backtest
from kleiber.studies.laws.fit import Fit
from kleiber.studies.laws.replicates import lack_of_fit
from kleiber.studies.laws.transients import Diagnostics, detectable, untold


@dataclass(frozen=True)
class Verdict:
    code: str
    level: str
    text: str


def pre_asymptotic(diagnostics: Diagnostics | None) -> list[Verdict]:
    """A refusal with its reasons when `asymptotics.signs` finds any, and along which inputs nothing can be judged."""
    if diagnostics is None:
        return []
    out, reasons, missing = [], signs(diagnostics), untold(diagnostics)
    if reasons:
        text = "the small rungs are not on the law yet: " + "; ".join(reasons)
        out.append(Verdict("pre_asymptotic", "refuse", text))
    if missing:
        text = f"whether the law holds from the smallest {' and '.join(missing)} on cannot be judged: "
        text += (
            f"{diagnostics.noise.df_trunks:.1f} degrees of freedom between trunks are too few to tell a transient from "
        )
        text += "the noise that the branches of a trunk share; more seeds or sizes would"
        out.append(Verdict("transient_not_tested", "warn", text))
    return out


def settled(diagnostics: Diagnostics | None, level: float = 0.9) -> list[Verdict]:
    """Whether beta has settled on doubling the least D, and how large a transient these rows could hide."""
    if diagnostics is None:
        return []
    out, change = [], move(diagnostics, level)
    how = "" if diagnostics.model.fit.problem.loss_fn == "squared" else "by least squares, "
    if change is not None and not np.isfinite(change.hi):
        text = f"{how}beta is {change.early:.2f} over all rows, and the rows from twice the least D on tell none"
        out.append(Verdict("not_settled", "warn", f"{text} of their own: not settled"))
    elif change is not None and not change.moved:
        text = (
            f"{how}beta is {change.early:.2f} over all rows and {change.late:.2f} from twice the least D on, "
            f"{level:.0%} interval of the change [{change.lo:+.2f}, {change.hi:+.2f}]"
        )
        if change.settled:
            out.append(Verdict("settled", "note", f"{text}: settled"))
        else:
            text += f": not settled, since a move of more than {MOVED:g} is not excluded"
            out.append(Verdict("not_settled", "warn", text))
    sizes = detectable(diagnostics)
    if sizes is not None:
        told = ", ".join(f"{size:.1%}" for size in sizes)
        out.append(
            Verdict(
                "detectable",
                "note",
                f"a transient exp(-D/D0) with D0 of 1, 2, 4 times the least D shows in 90 of 100 such ladders only "
                f"from {told} of the loss on (at the least D); a smaller one is taken for the law",
            )
        )
    return out


def identifiability(found: Fit, params: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """One verdict per parameter that is not identified, one for narrow inputs, one for an ill-conditioned fit.

    `params` as laws.json holds them.
    """
    out = [
        Verdict("not_identified", "warn", f"{name} is not identified: {entry['reason']}")
        for name, entry in params.items()
        if not entry["identified"]
    ]
    tight = narrow(found)
    if tight:
        out.append(Verdict("narrow_input", "warn", tight))
    condition = found.covariance()[1]
    if condition > 1e8:
        out.append(
            Verdict(
                "ill_conditioned", "warn", f"condition number of J'J is {condition:.1e} (> 1e8): parameters trade off"
            )
        )
    return out


def narrow(found: Fit) -> str:
    """Why a floor E is an extrapolation, whatever its profile: N, D or C spans under a decade; "" if none."""
    if "E" not in found.law.params:
        return ""
    for name in (name for name in ("N", "D", "C") if name in found.law.inputs):
        column = found.problem.inputs[name]
        decades = float(np.log10(column.max() / column.min()))
        if decades < 1:
            return f"{name} spans {decades:.2f} decades, less than one, so that E is an extrapolation"
    return ""


def replicates(found: Fit, level: float = 0.05) -> list[Verdict]:
    """Seed noise and the lack-of-fit test, or the statement that neither could be measured."""
    test = lack_of_fit(found)
    if test is None:
        return [
            Verdict(
                "no_replicates",
                "note",
                "no cell was trained twice: seed noise is not measured, residuals mix it with misfit",
            )
        ]
    text = f"seed sd {test.seed_noise:.2g} ({test.pure_df} df), "
    text += f"lack of fit F = {test.statistic:.3g}, p = {test.p_value:.2g}"
    if test.p_value < level:
        return [
            Verdict(
                "lack_of_fit",
                "warn",
                f"residuals exceed the seed noise: {text}; intervals that assume noise are too narrow",
            )
        ]
    return [Verdict("fits_within_noise", "note", text)]


def copies(found: Fit) -> list[Verdict]:
    """Rows that repeat another in every input and in the loss, which no second seed does unless losses are rounded."""
    rows = np.column_stack([*(found.problem.inputs[name] for name in found.law.inputs), found.problem.target])
    more = len(rows) - len(np.unique(rows, axis=0))
    if not more:
        return []
    text = f"{more} of {len(rows)} rows repeat another in {', '.join(found.law.inputs)} and loss: where they are "
    text += "copies, and not seeds of one rounded loss, leave them out, since they make noise and intervals look small"
    return [Verdict("copies", "warn", text)]


def backtest_verdicts(tests: list[Backtest], level: float = 0.9, why: str = "") -> list[Verdict]:
    """No law when the naive predictors do as well over all test rows; a warning for bias or bad coverage."""
    if not tests:
        return [
            Verdict(
                "no_backtest",
                "warn",
                f"{why or 'no compute cut leaves enough rows on both sides'}: extrapolation is untested",
            )
        ]
    rows = np.array([test.n_test for test in tests], dtype=np.float64)
    own = float((rows * [test.mare for test in tests]).sum() / rows.sum())
    naive = {n: float((rows * [t.naive[n] for t in tests]).sum() / rows.sum()) for n in tests[0].naive}
    out = []
    best = min(naive, key=lambda n: naive[n])
    if own >= naive[best]:
        out.append(
            Verdict(
                "no_law",
                "refuse",
                f"backtest error {own:.2%} does not beat the naive {best} ({naive[best]:.2%}): this is no law",
            )
        )
    largest = max(tests, key=lambda test: test.cut)
    if largest.n_test >= 3 and abs(largest.bias) > 0.9 * largest.mare and largest.mare > 0.005:
        side = "low" if largest.bias < 0 else "high"
        which = "every prediction is" if abs(largest.bias) > 0.999999 * largest.mare else "predictions are"
        out.append(
            Verdict(
                "biased",
                "warn",
                f"above {largest.along} = {largest.cut:.3g} {which} too {side} ({largest.bias:+.2%}): "
                "misfit, not noise",
            )
        )
    coverage = float((rows * [test.coverage for test in tests]).sum() / rows.sum())
    if coverage < level - 0.25 and rows.sum() >= 4:
        out.append(Verdict("overconfident", "warn", f"the {level:.0%} interval held {coverage:.0%} of the larger runs"))
    return out
