"""The study `forgetting_law`: forgetting as a function of new tokens, pre-training, model size and replay.

Its headline is the replayed fraction that limits forgetting to a tolerated value, or why the runs do not identify it.
The law is fitted to forgetting on a linear scale; on a log scale, values near 0 would dominate the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.claims import decide_together
from kleiber.studies.compare.arms import not_ready
from kleiber.studies.compare.contrast import beside, real_replay, trends
from kleiber.studies.compare.frontier import best_settings
from kleiber.studies.compare.noise import Noise, pooled
from kleiber.studies.compare.rows import PLAIN, REPLAY, Rows, outcomes
from kleiber.studies.designs.design import shortfall
from kleiber.studies.law_report import lines
from kleiber.studies.laws import analysis, prediction, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import depends
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.prediction import decades_outside
from kleiber.studies.laws.uncertainty import interval_ends
from kleiber.studies.study import Figures, Findings, IntervalStudy, PlannedPoint, fine_tunes
from kleiber.types import Json, Natural, Positive
from kleiber.types.score import format_interval

GRID = ["N", "M", "steps", "p"]  # what the runs of a cell share; all tokens ("steps"), since replay changes D a little
GRID_ARM = "grid"  # all runs are one arm of the guards
CENSORED_SD = 3.0
FARTHEST = 2.0  # largest ratio of the critical fraction's upper end to the largest replayed fraction of the runs


@dataclass(frozen=True)
class ForgettingLaw(IntervalStudy):
    """Fits a law of forgetting to a grid of sizes N, pre-training tokens M, new tokens D and replayed fractions p.

    tolerate   tolerated forgetting F in nats; the critical replayed fraction limits F to it
    at         values of N, D and M at which the critical fraction is computed; the default is the largest of the grid
    bootstrap  number of bootstrap resamples
    """

    tolerate: Positive = 0.05
    at: Mapping[str, Positive] | None = None
    bootstrap: Natural = 1000

    def __post_init__(self) -> None:
        unknown = set(self.at or {}) - {"N", "D", "M"}
        if unknown:
            raise ValueError(f"study.at has the unknown keys {', '.join(sorted(unknown))}; its keys may be N, D and M")

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError if the planned fine-tuning runs cannot determine the parameters of the replay law."""
        rows = pd.DataFrame(fine_tunes(points))
        if why := shortfall(find(replay_form(rows)), {name: rows[name].to_numpy() for name in ("N", "M", "D", "p")}):
            raise ValueError(why)
        return []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Fits the law and solves it for the replayed fraction at the tolerated forgetting."""
        record = self.fitted(runs)
        main, why = record["main"], record["main"].get("no_fit")
        return Findings(
            question="How much replay keeps forgetting small?",
            answer=headline(record),
            claims=decide_together(record["claims"], self.level),
            verdicts=[{"code": "no_fit", "level": "refuse", "text": why}] if why else main["verdicts"],
            tables={"Grid of runs": grid_table(record), "Published laws": beside_table(record)},
            figures=figures(record),
            law=None if why else main,
            text=[] if why else lines(main),
            methods=METHODS.format(level=self.level, **record["seed_noise"]) + REPLAY,
        )

    def fitted(self, runs: Sequence[Run]) -> Json:
        """Fits the replay law ("main") and published laws ("beside"), and computes the critical replayed fraction."""
        rows, noise = grid_cells(runs)
        waiting = not_ready(runs, 1, lambda run: GRID_ARM).why
        main = self.fit_or_why(rows, replay_form(rows))
        low = rows["F"] < CENSORED_SD * noise.sd if noise.df else rows["F"] <= 0
        gone = [{"row": int(i), "rule": f"censored: F below {CENSORED_SD:g} SD of seed noise"} for i in rows.index[low]]
        beside = {}
        for name, part, target in (
            ("forgetting", rows[~low], "L"),
            ("transfer", rows[rows["p"] == 0], "target"),
            ("forgetting_power", rows[(rows["p"] == 0) & ~low], "F"),
            ("forgetting_line", rows[rows["p"] == 0], "F"),
        ):
            beside[name] = self.fit_or_why(part, name, target)
            if name in ("forgetting", "forgetting_power") and "no_fit" not in beside[name]:
                beside[name]["excluded"] += gone
        return {
            "main": main, "beside": beside,
            "seed_noise": {"F": noise.sd, "df": noise.df},
            "claims": [replace(entry, problem=waiting) for entry in trends(rows, noise)],
            "critical": self.critical(main, rows), "rows": rows.to_dict("records"), "level": self.level,
        }  # fmt: skip

    def fit_or_why(self, rows: Rows, name: str, target: str = "F") -> Json:
        """Returns the record of the law `name` fitted to the rows; if that fails, its name and the reason `no_fit`."""
        try:
            return self.fit(rows, name, target)
        except ValueError as error:
            return {"law": name, "no_fit": str(error)}

    def fit(self, rows: Rows, name: str, target: str = "F") -> Json:
        """Returns the record of the law `name` fitted to the column `target`; rows of one base form a cluster."""
        law = find(name)
        columns = {role: role for role in law.inputs} | {"L": target}
        named = rows.drop(columns=[c for c in ("C", "L") if c in rows and c != target])
        # Cells of one size and ratio start from the same bases and share their noise. With a law that does not
        # distinguish all cells, clusters would be averaged.
        named = named.assign(bases=[f"{N:g} {M:g}" for N, M in zip(named["N"], named["M"], strict=True)])
        apart = named["bases"].nunique() > 1 and not named.duplicated(list(law.inputs)).any()
        cluster = "bases" if apart else None
        loaded = table.load(named.reset_index(drop=True), columns, (), law.inputs)
        # No backtest over compute, since forgetting does not grow with 6 N D of the new text. No row is a suspect
        # for a loss above that of a smaller run, since its base may have less pre-training.
        options = analysis.Options(
            bootstrap=self.bootstrap, level=self.level, cluster=cluster, find_suspects=False, backtest=()
        )
        record = analysis.analyze(loaded, law, options)
        # Seeds were averaged before; the methods of the study report their noise.
        record["verdicts"] = [verdict for verdict in record["verdicts"] if verdict["code"] != "no_replicates"]
        return record

    def critical(self, main: Json, rows: Rows) -> Json:
        """Returns the least replayed fraction with F <= `tolerate`, its interval, or "why_not" it is identified."""
        law = find(main["law"])
        largest = {name: rows[name].max() for name in ("N", "D", "M")}
        at = {name: float(value) for name, value in (largest | dict(self.at or {})).items()}
        answer: Json = {"tolerate": self.tolerate, "at": at, "value": None, "lo": None, "hi": None}
        answer["seen"] = observed_forgetting(rows, at)
        if "no_fit" in main:
            return answer | {"why_not": main["no_fit"]}
        inputs = {name: np.array([at[name]]) for name in law.inputs if name != "p"}
        best = np.array([[entry["value"] for entry in main["params"].values()]])
        draws, untold = (np.array(main.get(name, ())).reshape(-1, best.shape[1]) for name in ("draws", "untold"))
        answer["value"] = float(critical_fraction(law, inputs, best, self.tolerate)[0])
        answer |= interval_ends(critical_fraction(law, inputs, draws, self.tolerate), self.level)
        # The check uses F, since a share of 0 does not depend on the parameters.
        plain = law.predict({**inputs, "p": np.array([0.0])}, untold)[:, 0]
        away = "the runs do not determine F at this point, since they do not vary N, D and M independently"
        far = float(decades_outside(main["domain"], {name: at[name] for name in inputs}))
        if far > prediction.MAX_DECADES:
            away = f"the point is {far:.1f} decades outside the runs, more than {prediction.MAX_DECADES:g}"
        elif not depends(plain):
            away = None
        return answer | {"why_not": away or why_not_identified(answer, main, float(rows["p"].max()))}


def grid_cells(runs: Sequence[Run]) -> tuple[Rows, Noise]:
    """Returns the cells of the grid and the seed noise of F.

    A cell is the mean over seeds of plain fine-tuning or replay of real text, at the learning rate with the least
    target loss of plain fine-tuning. Raises ValueError without plain fine-tuning, and for a base that is not in `runs`.
    """
    rows: Rows = outcomes(runs)
    rows = real_replay(rows).dropna(subset=["F", "N"])
    if not (rows["method"] == PLAIN).any():
        raise ValueError("no finished run of plain fine-tuning, without a retention method; the law needs such runs")
    rows["M"] = (rows["pretrained"] / rows["N"]).round(1)
    if rows["M"].isna().any():
        gone = sorted(set(rows["base"][rows["M"].isna()]))
        raise ValueError(
            f"the base run {gone[0]} is not among these runs, so its pre-training tokens are unknown: add its folder"
        )
    rows["beside"] = beside(rows, ["N", "M"])
    rows = rows.rename(columns={"replayed": "p", "target_tokens": "D", "tuned": "P"})
    rows["L0"], rows["L"] = rows["start"], rows["start"] + rows["F"]
    rows = at_best_rate(rows)
    noise = pooled([part["F"].to_numpy() for _, part in rows.groupby(GRID)])
    names = ["F", "L", "L0", "target", "D", "P", "peak", "beside"]
    cells = rows.groupby(GRID, as_index=False)[names].mean()
    cells["n"] = rows.groupby(GRID).size().to_numpy()
    return cells.assign(t=cells["steps"].astype(float), Lx=cells["target"]), noise


def at_best_rate(rows: Rows) -> Rows:
    """Returns the rows at the rate with the least target loss of plain runs, one rate for each (N, M, steps)."""
    where = ["N", "M", "beside"]
    best = best_settings(rows[rows["method"] == PLAIN], where, ["lr"], "target")
    return rows.merge(best, on=[*where, "lr"])


def replay_form(rows: Rows) -> str:
    """Returns the name of the smallest replay law that depends on every input that the grid varies."""
    plain = rows[rows["p"] == 0]  # added replay takes more steps without more new text
    varied = {name for name in ("N", "M", "steps") if plain[name].nunique() > 1}
    return "replay_grid_ratio" if "M" in varied else "replay_grid" if varied else "replay_curve"


def critical_fraction(law: Law, inputs: Mapping[str, np.ndarray], values: np.ndarray, tolerate: float) -> np.ndarray:
    """Returns the p >= 0 with F = tolerate for each row of values: ((F(0) + c)/(tolerate + c) - 1)/B, (rows,)."""
    names = list(law.params)
    c, B = values[:, names.index("c")], values[:, names.index("B")]
    plain = law.predict({**inputs, "p": np.array([0.0])}, values)[:, 0]
    return np.maximum(0.0, ((plain + c) / (tolerate + c) - 1) / B)


def observed_forgetting(rows: Rows, at: Mapping[str, float]) -> dict[float, float]:
    """Returns the measured F at the inputs `at`, by replayed fraction; empty if the grid has no such cells."""
    there = rows[np.isclose(rows["N"], at["N"]) & np.isclose(rows["M"], at["M"])]
    steps = there[(there["p"] == 0) & np.isclose(there["D"], at["D"], rtol=0.01)]["steps"]  # which are whole
    cells = there[there["beside"].isin(steps)].sort_values("p")
    return dict(zip(cells["p"].astype(float), cells["F"].astype(float), strict=True))


def why_not_identified(answer: Json, main: Json, most: float) -> str | None:
    """Returns why the replayed fraction for the tolerated forgetting is not identified, or None if it is.

    answer, main, most  its value, lo and hi; the law as in laws.json; the largest fraction that a run replayed
    """
    if answer["lo"] is None or not np.isfinite([answer["lo"], answer["hi"]]).all():
        return "its interval could not be computed"
    if most == 0:
        return "no run used replay"
    if answer["hi"] > FARTHEST * most:
        reach = f"reaches {answer['hi']:.2%}" if answer["hi"] < 1 else "has no upper end"
        return f"its interval {reach}, but no run replayed more than {most:.2%}"
    B = main["params"]["B"]
    return None if B["identified"] else f"B is not identified: {B.get('reason') or 'no interval'}"


def headline(record: Json) -> str:
    """Returns the sentence with the replayed fraction for the tolerated forgetting, or why it is not identified."""
    critical, at = record["critical"], record["critical"]["at"]
    where = f"at N = {at['N']:.3g}, {at['D']:.3g} new tokens and {at['M']:.3g} pre-training tokens per parameter"
    limit = f"forgetting to {critical['tolerate']:g} nats {where}"
    if critical["why_not"]:
        there = ", ".join(f"{F:.3f} nats at {100 * p:.3g}% replay" for p, F in critical["seen"].items())
        measured = f"; measured forgetting: {there}" if there else ""
        return f"The replayed fraction that limits {limit} is not identified: {critical['why_not']}{measured}."
    if critical["hi"] == 0:
        return f"No replay is needed to limit {limit}."
    ends = f"{record['level']:.0%} interval {format_interval(critical['lo'], critical['hi'], '.1%')}"
    return f"Replaying {critical['value']:.1%} of the tokens, {ends}, limits {limit}."


def figures(record: Json) -> Figures:
    """Returns the figures of the study; without a fitted law only forgetting vs new tokens."""
    from kleiber.studies.compare import figures as drawing

    rows = drawing.named_cells(record)
    if "no_fit" in record["main"]:
        return {"tokens": lambda: drawing.tokens(rows)}
    return {
        "replay": lambda: drawing.replay(rows, record),
        "tokens": lambda: drawing.tokens(rows),
        "fit": lambda: drawing.observed(rows, record),
    }


def grid_table(record: Json) -> list[Json]:
    """Returns a table row for each cell of the grid."""
    return [
        {
            "N": cell["N"], "tokens per parameter": cell["M"], "new tokens": cell["D"], "replayed": cell["p"],
            "seeds": cell["n"], "F": cell["F"], "peak F": cell["peak"], "target loss": cell["target"],
        }
        for cell in record["rows"]
    ]  # fmt: skip


def beside_table(record: Json) -> list[Json]:
    """Returns a table row for each published law fitted to the same runs, or why it could not be fitted."""
    rows = []
    for name, fit in record["beside"].items():
        if "no_fit" in fit:
            rows.append({"law": name, "formula": find(name).formula, "parameters": fit["no_fit"]})
            continue
        parameters = [
            f"{key} {value['value']:.3g}" + ("" if value["identified"] else " (not identified)")
            for key, value in fit["params"].items()
        ]
        rows.append({
            "law": name, "formula": fit["formula"], "rows": fit["n"], "residual rms": fit["residual_rms"],
            "parameters": ", ".join(parameters), "source": fit["source"],
        })  # fmt: skip
    return rows


METHODS = (
    "Fine-tuning runs started from the base run with the same seed. Forgetting F is the increase of the mean "
    "held-out loss on the earlier data. A cell is the mean over seeds at equal model size N, pre-training tokens per "
    "parameter M, new tokens D and replayed fraction p, at the learning rate with the least target loss without "
    "replay. The law was fitted to F by least squares on a linear scale, since noise can make F negative. Laws that "
    "allow only F > 0 were fitted without the cells in which F is below three standard deviations of the seed noise "
    "(standard deviation {F:.2g} nats, {df} degrees of freedom). The critical replayed fraction is the p at which the "
    "fitted law equals the tolerated forgetting. Its {level:.0%} interval comes from a bootstrap in which cells with "
    "the same base runs have correlated noise. No value is reported if the interval exceeds twice the largest "
    "replayed fraction of the runs."
)
