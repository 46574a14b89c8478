"""The study `forgetting_law`: forgetting as a function of new tokens, pre-training, model size and replay.

The headline is the replayed share that keeps forgetting at a tolerated value, with an interval, or why the runs do not
identify it. The law is fitted to forgetting itself and not to its logarithm, which values near 0 would dominate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.contrast import trends
from kleiber.studies.compare.frontier import Noise, pooled
from kleiber.studies.compare.rows import PLAIN, REPLAY, Rows, beside, outcomes, real_replay
from kleiber.studies.designs.sizes import PlannedPoint, fine_tunes, shortfall
from kleiber.studies.laws import analysis, prediction, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import depends
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.laws_json import lines
from kleiber.studies.laws.prediction import outside
from kleiber.studies.laws.uncertainty import interval
from kleiber.studies.study import Figures, Findings, Study, check_level
from kleiber.types import Json

GRID = ["N", "M", "steps", "p"]  # of one cell; steps stand for D, which replay makes a little smaller
CENSORED_SD = 3.0
FARTHEST = 2.0  # most ratio of a critical share to the largest share that was tried


@dataclass(frozen=True)
class ForgettingLaw(Study):
    """A law fitted to a grid of sizes N, pre-training ratios M, new tokens D and replayed shares.

    tolerate   forgetting in nats at which the critical share is solved
    at         values of N, D and M for the critical share; without a value the largest of the grid
    bootstrap  number of resamples
    level      confidence level of the intervals
    """

    tolerate: float = 0.05
    at: Mapping[str, float] | None = None
    bootstrap: int = 1000
    level: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerate <= 0:
            raise ValueError(f"study.tolerate={self.tolerate}, the accepted forgetting in nats, must be > 0")
        unknown = set(self.at or {}) - {"N", "D", "M"}
        if unknown:
            raise ValueError(f"study.at: {', '.join(sorted(unknown))} must be one of N, D, M")
        check_level(self.level)

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError where the fine-tunes do not determine the law of replay that their grid asks for."""
        rows = pd.DataFrame(fine_tunes(points))
        if why := shortfall(find(replay_form(rows)), {name: rows[name].to_numpy() for name in ("N", "M", "D", "p")}):
            raise ValueError(why)
        return []

    def analyse(self, runs: Sequence[Run]) -> Findings:
        """Fits the law and solves it for the replayed share at the tolerated forgetting."""
        record = self.fitted(runs)
        main, why = record["main"], record["main"].get("no_fit")
        return Findings(
            headline=headline(record),
            verdicts=[
                *([{"code": "no_fit", "level": "refuse", "text": why}] if why else main["verdicts"]),
                *record["claims"],
            ],
            tables={"The grid": grid_table(record), "Published laws": beside_table(record)},
            figures=figures(record),
            law=None if why else main,
            text=[] if why else lines(main),
            methods=METHODS.format(level=self.level, **record["seed_noise"]) + REPLAY,
        )

    def fitted(self, runs: Sequence[Run]) -> Json:
        """The fitted laws and what follows: the replay law ("main"), published laws ("beside"), the critical share."""
        rows, noise = grid(runs)
        main = self.fit_or_why(rows, replay_form(rows))
        low = rows["F"] < CENSORED_SD * noise.sd if noise.df else rows["F"] <= 0
        gone = [{"row": int(i), "rule": f"censored: F below {CENSORED_SD:g} seed sd"} for i in rows.index[low]]
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
            "claims": [claim.verdict() for claim in trends(rows, noise, self.level)],
            "critical": self.critical(main, rows), "rows": rows.to_dict("records"), "level": self.level,
        }  # fmt: skip

    def fit_or_why(self, rows: Rows, name: str, target: str = "F") -> Json:
        """The record of the law `name` fitted to the rows; where that fails, its name and the reason as `no_fit`."""
        try:
            return self.fit(rows, name, target)
        except ValueError as error:
            return {"law": name, "no_fit": str(error)}

    def fit(self, rows: Rows, name: str, target: str = "F") -> Json:
        """The record of the law `name` fitted to the column `target`, clustered by base."""
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
        record = analysis.analyse(loaded, law, options)
        # Seeds were averaged before; the methods of the study report their noise.
        record["verdicts"] = [verdict for verdict in record["verdicts"] if verdict["code"] != "no_replicates"]
        return record

    def critical(self, main: Json, rows: Rows) -> Json:
        """The least replayed share with F <= `tolerate` and its bootstrap interval, or "why_not" there is none."""
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
        answer["value"] = float(share(law, inputs, best, self.tolerate)[0])
        if len(draws):
            lo, hi = interval(share(law, inputs, draws, self.tolerate), self.level)
            answer |= {"lo": float(lo), "hi": float(hi)}
        # The check uses F, since a share of 0 does not depend on the parameters.
        plain = law.predict({**inputs, "p": np.array([0.0])}, untold)[:, 0]
        away = "the runs do not determine F there, since the inputs were not varied independently"
        far = float(outside(main["domain"], {name: at[name] for name in inputs}))
        if far > prediction.MAX_DECADES:
            away = f"it is {far:.1f} decades beyond the runs, more than {prediction.MAX_DECADES:g}"
        elif not depends(plain):
            away = None
        return answer | {"why_not": away or doubt(answer, main, float(rows["p"].max()))}


