"""The study `scaling`: from the runs of a ladder to one law, its backtests and verdicts, with and without the least D.

It reads what runs wrote and refuses to rank a run that did not finish. Branches of one trunk are one sample of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from kleiber.config.budget import quantity
from kleiber.records.catalog import Run
from kleiber.studies.designs.sizes import PlannedPoint, shortfall
from kleiber.studies.laws import analysis, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.exclusion import CHOICES
from kleiber.studies.laws.file import band_rate, finite, intervals_by, lines, percent, short
from kleiber.studies.study import Findings, Study, not_identified, points

SIZES = {"active": "active", "total": "params", "non_embedding": "non_embedding"}
GOALS = {"largest size": 0.015, "top 4x of compute": 0.015, "two largest sizes": 0.025}  # errors that a ladder may make
CARRIED_BY = {"A": ["N"], "alpha": ["N"], "B": ["D"], "beta": ["D"]}  # other parameters need every input


@dataclass(frozen=True)
class Scaling(Study):
    """What to fit to a ladder.

    law         a shipped law of N and D
    min_tokens  the least D that enters the headline; below lies the transient of small runs
    size        which parameters are N: active (those of the head included), total or non_embedding
    bootstrap   resamples
    predict     points to extrapolate to, such as {N: 1e6, D: 3e7}
    exclude     none, or suspects: leave out the points that a rule finds unlike the others
    """

    law: str = "chinchilla"
    min_tokens: int | float | str = "2M"
    size: str = "active"
    bootstrap: int = 1000
    predict: Sequence[dict[str, float]] = field(default_factory=tuple)
    exclude: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(find(self.law).inputs) != {"N", "D"}:
            raise ValueError(f"study.law={self.law} is no law of N and D, such as chinchilla")
        if self.size not in SIZES:
            raise ValueError(f"study.size={self.size}: one of {', '.join(SIZES)}")
        if self.exclude not in CHOICES:
            raise ValueError(f"study.exclude={self.exclude}: must be one of {', '.join(CHOICES)}")
        quantity(self.min_tokens)

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError where the points of `min_tokens` and more do not determine the law."""
        late = [point for point in points if 0.999 * quantity(self.min_tokens) <= point.D]
        columns = {name: np.array([getattr(point, name) for point in late]) for name in ("N", "D")}
        if why := shortfall(find(self.law), columns):
            raise ValueError(f"{why}, or lower study.min_tokens={self.min_tokens}" if len(late) < len(points) else why)
        return []

    def law_inputs(self) -> Sequence[str]:
        return find(self.law).inputs

    def analyse(self, runs: Sequence[Run]) -> Findings:
        """The law of a ladder with what may be said of it."""
        law = finite(self.law_of(runs))
        rows = points(runs).rename(columns={SIZES[self.size]: "N", "tokens": "D", "flops": "C"})
        tables = {
            "Goals": goals(law), "Approaches and conventions": conventions(law), "Least tokens": least(law),
            "With and without the suspects": beside(law),
        }  # fmt: skip
        return Findings(headline(law), law["verdicts"], tables, figures(rows, law), law, lines(law), methods(law, runs))

    def law_of(self, runs: Sequence[Run]) -> dict:
        """laws.json of the rows with D >= min_tokens, and beside it ("all") the fit of every row."""
        rows = points(runs)
        late = at_least(rows, quantity(self.min_tokens))
        if not len(late):
            most = max(rows["tokens"].tolist())
            raise ValueError(
                f"study.min_tokens={self.min_tokens} leaves no row: the longest run here has {most:,.0f} tokens"
            )
        record = analysis.analyse(self.loaded(late), find(self.law), self.options())
        record["excluded"] = [*record["excluded"], *left_out(runs)]
        if len(late) < len(rows):
            record["from_least_tokens"] = [
                {"min_tokens": float(least), **self._from(rows, least, late, record)}
                for least in sorted(rows["tokens"].unique())[:3]
            ]
        return record

    def _from(self, rows: pd.DataFrame, least: float, late: pd.DataFrame, record: Mapping[str, Any]) -> dict:
        """n, params and derived of the rows from `least` tokens on; those of the record where they are its rows."""
        part = at_least(rows, least)
        if len(part) == len(late):
            return {name: record[name] for name in ("n", "params", "derived")}
        return analysis.brief(self.loaded(part), find(self.law), self.options(200))

    def loaded(self, rows: pd.DataFrame) -> table.Table:
        """The rows with their roles: C and Cexact are counted FLOPs."""
        roles = {"N": SIZES[self.size], "D": "tokens", "L": "loss", "C": "flops", "Cexact": "flops"}
        return table.load(rows, {**roles, "Nnoemb": "non_embedding"}, (), ("N", "D"))

    def options(self, bootstrap: int | None = None) -> analysis.Options:
        draws = self.bootstrap if bootstrap is None else bootstrap
        return analysis.Options(
            bootstrap=draws, cluster="trunk", predict=self.predict, rank=bootstrap is None, exclude=self.exclude
        )


