"""The study `forgetting_law`: how forgetting grows with new text and pre-training and falls with size and replay.

Its first line answers how much must be replayed for a tolerated forgetting, with an interval, or says that the runs do
not identify it. It refuses to take logarithms of forgetting: what is within noise of 0 would decide the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.catalog import Run, counts
from kleiber.studies import analysis, outcomes, table
from kleiber.studies import record as records
from kleiber.studies.bootstrap import interval
from kleiber.studies.forgetting import Forgetting
from kleiber.studies.frontier import Noise, pooled
from kleiber.studies.law import find
from kleiber.studies.outcomes import PLAIN
from kleiber.summary import write_json

GRID = ["N", "M", "steps", "p"]  # of one cell; steps stand for D, which replay makes a little smaller
CENSORED_SD = 3.0
FARTHEST = 2.0  # a critical share beyond so many times the largest one that was tried is not told


@dataclass(frozen=True)
class ForgettingLaw:
    """What to fit to a grid of sizes, pre-training ratios, new tokens and replayed shares.

    tolerate   forgetting in nats for which the critical share is asked
    at         where: {N, D, M}; what is not given is the largest of the grid
    bootstrap  resamples
    level      of the intervals
    max_cells, seeds  of the sweep (read by the sweeper)
    """

    tolerate: float = 0.05
    at: Mapping[str, float] | None = None
    bootstrap: int = 1000
    level: float = 0.9
    max_cells: int | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        if self.tolerate <= 0:
            raise ValueError(f"study.tolerate={self.tolerate}: write the nats of forgetting that you accept, above 0")
        unknown = set(self.at or {}) - {"N", "D", "M"}
        if unknown:
            raise ValueError(f"study.at: {', '.join(sorted(unknown))} is none of N, D, M")
        Forgetting(level=self.level, max_cells=self.max_cells, seeds=self.seeds)

    def analyse(self, runs: Sequence[Run]) -> dict[str, Any]:
        """The replay law (main), the published laws beside it, and the critical share."""
        rows, noise = grid(runs)
        main = self.fit(rows, replay_form(rows))
        low = rows["F"] < CENSORED_SD * noise.sd if noise.df else rows["F"] <= 0
        gone = [{"row": int(i), "rule": f"censored: F below {CENSORED_SD:g} seed sd"} for i in rows.index[low]]
        beside = {}
        for name, part, target in (
            ("forgetting", rows[~low], "L"),
            ("transfer", rows[rows["p"] == 0], "target"),
            ("forgetting_power", rows[(rows["p"] == 0) & ~low], "F"),
            ("forgetting_line", rows[rows["p"] == 0], "F"),
        ):
            try:
                beside[name] = self.fit(pd.DataFrame(part), name, target)
                beside[name]["excluded"] += gone if name in ("forgetting", "forgetting_power") else []
            except ValueError as error:
                beside[name] = {"law": name, "refused": str(error)}
        return {
            "schema": "kleiber.forgetting_law/1", "main": main, "beside": beside,
            "seed_noise": {"F": noise.sd, "df": noise.df},
            "critical": self.critical(main, rows), "rows": rows.to_dict("records"), "level": self.level,
        }  # fmt: skip

    def fit(self, rows: pd.DataFrame, name: str, target: str = "F") -> dict[str, Any]:
        law = find(name)
        columns = {role: role for role in law.inputs} | {"L": target}
        named = rows.drop(columns=[c for c in ("C", "L") if c in rows and c != target])
        loaded = table.load(named.reset_index(drop=True), columns, (), law.inputs)
        # No backtest over compute: 6 N D of the new text is not what forgetting grows with.
        options = analysis.Options(bootstrap=self.bootstrap, level=self.level, exclude=("diverged",), backtest=())
        return analysis.analyse(loaded, law, options)

    def critical(self, main: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
        """The least replayed share that keeps F at `tolerate`, with the percentiles of the draws."""
        law = find(main["law"])
        at = {name: float((self.at or {}).get(name, rows[name].max())) for name in ("N", "D", "M")}
        inputs = {name: np.array([at[name]]) for name in law.inputs if name != "p"}
        best = np.array([[entry["value"] for entry in main["params"].values()]])
        draws = np.array(main["draws"]).reshape(-1, best.shape[1])
        shares, most = share(law, inputs, draws, self.tolerate), float(rows["p"].max())
        value = float(share(law, inputs, best, self.tolerate)[0])
        told: dict[str, Any] = {"tolerate": self.tolerate, "at": at, "value": value, "lo": None, "hi": None}
        if len(shares):
            lo, hi = interval(shares, self.level)
            told |= {"lo": float(lo), "hi": float(hi)}
        return told | {"why_not": doubt(told, main, most)}

    def report(self, folder: Path, runs: Sequence[Run], out: Path | None = None) -> dict[str, Any]:
        """Writes laws.json (the replay law), forgetting.json, findings.json, figures and the page."""
        from kleiber.studies import forgetting_law_page, forgetting_page

        record = records.finite(self.analyse(runs))
        records.write(record["main"], folder / "laws.json")
        write_json(folder / "forgetting.json", {k: v for k, v in record.items() if k != "main"})
        found = findings(folder, runs, record)
        charts = forgetting_law_page.figures(record)
        forgetting_page.save(folder, charts)
        write_json(folder / "findings.json", found)
        (out or folder / "report.html").write_text(forgetting_law_page.page(found, record, charts))
        return found


def grid(runs: Sequence[Run]) -> tuple[pd.DataFrame, Noise]:
    """A row a cell of the grid, seeds averaged, at the learning rate that learns best without replay; and seed noise.

    Only plain fine-tuning and replay of real text are in the grid. Errors: ValueError without them.
    """
    rows = outcomes.outcomes(runs)
    kept = rows["method"].isin([PLAIN, "replay"]) & ~rows["setting"].str.contains("generated")
    rows = pd.DataFrame(rows[kept]).dropna(subset=["F", "N"])
    if not (rows["method"] == PLAIN).any():
        raise ValueError("no plain fine-tuning among the finished runs: there is no F without replay to begin from")
    rows = rows.rename(columns={"replayed": "p", "target_tokens": "D", "tuned": "P"})
    rows["M"] = (rows["pretrained"] / rows["N"]).round(1)
    rows["L0"], rows["L"] = rows["start"], rows["start"] + rows["F"]
    rows = at_best_rate(rows)
    noise = pooled([one["F"].to_numpy() for _, one in rows.groupby(GRID)])
    names = ["F", "L", "L0", "target", "D", "P", "peak"]
    found = rows.groupby(GRID, as_index=False)[names].mean()
    found["n"] = rows.groupby(GRID).size().to_numpy()
    return found.assign(t=found["steps"].astype(float), Lx=found["target"]), noise


def at_best_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows at the learning rate whose plain runs have the least target loss, one rate for each (N, M, steps)."""
    where = ["N", "M", "steps"]
    means = rows[rows["method"] == PLAIN].groupby([*where, "lr"], as_index=False)["target"].mean()
    best = means.loc[means.groupby(where)["target"].idxmin(), [*where, "lr"]]
    return rows.merge(best, on=[*where, "lr"])


