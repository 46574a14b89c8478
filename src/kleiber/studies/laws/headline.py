"""Sentences about a fitted law, an entry of laws.json: its error in extrapolation, and what failed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kleiber.types import Row

CARRIED_BY = {"A": ["N"], "alpha": ["N"], "B": ["D"], "beta": ["D"]}  # inputs that identify a parameter, else all


def not_identified(law: Row) -> list[str]:
    """Returns the parameters of a law that are not identified, from the content of laws.json."""
    return [name for name, parameter in law["params"].items() if not parameter["identified"]]


def headline(law: Row) -> str:
    """Returns the result in sentences: why the law is refused, or its error in extrapolation and what failed."""
    if reason := refusal(law):
        return f"The runs do not support extrapolating {law['law']}: {reason}."
    tested = extrapolation(law)
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in [tested, *failures(law)])


def failures(law: Row) -> list[str]:
    """Returns what a law that is not refused fails at, as sentences without a period; empty where nothing failed."""
    texts, missing = [naive_text(test) for test in lost_to_naive(law)], not_identified(law)
    misfit = next((verdict["text"] for verdict in law["verdicts"] if verdict["code"] == "lack_of_fit"), "")
    texts += [misfit.partition(" (")[0].partition(": ")[0]] if misfit else []  # the verdict has the numbers
    if missing:
        names = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
        verb = "are" if len(missing) > 1 else "is"
        needed = what_identifies(law, missing)
        names = f"the irreducible loss {names}" if missing == ["E"] else names
        texts.append(f"{names} {verb} not identified by these {law['n']} points; this needs {needed}")
    return texts


def lost_to_naive(law: Row) -> list[Row]:
    """Returns the held-out tests in which a naive forecast has a smaller error than the law."""
    tests = [*law["backtests"], *(law.get("holdouts") or ())]
    return [test for test in tests if test["mare"] is not None and best_naive(test) < test["mare"]]


def best_naive(test: Row) -> float:
    """Returns the smallest error of the naive forecasts of a held-out test; infinite where there is none."""
    return min((error for error in test["naive"].values() if error is not None), default=math.inf)


def naive_text(test: Row) -> str:
    """Returns that the law lost a held-out test, as a sentence without a period."""
    where = test.get("name") or f"rows above {test['along']} = {test['cut']:.2g}"
    naive = best_naive(test)
    return (
        f"tested on the {where} alone, a naive forecast is better than the law: its error is {naive:.2%}, that of "
        f"the law {test['mare']:.2%}"
    )


def refusal(law: Row) -> str:
    """Returns why the law is refused, or ""."""
    return next((verdict["text"] for verdict in law["verdicts"] if verdict["level"] == "refuse"), "")


def extrapolation(law: Row) -> str:
    """Returns a sentence about the law's error in extrapolation.

    A backtest fits the law to the points below a cut in compute or size, and predicts the points above. The sentence is
    about the backtest of the highest cut: its mean relative error, its bias, and the largest compute or size of a
    predicted point, as a multiple of the cut. `law` is an entry of laws.json.
    """
    if not law["backtests"]:
        fits = f"{law['formula']} fits {law['n']} points with a residual rms of {law['residual_rms']:.2%}"
        return f"{fits}; no backtest was possible"
    test = max(law["backtests"], key=lambda test: test["cut"])
    naive = min(test["naive"].values())
    unit = {"C": "FLOPs", "N": "parameters"}[test["along"]]
    times = law["domain"][test["along"]][1] / test["cut"]
    fitted = f"fitted below {test['cut']:.2g} {unit}, the law predicts"
    off = f"{abs(test['bias']):.2%} too {'high' if test['bias'] > 0 else 'low'}"
    if test["n_test"] == 1:
        return f"{fitted} the largest point, {times:.2g} times this cut, {off} (best naive predictor: {naive:.2%} off)"
    return (
        f"{fitted} the {test['n_test']} larger points, up to {times:.2g} times this cut, with a mean error of "
        f"{test['mare']:.2%} (best naive predictor {naive:.2%}), on average {off}"
    )


def what_identifies(law: Row, missing: Sequence[str]) -> str:
    """Returns which data would identify these parameters: a wider range of inputs, more points, less noise."""
    inputs = [name for name in law["domain"] if name != "C"] or ["C"]
    wanted = {needed for name in missing for needed in CARRIED_BY.get(name, inputs)} & set(inputs)
    spans = {name: high / low for name, (low, high) in law["domain"].items() if name in wanted and low > 0}
    ranges = [f"{name} (now a factor of {float(f'{factor:.2g}'):,g})" for name, factor in spans.items()]
    few = f"more points ({law['n']} for {len(law['params'])} parameters)"
    asked = [*([few] if law["n"] <= 2 * len(law["params"]) else []), f"a wider range of {' and '.join(ranges)}"]
    return " and ".join(asked if ranges else asked[:-1] or [few]) + ", or less noise"


def within_budgets(exponent: str, law: Row) -> str:
    """Returns the headline of a study of the allocation exponent, limited to its budgets if the law is refused."""
    low, high = law["domain"]["C"]
    if reason := refusal(law):
        return (
            f"The runs do not support extrapolating the exponent, since the law fitted to the same points is refused: "
            f"{reason}. Between {low:.2g} and {high:.2g} FLOPs: {exponent[0].lower()}{exponent[1:]}."
        )
    failed = [f"{text[0].upper()}{text[1:]}." for text in failures(law)]
    return " ".join([f"{exponent}, between {low:.2g} and {high:.2g} FLOPs.", *failed])