def at_least(rows: pd.DataFrame, tokens: float) -> pd.DataFrame:
    """Rows of that many training tokens and more; a run's tokens are whole batches, so a little less will do."""
    return pd.DataFrame(rows[rows["tokens"] >= 0.999 * tokens])


def left_out(runs: Sequence[Run]) -> list[dict]:
    """Cells without an end, each with the rule that keeps it out."""
    return [{"row": run.name, "rule": f"status {run.status}"} for run in runs if run.status != "finished"]


def figures(rows: pd.DataFrame, law: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """The figures that a record allows, by name."""
    from kleiber.studies.laws import figures as plots

    form = find(law["law"])
    return {
        "frontier": lambda: plots.frontier(rows, form, law),
        "ladder": lambda: plots.ladder(rows, form, law),
        "residuals": lambda: plots.residuals(rows, form, law),
        **of_record(law),
    }


def of_record(law: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """The figures of a record that need no rows."""
    from kleiber.studies.laws import figures as plots

    made: dict[str, Callable[[], Any]] = {}
    if law["approaches"]:
        made["exponents"] = lambda: plots.exponents(law)
    if law["allocation"] or any(one["points"] for one in law["approaches"]):
        made["allocation"] = lambda: plots.allocation(law)
    if law["backtests"]:
        made["backtests"] = lambda: plots.backtests(law)
    if "E" in (law.get("profiles") or {}):
        made["profile"] = lambda: plots.profile(law)
    return made


def headline(law: Mapping[str, Any]) -> str:
    """What may be said of this law in a sentence or two: a refusal first, then what is not identified and what would
    identify it, then how far its predictions held."""
    if reason := refusal(law):
        return f"This is no law beyond its rows: {reason}."
    tested = extrapolation(law)
    missing = not_identified(law)
    if not missing:
        return f"{tested[0].upper()}{tested[1:]}."
    names = " and ".join([", ".join(missing[:-1]), missing[-1]] if len(missing) > 1 else missing)
    verb = "are" if len(missing) > 1 else "is"
    return (
        f"{names} of {law['law']} {verb} not identified by these {law['n']} points: that takes "
        f"{what_identifies(law, missing)}. As a formula for predictions alone: {tested}."
    )


def refusal(law: Mapping[str, Any]) -> str:
    """Why the law is refused; "" where it is not."""
    return next((verdict["text"] for verdict in law["verdicts"] if verdict["level"] == "refuse"), "")


def extrapolation(law: Mapping[str, Any]) -> str:
    """How well the law predicted beyond the highest cut, and how far beyond."""
    if not law["backtests"]:
        return f"{law['formula']} fits {law['n']} points to {law['residual_rms']:.2%} rms, and no backtest was possible"
    test = max(law["backtests"], key=lambda test: test["cut"])
    naive = min(test["naive"].values())
    many = f"{test['n_test']} larger points" if test["n_test"] > 1 else "largest point"
    unit = {"C": "FLOPs", "N": "parameters"}[test["along"]]
    times = law["domain"][test["along"]][1] / test["cut"]
    return (
        f"fitted below {test['cut']:.2g} {unit}, the law predicts the {many}, up to {times:.2g} times that, to "
        f"{test['mare']:.2%} (best naive predictor {naive:.2%}), bias {test['bias']:+.2%}"
    )


def what_identifies(law: Mapping[str, Any], missing: Sequence[str]) -> str:
    """What the runs lack for these parameters: ranges of the inputs that carry them, more points, less noise."""
    inputs = [name for name in law["domain"] if name != "C"] or ["C"]
    wanted = {name for one in missing for name in CARRIED_BY.get(one, inputs)} & set(inputs)
    spans = {name: math.log10(high / low) for name, (low, high) in law["domain"].items() if name in wanted and low > 0}
    ranges = [f"{name} (here {decades:.1f} decades)" for name, decades in spans.items()]
    few = f"more points ({law['n']} for {len(law['params'])} parameters)"
    asked = [*([few] if law["n"] <= 2 * len(law["params"]) else []), f"a wider range of {' and '.join(ranges)}"]
    return " and ".join(asked if ranges else asked[:-1] or [few]) + ", or less noise"


def within_budgets(exponent: str, law: Mapping[str, Any]) -> str:
    """The headline of a study of the allocation exponent: of these budgets alone where their law is refused."""
    low, high = law["domain"]["C"]
    if reason := refusal(law):
        where = f"Between {low:.2g} and {high:.2g} FLOPs alone: {exponent[0].lower()}{exponent[1:]}"
        return f"The law of these points is refused, so no exponent holds beyond them: {reason}. {where}."
    missing = not_identified(law)
    beside = f"; the law of the same points does not identify {', '.join(missing)}" if missing else ""
    return f"{exponent}, from {low:.2g} to {high:.2g} FLOPs{beside}."


def beside(law: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fit with the suspects and the fit without them; nothing where there are none."""
    rows = []
    for one in law.get("with_without", ()):
        estimates = {name: short(value) for name, value in one.items() if isinstance(value, Mapping)}
        rows.append({"suspects": one["suspects"], "points": one["n"], **estimates})
    return rows


def goals(law: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was left out and predicted, beside what a ladder is asked for.

    A goal is met by its number alone; whether naive predictors did as well and the interval held stands beside.
    """
    rows = [
        {
            "left out": one["name"], "fitted": one["n_train"], "predicted": one["n_test"],
            "error": f"{one['mare']:.2%}", "goal": f"<= {GOALS[one['name']]:.1%}", "bias": f"{one['bias']:+.2%}",
            "met": one["mare"] <= GOALS[one["name"]],
            "naive": ", ".join(f"{error:.2%}" for error in one["naive"].values()), "beats naive": one["beats_naive"],
            f"in the {percent(law['level'])} interval": "-" if one["coverage"] is None else
            f"{round(one['coverage'] * one['n_test'])} of {one['n_test']}",
            "interval held": None if one["coverage"] is None else one["coverage"] >= law["level"],
        }
        for one in law.get("holdouts", ())
    ]  # fmt: skip
    rms = {"left out": "nothing: fit rms", "fitted": law["n"], "error": f"{law['residual_rms']:.2%}", "goal": "<= 0.6%"}
    rows.append({**rms, "met": law["residual_rms"] <= 0.006})
    a = law["derived"].get("a_opt")
    if a and a["identified"]:
        half = (a["hi"] - a["lo"]) / 2
        told = {"left out": f"nothing: {percent(law['level'])} half-width of a", "fitted": law["n"]}
        told["error"] = f"{half:.3f}"
        rows.append({**told, "goal": "<= 0.08", "met": half <= 0.08})
    return rows


def conventions(law: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The allocation exponent by approach and way of counting; the plain record where there is one way only."""
    found = law["accounting"] or [{"convention": "as fitted", **one, "shift": 0.0} for one in law["approaches"]]
    return [
        {
            "counting": one["convention"], "approach": one["approach"], "a": f"{one['a']:.3f}",
            percent(law["level"]): f"[{one['lo']:.3f}, {one['hi']:.3f}]", "shift": f"{one['shift']:+.3f}",
        }
        for one in found
    ]  # fmt: skip


def least(law: Mapping[str, Any]) -> list[dict[str, Any]]:
    """beta and a as the least D that enters rises."""
    rows = []
    for one in law.get("from_least_tokens", ()):
        row: dict[str, Any] = {"D from": one["min_tokens"], "points": one["n"]}
        for name, value in {**one["params"], **one["derived"]}.items():
            if name in ("alpha", "beta", "a_opt"):
                ends = None if value["lo"] is None or value["hi"] is None else (value["lo"], value["hi"])
                row[name] = f"{value['value']:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "not identified"
        rows.append(row)
    return rows


def methods(law: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """A paragraph for a paper, with its sources."""
    goal, noise = law["objective"], law.get("trunk_noise")
    spans = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in sorted(law["domain"].items()))
    hours = sum(run.summary.get("seconds") or 0 for run in runs) / 3600
    trained = "each with a schedule of its own length"
    if any(stage.get("trunk") for run in runs for stage in run.stages):
        trained = "each a trunk at a constant learning rate with cooldowns to every number of tokens (arXiv:2405.18392)"
    shared = (
        f" Between trunks of one size the log loss has a standard deviation of {noise['between']:.2%} ({noise['df']} "
        f"degrees of freedom), correlated {noise['correlation']:.2f} over tokens; that enters every interval."
        if noise
        else ""
    )
    return (
        f"We trained {len([run for run in runs if run.status == 'finished'])} runs ({hours:.2f} hours of processes), "
        f"{trained}, under muP (arXiv:2203.03466). {law['formula']} ({law['source']}) was fitted to {law['n']} points "
        f"({spans}), seeds averaged within a size, by variable projection and a {goal['kind']} loss in {goal['space']} "
        f"space.{shared} Intervals are at "
        f"{percent(law['level'])}, {intervals_by(law)}. The allocation exponent is also read from ties and vertices "
        "at interpolated budgets (Hoffmann et al. 2022, arXiv:2203.15556). Extrapolation was tested by leaving out the "
        f"largest compute, beside two predictors that know no law; bands of new runs hold {band_rate(law)}."
    )