def grid(runs: Sequence[Run]) -> tuple[Rows, Noise]:
    """The cells of the grid and the seed noise of F.

    A row for each cell of plain fine-tuning or replay of real text: means over seeds at the learning rate with the
    least target loss without replay. Raises ValueError without plain fine-tuning, and for an unknown base.
    """
    rows: Rows = outcomes(runs)
    rows = real_replay(rows).dropna(subset=["F", "N"])
    if not (rows["method"] == PLAIN).any():
        raise ValueError("no finished run of plain fine-tuning: the law needs forgetting without replay")
    rows["M"] = (rows["pretrained"] / rows["N"]).round(1)
    if rows["M"].isna().any():
        gone = sorted(set(rows["base"][rows["M"].isna()]))
        raise ValueError(
            f"the base {gone[0]} is not among these runs, so its training tokens are unknown: add its folder"
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
    """The rows at the learning rate with the least target loss of plain runs, one rate for each (N, M, steps)."""
    where = ["N", "M", "beside"]
    means = rows[rows["method"] == PLAIN].groupby([*where, "lr"], as_index=False)["target"].mean()
    best = means.loc[means.groupby(where)["target"].idxmin(), [*where, "lr"]]
    return rows.merge(best, on=[*where, "lr"])


def replay_form(rows: Rows) -> str:
    """The name of the smallest law of replay that has all inputs which the grid varies."""
    plain = rows[rows["p"] == 0]  # added replay takes more steps without more new text
    varied = {name for name in ("N", "M", "steps") if plain[name].nunique() > 1}
    return "replay_grid_ratio" if "M" in varied else "replay_grid" if varied else "replay_curve"


def share(law: Law, inputs: Mapping[str, np.ndarray], values: np.ndarray, tolerate: float) -> np.ndarray:
    """The replayed share p at which F = tolerate, >= 0: ((F(0) + c)/(tolerate + c) - 1)/B for each row of `values`."""
    names = list(law.params)
    c, B = values[:, names.index("c")], values[:, names.index("B")]
    plain = law.predict({**inputs, "p": np.array([0.0])}, values)[:, 0]
    return np.maximum(0.0, ((plain + c) / (tolerate + c) - 1) / B)


def observed_forgetting(rows: Rows, at: Mapping[str, float]) -> dict[float, float]:
    """F by replayed share in the cells at the inputs `at`; empty where the grid has no such cells."""
    there = rows[np.isclose(rows["N"], at["N"]) & np.isclose(rows["M"], at["M"])]
    steps = there[(there["p"] == 0) & np.isclose(there["D"], at["D"], rtol=0.01)]["steps"]  # which are whole
    cells = there[there["beside"].isin(steps)].sort_values("p")
    return dict(zip(cells["p"].astype(float), cells["F"].astype(float), strict=True))


def doubt(answer: Json, main: Json, most: float) -> str | None:
    """Why the critical share is not identified, or None."""
    if answer["lo"] is None or not np.isfinite([answer["lo"], answer["hi"]]).all():
        return "no interval could be computed"
    if most == 0:
        return "no run replayed anything"
    if answer["hi"] > FARTHEST * most:
        reach = f"reaches {answer['hi']:.2%}" if answer["hi"] < 1 else "has no upper end"
        return f"the interval {reach}, and the largest share tried is {most:.2%}"
    B = main["params"]["B"]
    return None if B["identified"] else f"B is not identified: {B.get('reason') or 'no interval'}"


def headline(record: Json) -> str:
    """The sentence with the replayed share for the tolerated forgetting, or why it is not identified."""
    critical, at = record["critical"], record["critical"]["at"]
    where = f"at N = {at['N']:.3g}, {at['D']:.3g} new tokens and {at['M']:.3g} pre-training tokens per parameter"
    asked = f"Replay needed for at most {critical['tolerate']:g} nats of forgetting, {where}"
    if critical["why_not"]:
        there = ", ".join(f"{F:.3f} at {100 * p:.3g}%" for p, F in critical["seen"].items())
        return f"{asked}: not identified ({critical['why_not']}){f'; measured forgetting {there}' if there else ''}."
    if critical["hi"] == 0:
        return f"{asked}: none."
    ends = f"{record['level']:.0%} [{critical['lo']:.1%}, {critical['hi']:.1%}]"
    return f"{asked}: {critical['value']:.1%} of the tokens, {ends}."


def figures(record: Json) -> Figures:
    """The figures of the study; without a fit that of forgetting vs new tokens only."""
    from kleiber.studies import forgetting_figures

    rows = forgetting_figures.named(record)
    if "no_fit" in record["main"]:
        return {"tokens": lambda: forgetting_figures.tokens(rows)}
    return {
        "replay": lambda: forgetting_figures.replay(rows, record),
        "tokens": lambda: forgetting_figures.tokens(rows),
        "fit": lambda: forgetting_figures.observed(rows, record),
    }


def grid_table(record: Json) -> list[Json]:
    """A row for each cell of the grid."""
    return [
        {
            "N": cell["N"], "tokens per parameter": cell["M"], "new tokens": cell["D"], "replayed": cell["p"],
            "seeds": cell["n"], "F": cell["F"], "peak F": cell["peak"], "target loss": cell["target"],
        }
        for cell in record["rows"]
    ]  # fmt: skip


def beside_table(record: Json) -> list[Json]:
    """The published laws fitted to the same runs, or why a law could not be fitted."""
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
    "Every run went on from a base of its seed; F is the rise of the earlier tasks' mean held-out loss. Seeds were "
    "averaged into cells of equal N, pre-training tokens per parameter M, new tokens D and replayed share p, at the "
    "learning rate that learned best without replay. The law was fitted to F itself by least squares, since F may be "
    "within noise of 0 or below it; laws that cannot be there were fitted without the cells below three seed standard "
    "deviations ({F:.2g} nats, {df} degrees of freedom). The critical share solves the fitted law for p, its "
    "{level:.0%} interval is that of the bootstrap, whose noise is correlated among cells of the same "
    "bases, and it is not told where it leaves the shares that were tried by more than a factor of two."
)
