"""The study `scaling`: from the runs of a ladder to one law, its backtests and verdicts, with and without the least D.

It reads what runs wrote and refuses to rank a run that did not finish. Branches of one trunk are one sample of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from kleiber.budget import quantity
from kleiber.catalog import Run, frame
from kleiber.studies import analysis, table
from kleiber.studies.law import find

SIZES = {"active": "active", "total": "params", "non_embedding": "non_embedding"}


@dataclass(frozen=True)
class Scaling:
    """What to fit to a ladder.

    law         a shipped law of N and D
    min_tokens  the least D that enters the headline; below lies the transient of small runs
    size        which parameters are N: active (those of the head included), total or non_embedding
    bootstrap   resamples
    predict     points to extrapolate to, such as {N: 1e6, D: 3e7}
    """

    law: str = "chinchilla"
    min_tokens: int | float | str = "2M"
    size: str = "active"
    bootstrap: int = 1000
    predict: Sequence[dict[str, float]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if set(find(self.law).inputs) != {"N", "D"}:
            raise ValueError(f"study.law={self.law} is no law of N and D, such as chinchilla")
        if self.size not in SIZES:
            raise ValueError(f"study.size={self.size}: one of {', '.join(SIZES)}")
        quantity(self.min_tokens)

    def analyse(self, runs: Sequence[Run]) -> dict:
        """laws.json of the rows with D >= min_tokens, and beside it ("all") the fit of every row."""
        rows = points(runs)
        late = at_least(rows, quantity(self.min_tokens))
        if not len(late):
            most = max(rows["tokens"].tolist())
            raise ValueError(
                f"study.min_tokens={self.min_tokens} leaves no row: the longest run here has {most:,.0f} tokens"
            )
        record = self.fit(late)
        record["excluded"] = [*record["excluded"], *left_out(runs)]
        if len(late) < len(rows):
            record["from_least_tokens"] = [
                {"min_tokens": float(least), "params": found["params"], "derived": found["derived"], "n": found["n"]}
                for least in sorted(rows["tokens"].unique())[:3]
                if (found := self.fit(at_least(rows, least), bootstrap=200))
            ]
        return record

    def fit(self, rows: pd.DataFrame, bootstrap: int | None = None) -> dict:
        roles = {"N": SIZES[self.size], "D": "tokens", "L": "loss", "C": "flops"}
        loaded = table.load(rows, roles, (), ("N", "D"))
        options = analysis.Options(
            bootstrap=self.bootstrap if bootstrap is None else bootstrap,
            cluster="trunk",
            predict=self.predict,
            rank=bootstrap is None,
        )
        return analysis.analyse(loaded, find(self.law), options)


def points(runs: Sequence[Run]) -> pd.DataFrame:
    """The finished leaves, in an order that does not depend on the names of folders."""
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        raise ValueError("no finished run here: nothing to fit")
    rows = frame(finished)
    if bool(rows["loss"].isna().any()):
        raise ValueError("runs with no validation loss, or with several: a law of this study is of one data set")
    return rows.sort_values(["active", "seed", "tokens"], ignore_index=True)


def at_least(rows: pd.DataFrame, tokens: float) -> pd.DataFrame:
    """Rows of that many training tokens and more; a run's tokens are whole batches, so a little less will do."""
    return pd.DataFrame(rows[rows["tokens"] >= 0.999 * tokens])


def left_out(runs: Sequence[Run]) -> list[dict]:
    """Cells without an end, each with the rule that keeps it out."""
    return [{"row": run.name, "rule": f"status {run.status}"} for run in runs if run.status != "finished"]
