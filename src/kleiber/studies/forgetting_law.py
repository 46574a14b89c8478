"""The study `forgetting_law`: how forgetting grows with new text and pre-training and falls with size and replay.

Its first line answers how much must be replayed for a tolerated forgetting, with an interval, or says that the runs do
not identify it. It refuses to take logarithms of forgetting: what is within noise of 0 would decide the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare import rows as outcomes
from kleiber.studies.compare.contrast import trends
from kleiber.studies.compare.frontier import Noise, pooled
from kleiber.studies.compare.rows import PLAIN
from kleiber.studies.designs.sizes import PlannedPoint, fine_tunes, shortfall
from kleiber.studies.laws import analysis, prediction, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import depends
from kleiber.studies.laws.prediction import outside
from kleiber.studies.laws.uncertainty import interval
from kleiber.studies.study import Findings, Options, check_level

GRID = ["N", "M", "steps", "p"]  # of one cell; steps stand for D, which replay makes a little smaller
CENSORED_SD = 3.0
FARTHEST = 2.0  # a critical share beyond so many times the largest one that was tried is not told


@dataclass(frozen=True)
class ForgettingLaw(Options):
    """What to fit to a grid of sizes, pre-training ratios, new tokens and replayed shares.

    tolerate   forgetting in nats for which the critical share is asked
    at         where: {N, D, M}; what is not given is the largest of the grid
    bootstrap  resamples
    level      of the intervals
    """

    tolerate: float = 0.05
    at: Mapping[str, float] | None = None
    bootstrap: int = 1000
    level: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerate <= 0:
            raise ValueError(f"study.tolerate={self.tolerate}: write the nats of forgetting that you accept, above 0")
        unknown = set(self.at or {}) - {"N", "D", "M"}
        if unknown:
            raise ValueError(f"study.at: {', '.join(sorted(unknown))} is none of N, D, M")
        check_level(self.level)

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError where the fine-tunes do not determine the law of replay that their grid asks for."""
        rows = pd.DataFrame(fine_tunes(points))
        if why := shortfall(find(replay_form(rows)), {name: rows[name].to_numpy() for name in ("N", "M", "D", "p")}):
            raise ValueError(why)
        return []

    def analyse(self, runs: Sequence[Run]) -> Findings:
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
            text=[] if why else printed(main),
            methods=METHODS.format(level=self.level, **record["seed_noise"]) + outcomes.REPLAY,
        )

    def fitted(self, runs: Sequence[Run]) -> dict[str, Any]:
        """The replay law (main), the published laws beside it, and the critical share."""
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
            "claims": [one.verdict() for one in trends(rows, noise, self.level)],
            "critical": self.critical(main, rows), "rows": rows.to_dict("records"), "level": self.level,
        }  # fmt: skip

    def fit_or_why(self, rows: Any, name: str, target: str = "F") -> dict[str, Any]:
        """The record of a law; of one that these rows cannot carry, its name and `no_fit`, the reason."""
        try:
            return self.fit(rows, name, target)
        except ValueError as error:
            return {"law": name, "no_fit": str(error)}

    def fit(self, rows: Any, name: str, target: str = "F") -> dict[str, Any]:
        law = find(name)
        columns = {role: role for role in law.inputs} | {"L": target}
        named = rows.drop(columns=[c for c in ("C", "L") if c in rows and c != target])
        # Cells of one size and ratio go on from the same bases, whose noise they share. A law that does not tell all
        # cells apart would have them averaged.
        named = named.assign(bases=[f"{N:g} {M:g}" for N, M in zip(named["N"], named["M"], strict=True)])
        apart = named["bases"].nunique() > 1 and not named.duplicated(list(law.inputs)).any()
        cluster = "bases" if apart else None
        loaded = table.load(named.reset_index(drop=True), columns, (), law.inputs)
        # No backtest over compute: 6 N D of the new text is not what forgetting grows with. No row is a
        # suspect for a loss above that of a smaller run: it may go on from a base of less pre-training.
        options = analysis.Options(
            bootstrap=self.bootstrap, level=self.level, cluster=cluster, find_suspects=False, backtest=()
        )
        record = analysis.analyse(loaded, law, options)
        # Seeds were averaged before: what the study says of their noise is in its methods.
        record["verdicts"] = [one for one in record["verdicts"] if one["code"] != "no_replicates"]
        return record

    def critical(self, main: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        """The least replayed share that keeps F at `tolerate`, with the percentiles of the draws."""
        law = find(main["law"])
        largest = {name: rows[name].max() for name in ("N", "D", "M")}
        at = {name: float(value) for name, value in (largest | dict(self.at or {})).items()}
        told: dict[str, Any] = {"tolerate": self.tolerate, "at": at, "value": None, "lo": None, "hi": None}
        told["seen"] = seen(rows, at)
        if "no_fit" in main:
            return told | {"why_not": main["no_fit"]}
        inputs = {name: np.array([at[name]]) for name in law.inputs if name != "p"}
        best = np.array([[entry["value"] for entry in main["params"].values()]])
        draws, untold = (np.array(main.get(name, ())).reshape(-1, best.shape[1]) for name in ("draws", "untold"))
        told["value"] = float(share(law, inputs, best, self.tolerate)[0])
        if len(draws):
            lo, hi = interval(share(law, inputs, draws, self.tolerate), self.level)
            told |= {"lo": float(lo), "hi": float(hi)}
        # F itself is asked, since a share of 0 would depend on nothing.
        plain = law.predict({**inputs, "p": np.array([0.0])}, untold)[:, 0]
        away = "the runs do not tell F there, since what differs was not varied on its own"
        far = float(outside(main["domain"], {name: at[name] for name in inputs}))
        if far > prediction.MAX_DECADES:
            away = f"{far:.1f} decades beyond the runs, more than {prediction.MAX_DECADES:g}"
        elif not depends(plain):
            away = None
        return told | {"why_not": away or doubt(told, main, float(rows["p"].max()))}


def grid(runs: Sequence[Run]) -> tuple[Any, Noise]:
    """A row a cell of the grid, seeds averaged, at the learning rate that learns best without replay; and seed noise.

    Only plain fine-tuning and replay of real text are in the grid. Errors: ValueError without them.
    """
    rows: Any = outcomes.outcomes(runs)
    rows = outcomes.real_replay(rows).dropna(subset=["F", "N"])
    if not (rows["method"] == PLAIN).any():
        raise ValueError("no plain fine-tuning among the finished runs: there is no F without replay to begin from")
    rows["M"] = (rows["pretrained"] / rows["N"]).round(1)
    if rows["M"].isna().any():
        gone = sorted(set(rows["base"][rows["M"].isna()]))
        raise ValueError(f"{gone[0]}: not among these runs, so how long that base was trained is unknown: read both")
    rows["beside"] = outcomes.beside(rows, ["N", "M"])
    rows = rows.rename(columns={"replayed": "p", "target_tokens": "D", "tuned": "P"})
    rows["L0"], rows["L"] = rows["start"], rows["start"] + rows["F"]
    rows = at_best_rate(rows)
    noise = pooled([one["F"].to_numpy() for _, one in rows.groupby(GRID)])
    names = ["F", "L", "L0", "target", "D", "P", "peak", "beside"]
    found = rows.groupby(GRID, as_index=False)[names].mean()
    found["n"] = rows.groupby(GRID).size().to_numpy()
    return found.assign(t=found["steps"].astype(float), Lx=found["target"]), noise


def at_best_rate(rows: Any) -> Any:
    """The rows at the learning rate whose plain runs have the least target loss, one rate for each (N, M, steps)."""
    where = ["N", "M", "beside"]
    means = rows[rows["method"] == PLAIN].groupby([*where, "lr"], as_index=False)["target"].mean()
    best = means.loc[means.groupby(where)["target"].idxmin(), [*where, "lr"]]
    return rows.merge(best, on=[*where, "lr"])


def replay_form(rows: Any) -> str:
    """The smallest law of replay that has all inputs which the grid varies; one that it does not vary is untold."""
    plain = rows[rows["p"] == 0]  # replay that comes on top takes steps of its own, and reads no more new text
    varied = {name for name in ("N", "M", "steps") if plain[name].nunique() > 1}
    return "replay_grid_ratio" if "M" in varied else "replay_grid" if varied else "replay_curve"


def share(law: Any, inputs: Mapping[str, np.ndarray], values: np.ndarray, tolerate: float) -> np.ndarray:
    """p at which F = tolerate, by the law's own form: ((F(0) + c)/(tolerate + c) - 1)/B, at least 0."""
    names = list(law.params)
    c, B = values[:, names.index("c")], values[:, names.index("B")]
    plain = law.predict({**inputs, "p": np.array([0.0])}, values)[:, 0]
    return np.maximum(0.0, ((plain + c) / (tolerate + c) - 1) / B)


def seen(rows: Any, at: Mapping[str, float]) -> dict[float, float]:
    """F by replayed share in the cells where the critical share is asked, if the grid has them."""
    there = rows[np.isclose(rows["N"], at["N"]) & np.isclose(rows["M"], at["M"])]
    steps = there[(there["p"] == 0) & np.isclose(there["D"], at["D"], rtol=0.01)]["steps"]  # which are whole
    found = there[there["beside"].isin(steps)].sort_values("p")
    return dict(zip(found["p"].astype(float), found["F"].astype(float), strict=True))


def doubt(told: Mapping[str, Any], main: Mapping[str, Any], most: float) -> str | None:
    """Why the critical share is not identified, or None."""
    if told["lo"] is None or not np.isfinite([told["lo"], told["hi"]]).all():
        return "no interval could be computed"
    if most == 0:
        return "nothing was replayed in these runs"
    if told["hi"] > FARTHEST * most:
        reach = f"reaches {told['hi']:.2%}" if told["hi"] < 1 else "has no upper end"
        return f"the interval {reach}, and no more than {most:.2%} was tried"
    B = main["params"]["B"]
    return None if B["identified"] else f"B is not identified: {B.get('reason') or 'no interval'}"


def headline(record: Mapping[str, Any]) -> str:
    """How much replay do I need?"""
    one, at = record["critical"], record["critical"]["at"]
    where = f"at N = {at['N']:.3g}, {at['D']:.3g} new tokens and {at['M']:.3g} pre-training tokens per parameter"
    asked = f"Replay needed for at most {one['tolerate']:g} nats of forgetting, {where}"
    if one["why_not"]:
        there = ", ".join(f"{F:.3f} at {100 * p:.3g}%" for p, F in one["seen"].items())
        return f"{asked}: not identified ({one['why_not']}){f'; the runs there forget {there}' if there else ''}."
    if one["hi"] == 0:
        return f"{asked}: none."
    return f"{asked}: {one['value']:.1%} of the tokens, {record['level']:.0%} [{one['lo']:.1%}, {one['hi']:.1%}]."


def figures(record: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    from kleiber.studies import forgetting_figures as plots

    rows = plots.named(record)
    if "no_fit" in record["main"]:
        return {"tokens": lambda: plots.tokens(rows)}
    return {
        "replay": lambda: plots.replay(rows, record),
        "tokens": lambda: plots.tokens(rows),
        "fit": lambda: plots.observed(rows, record),
    }


def grid_table(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "N": one["N"], "tokens per parameter": one["M"], "new tokens": one["D"], "replayed": one["p"],
            "seeds": one["n"], "F": one["F"], "peak F": one["peak"], "target loss": one["target"],
        }
        for one in record["rows"]
    ]  # fmt: skip


def beside_table(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The published forms on the same runs, in short; what could not be fitted says why."""
    rows = []
    for name, one in record["beside"].items():
        if "no_fit" in one:
            rows.append({"law": name, "formula": find(name).formula, "parameters": one["no_fit"]})
            continue
        told = [
            f"{key} {value['value']:.3g}" + ("" if value["identified"] else " (not identified)")
            for key, value in one["params"].items()
        ]
        rows.append({
            "law": name, "formula": one["formula"], "rows": one["n"], "residual rms": one["residual_rms"],
            "parameters": ", ".join(told), "source": one["source"],
        })  # fmt: skip
    return rows


def printed(law: Mapping[str, Any]) -> list[str]:
    from kleiber.studies.laws.laws_json import lines

    return lines(law)


METHODS = (
    "Every run went on from a base of its seed; F is the rise of the earlier tasks' mean held-out loss. Seeds were "
    "averaged into cells of equal N, pre-training tokens per parameter M, new tokens D and replayed share p, at the "
    "learning rate that learned best without replay. The law was fitted to F itself by least squares, since F may be "
    "within noise of 0 or below it; laws that cannot be there were fitted without the cells below three seed standard "
    "deviations ({F:.2g} nats, {df} degrees of freedom). The critical share solves the fitted law for p, its "
    "{level:.0%} interval is that of the bootstrap, whose noise is correlated among cells of the same "
    "bases, and it is not told where it leaves the shares that were tried by more than a factor of two."
)