def replay_form(rows: pd.DataFrame) -> str:
    """The fullest law of replay whose inputs the grid varies."""
    varied = {name for name in ("N", "M", "steps") if rows[name].nunique() > 1}
    if varied == {"N", "M", "steps"}:
        return "replay_grid_ratio"
    return "replay_grid" if {"N", "steps"} <= varied else "replay_curve"


def share(law: Any, inputs: Mapping[str, np.ndarray], values: np.ndarray, tolerate: float) -> np.ndarray:
    """p at which F = tolerate, by the law's own form: ((F(0) + c)/(tolerate + c) - 1)/B, at least 0."""
    names = list(law.params)
    c, B = values[:, names.index("c")], values[:, names.index("B")]
    plain = law.predict({**inputs, "p": np.array([0.0])}, values)[:, 0]
    return np.maximum(0.0, ((plain + c) / (tolerate + c) - 1) / B)


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
        return f"{asked}: not identified ({one['why_not']})."
    if one["hi"] == 0:
        return f"{asked}: none."
    return f"{asked}: {one['value']:.1%} of the tokens, {record['level']:.0%} [{one['lo']:.1%}, {one['hi']:.1%}]."


def findings(folder: Path, runs: Sequence[Run], record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": "kleiber.findings/1", "study": folder.name, "headline": headline(record), "runs": counts(runs),
        "missing": [f"{run.name} ({run.status})" for run in runs if run.status != "finished"],
        "seconds": sum(run.summary.get("seconds") or 0 for run in runs), "verdicts": record["main"]["verdicts"],
        "laws": "laws.json",
    }  # fmt: skip
