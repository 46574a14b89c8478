"""The studies `scaling`, `isoflop` and `accounting`: fit a scaling law to models of several sizes and token counts.

They make the same fits, backtests, tables and verdicts, and differ in what they answer: how accurate the law's
predictions are (`scaling`), the compute-optimal size at each budget (`isoflop`), or how the allocation exponent depends
on the counting of parameters and compute (`accounting`). Only finished runs are analyzed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kleiber.config.stages import Quantity, quantity
from kleiber.records.catalog import Run
from kleiber.studies.designs.design import shortfall
from kleiber.studies.law_report import band_rate, intervals_by, lines, misfit_tables, record_figures, suspects_table
from kleiber.studies.laws import analysis, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.headline import headline, within_budgets
from kleiber.studies.laws.laws_json import without_nonfinite
from kleiber.studies.laws.uncertainty import percent
from kleiber.studies.laws.verdicts import CHOICES
from kleiber.studies.study import Figures, Findings, PlannedPoint, Study, finished_rows
from kleiber.types import Json, Natural, Positive, Row
from kleiber.types.score import format_interval

SIZES = {"active": "active", "total": "params", "non_embedding": "non_embedding"}
WHOLE_STEPS = 0.95  # of min_tokens still counts, since runs train on whole steps: 32K tokens may be 31 steps of 1,024
GOALS = {"largest size": 0.015, "top 4x of compute": 0.015, "two largest sizes": 0.025}  # error goals, by held-out part


@dataclass(frozen=True)
class Scaling(Study):
    """Fits a scaling law to the runs, and tests it.

    law         name of a shipped law of N and D
    min_tokens  rows with fewer tokens are not in the main fit, since small runs start with a transient
    size        which parameters count as N: active (including the head), total or non_embedding
    bootstrap   number of bootstrap resamples
    predict     points at which to predict the loss, such as {N: 1e6, D: 3e7}
    exclude     "suspects" excludes rows that look diverged or badly tuned from the fit, "none" only lists them
    answers     what the first lines of the report are about: "errors" of the predictions, the "optimum" of parabolas in
                log N at each compute budget (approach 2), or the range of the allocation exponent over "conventions" of
                counting parameters and compute (Porian et al. 2024, arXiv:2406.19146), of which none is recommended
    """

    law: str = "chinchilla"
    min_tokens: Quantity = "2M"
    size: str = "active"
    bootstrap: Natural = 1000
    predict: Sequence[dict[str, Positive]] = field(default_factory=tuple)
    exclude: str = "none"
    answers: str = "errors"

    def __post_init__(self) -> None:
        if set(find(self.law).inputs) != {"N", "D"}:
            raise ValueError(f"study.law={self.law} must be a law of N and D, such as chinchilla")
        if self.size not in SIZES:
            raise ValueError(f"study.size={self.size} must be one of {', '.join(SIZES)}")
        if self.exclude not in CHOICES:
            raise ValueError(f"study.exclude={self.exclude} must be one of {', '.join(CHOICES)}")
        if self.answers not in ANSWERS:
            raise ValueError(f"study.answers={self.answers} must be one of {', '.join(ANSWERS)}")

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError if the points with at least `min_tokens` do not determine the law."""
        late = [point for point in points if WHOLE_STEPS * quantity(self.min_tokens) <= point.D]
        columns = {"N": np.array([point.N for point in late]), "D": np.array([point.D for point in late])}
        if why := shortfall(find(self.law), columns):
            raise ValueError(why + f", or decrease study.min_tokens={self.min_tokens}" * (len(late) < len(points)))
        return []

    def law_inputs(self) -> Sequence[str]:
        return find(self.law).inputs

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Fits the law and returns it with its tables, figures and verdicts."""
        law = without_nonfinite(self.law_of(runs))
        rows = finished_rows(runs).rename(columns={SIZES[self.size]: "N", "tokens": "D", "flops": "C"})
        tables = {
            **({"Optimum by budget": optima(law)} if self.answers == "optimum" else {}),
            "Held-out errors": held_out_errors(law), **misfit_tables(law),
            "Allocation exponent by counting convention": conventions(law),
            "Sensitivity to the smallest D": min_token_fits(law), "Sensitivity to suspects": suspects_table(law),
        }  # fmt: skip
        return Findings(
            ANSWERS[self.answers](law),
            question=QUESTIONS[self.answers],
            verdicts=law["verdicts"],
            tables=tables,
            figures=figures(rows, law) | self.envelope(runs),
            law=law,
            text=lines(law),
            methods=methods(law, runs),
        )

    def envelope(self, runs: Sequence[Run]) -> Figures:
        """Returns the figure of the training curves, if the runs have logged enough for one."""
        from kleiber.studies.laws.envelope import envelope, training_curves

        curves = training_curves(runs, SIZES[self.size])
        return {} if curves.empty else {"envelope": lambda: envelope(curves)}

    def law_of(self, runs: Sequence[Run]) -> Json:
        """Returns the content of laws.json: the fit to rows with D >= min_tokens, and fits from smaller D on."""
        rows = finished_rows(runs)
        late = at_least(rows, WHOLE_STEPS * quantity(self.min_tokens))
        if not len(late):
            most = max(rows["tokens"].tolist())
            raise ValueError(
                f"study.min_tokens={self.min_tokens} must be at most {most:,.0f}, the tokens of the longest run: "
                "decrease it and repeat the command, which trains no finished run again"
            )
        record = analysis.analyze(self.loaded(late), find(self.law), self.options())
        record["excluded"] = [*record["excluded"], *unfinished_runs(runs)]
        if len(late) < len(rows):
            record["from_least_tokens"] = [
                {"min_tokens": float(least), **self._from(rows, least, late, record)}
                for least in sorted(rows["tokens"].unique())[:3]
                if len(at_least(rows, least)) >= len(find(self.law).params)
            ]
        return record

    def _from(self, rows: pd.DataFrame, least: float, late: pd.DataFrame, record: Row) -> Json:
        """Fits the rows with at least `least` tokens; returns n, params and derived."""
        part = at_least(rows, least)
        if len(part) == len(late):
            return {name: record[name] for name in ("n", "params", "derived")}
        return analysis.fit_briefly(self.loaded(part), find(self.law), self.options(200))

    def loaded(self, rows: pd.DataFrame) -> table.Table:
        """Returns the rows as a table with roles; C and Cexact are exact FLOPs."""
        roles = {"N": SIZES[self.size], "D": "tokens", "L": "loss", "C": "flops", "Cexact": "flops"}
        return table.load(rows, {**roles, "Nnoemb": "non_embedding"}, (), ("N", "D"))

    def options(self, bootstrap: int | None = None) -> analysis.Options:
        draws = self.bootstrap if bootstrap is None else bootstrap
        return analysis.Options(
            bootstrap=draws, cluster="trunk", predict=self.predict, rank=bootstrap is None, exclude=self.exclude
        )


def parabolas(law: Row) -> Row | None:
    """Returns the entry of approach 2 in a law; None where fewer than three budgets have a minimum."""
    return next((row for row in law["approaches"] if row["approach"].startswith("2")), None)


def optima(law: Row) -> list[Json]:
    """Returns a table of the compute-optimal size at each budget, from parabolas in log N."""
    fitted = parabolas(law)
    points = [] if fitted is None else fitted["points"]
    return [{"C": point["C"], "N_opt": point["N"], "lo": point.get("lo"), "hi": point.get("hi")} for point in points]


def optimum_answer(law: Row) -> str:
    """Returns the exponent of the optima, no further than the budgets if the fitted law is refused."""
    fitted = parabolas(law)
    if fitted is None:
        return (
            "No allocation exponent: fewer than three budgets have a minimum between their smallest and largest size."
        )
    head = (
        f"The compute-optimal size grows as N_opt ~ C^{fitted['a']:.3f}, {law['level']:.0%} interval "
        f"{format_interval(fitted['lo'], fitted['hi'], '.3f')}, from parabolas at {len(optima(law))} compute budgets"
    )
    return within_budgets(head, law)


def conventions_answer(law: Row) -> str:
    """Returns the range of the allocation exponent over conventions of counting parameters and compute."""
    rows = [row for row in law["accounting"] if row["approach"].startswith("3")]
    if not rows:
        return "Counting conventions not compared: there is only one, or no exponent."
    low, high = (pick(rows, key=lambda row: row["a"]) for pick in (min, max))
    head = (
        "Depending on how parameters and compute are counted, the allocation exponent ranges from "
        f"{low['a']:.3f} {format_interval(low['lo'], low['hi'], '.3f')} ({low['convention']}) to {high['a']:.3f} "
        f"{format_interval(high['lo'], high['hi'], '.3f')} ({high['convention']})"
    )
    return within_budgets(head, law)


QUESTIONS = {
    "errors": "How well does a law fitted to small runs predict the loss of larger ones?",
    "optimum": "How does the compute-optimal model size grow with training compute?",
    "conventions": "How much does the allocation exponent depend on what counts as a parameter?",
}
ANSWERS = {"errors": headline, "optimum": optimum_answer, "conventions": conventions_answer}


def at_least(rows: pd.DataFrame, tokens: float) -> pd.DataFrame:
    """Returns the rows with at least that many training tokens, to within 0.1 %."""
    return pd.DataFrame(rows[rows["tokens"] >= 0.999 * tokens])


def unfinished_runs(runs: Sequence[Run]) -> list[Json]:
    """Returns the runs that did not finish, each with its status as the rule that excludes it."""
    return [{"row": run.name, "rule": f"status {run.status}"} for run in runs if not run.finished]


def figures(rows: pd.DataFrame, law: Row) -> Figures:
    """Returns functions that draw the figures of a ladder, by name."""
    from kleiber.studies.laws import figures as plots
    from kleiber.studies.laws import plane_figures

    form = find(law["law"])
    profiles = {"isoflop": lambda: plane_figures.isoflop(rows)} if plane_figures.has_budgets(rows) else {}
    return {
        **profiles,
        "frontier": lambda: plots.frontier(rows, form, law),
        "ladder": lambda: plots.ladder(rows, form, law),
        "contours": lambda: plane_figures.contours(rows, form, law),
        "predicted": lambda: plane_figures.predicted(rows, form, law),
        "residuals": lambda: plots.residuals(rows, form, law),
        **record_figures(law),
    }


def held_out_errors(law: Row) -> list[Json]:
    """Returns a table of the errors on held-out parts, with goals, naive predictors and coverage."""
    rows = [
        {
            "held out": test["name"], "fitted": test["n_train"], "predicted": test["n_test"],
            "error": f"{test['mare']:.2%}", "goal": f"<= {GOALS[test['name']]:.1%}", "bias": f"{test['bias']:+.2%}",
            "met": test["mare"] <= GOALS[test["name"]],
            "naive predictors": ", ".join(f"{error:.2%}" for error in test["naive"].values()),
            "beats naive": test["beats_naive"],
            f"in the {percent(law['level'])} prediction interval": "-" if test["coverage"] is None else
            f"{round(test['coverage'] * test['n_test'])} of {test['n_test']}",
            "coverage met": None if test["coverage"] is None else test["coverage"] >= law["level"],
        }
        for test in law.get("holdouts", ())
    ]  # fmt: skip
    rms = {"held out": "nothing (residual rms)", "fitted": law["n"], "error": f"{law['residual_rms']:.2%}"}
    rows.append({**rms, "goal": "<= 0.6%", "met": law["residual_rms"] <= 0.006})
    a = law["derived"].get("a_opt")
    if a and a["identified"]:
        half = (a["hi"] - a["lo"]) / 2
        width = {"held out": f"nothing (half-width of a at {percent(law['level'])})", "fitted": law["n"]}
        rows.append({**width, "error": f"{half:.3f}", "goal": "<= 0.08", "met": half <= 0.08})
    return rows


def conventions(law: Row) -> list[Json]:
    """Returns a table of the allocation exponent by approach and counting convention."""
    rows = law["accounting"] or [{"convention": "as fitted", **row, "shift": 0.0} for row in law["approaches"]]
    return [
        {
            "counting": row["convention"], "approach": row["approach"], "a": f"{row['a']:.3f}",
            percent(law["level"]): f"{format_interval(row['lo'], row['hi'], '.3f')}",
            "shift": "-" if row["shift"] is None else f"{row['shift']:+.3f}",
        }
        for row in rows
    ]  # fmt: skip


def min_token_fits(law: Row) -> list[Json]:
    """Returns a table of fits, each without the runs of fewer than `smallest D` tokens: alpha, beta and a = a_opt."""
    rows = []
    for fit in law.get("from_least_tokens", ()):
        row: Json = {"smallest D": fit["min_tokens"], "points": fit["n"]}
        for name, value in {**fit["params"], **fit["derived"]}.items():
            if name in ("alpha", "beta", "a_opt"):
                row[name] = "not identified"
                if value["lo"] is not None and value["hi"] is not None:
                    row[name] = f"{value['value']:.3f} {format_interval(value['lo'], value['hi'], '.3f')}"
        rows.append(row)
    return rows


def methods(law: Row, runs: Sequence[Run]) -> str:
    """Returns the paragraph on methods, with sources."""
    goal, noise = law["objective"], law.get("trunk_noise")
    spans = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in sorted(law["domain"].items()))
    hours = sum(run.summary.get("seconds") or 0 for run in runs) / 3600
    trained = "each with a schedule that ends at its number of tokens"
    if any(stage.get("trunk") for run in runs for stage in run.stages):
        trained = "each at a constant learning rate, with a cooldown branch for every token count (arXiv:2405.18392)"
    shared = (
        f" Trunks of one size differ in the logarithm of the loss with a standard deviation of {noise['between']:.2%} "
        f"({noise['df']} degrees of freedom) and a correlation of {noise['correlation']:.2f} between branches; all "
        "intervals include it."
        if noise
        else ""
    )
    return (
        f"We trained {len([run for run in runs if run.finished])} runs ({hours:.2f} hours in total), "
        f"{trained}, under muP (arXiv:2203.03466). {law['formula']} ({law['source']}) was fitted to {law['n']} points "
        f"({spans}), averaged over seeds, by variable projection with a {goal['kind']} loss in {goal['space']} "
        f"space.{shared} Intervals have a confidence level of {percent(law['level'])} ({intervals_by(law)}). The "
        "allocation exponent was also estimated by approaches 1 and 2 of Hoffmann et al. 2022 (arXiv:2203.15556). "
        "Backtests fit the runs at small compute, predict those at the largest, and compare the error with that of "
        f"two naive predictors. The prediction interval of a new run includes {band_rate(law)}."
    )
