"""The study `data_repeat`: the excess loss of training on repeated text over fresh text of the same length.

The excess of a run is its loss less that of a run with the same size, seed and tokens on fresh text, so seed noise
cancels. With enough sizes the data-constrained law is fitted, and a profile shows whether R_D is identified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from kleiber.config.stages import quantity
from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import Rows, format_mean, seed_means
from kleiber.studies.designs.sizes import PlannedPoint, shortfall
from kleiber.studies.laws import analysis, laws_json, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.laws_json import lines
from kleiber.studies.study import Findings, Study, check_level
from kleiber.types import Config, Json

FEW = 4.0  # epochs that are said to be nearly free
NEAR = 0.02  # nats that nearly free means


@dataclass(frozen=True)
class DataRepeat(Study):
    """bootstrap  resamples of the law; level  of every interval"""

    bootstrap: int = 300
    level: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level)

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """What repeating costs needs no law: that it cannot be fitted is a warning."""
        columns = {
            "N": np.array([point.N for point in points]),
            "D": np.array([point.D for point in points]),
            "U": np.array([min(point.D, unique_tokens(point.config["data"])) for point in points]),
        }
        why = shortfall(find("data_constrained"), columns)
        return [f"what repeating costs will be told and no law: {why}"] if why else []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the excess loss of repeated text, and fits the data-constrained law where the runs allow it."""
        rows = epochs(runs)
        paired = excess(rows)
        means = seed_means(paired, ("N", "tokens", "epochs"), "excess", self.level)
        claims = [self._few(means)] if len(means) else []
        law, law_verdicts = self._law(rows)
        shown = means.rename(columns={"mean": "excess (nats)"}).drop(columns="half").to_dict("records")
        tables = {"Excess over fresh text of the same length": shown}
        return Findings(self._headline(means), [*claims, *law_verdicts], tables, figures(means), law,
                        lines(law) if law else (), METHODS)  # fmt: skip

    def _few(self, means: Rows) -> Json:
        part = means[means["epochs"] <= FEW * 1.01]
        if not len(part):
            return {
                "code": "few_epochs",
                "level": "warn",
                "text": f"no cell of 2 to {FEW:g} epochs: nothing to say of them",
            }
        worst = part.loc[part["mean"].idxmax()]
        holds = "holds" if worst["hi"] < NEAR else "does not hold" if worst["lo"] > NEAR else "undecided"
        text = f"{holds}: up to {FEW:g} epochs cost less than {NEAR} nats; the worst is "
        text += f"{format_mean(worst['mean'], worst['half'])} of {worst['tokens']:,.0f} tokens "
        text += f"in {worst['epochs']:.1f} epochs at {worst['N']:,.0f} parameters"
        return {"code": "few_epochs", "level": "note", "text": text}

    def _headline(self, means: Rows) -> str:
        if not len(means):
            return "No cell has both a fresh and a repeated run of the same length: nothing to compare yet."
        most = means.sort_values(["epochs", "N"]).iloc[-1]
        return (
            f"{most['epochs']:.0f} epochs of one text cost {format_mean(most['mean'], most['half'])} nats per token "
            f"more than fresh text of the same {most['tokens']:,.0f} tokens, at {most['N']:,.0f} parameters."
        )

    def _law(self, rows: Rows) -> tuple[Json | None, list[Json]]:
        """The data-constrained law, and its verdicts; None with fewer than two sizes or too few rows."""
        form = find("data_constrained")
        if rows["N"].nunique() < 2 or len(rows) < len(form.params) + 3:
            text = f"{len(rows)} points of {rows['N'].nunique()} sizes do not determine the data-constrained law"
            return None, [{"code": "no_law", "level": "note", "text": text}]
        loaded = table.load(rows, {"N": "N", "D": "tokens", "U": "unique", "L": "loss"}, (), form.inputs)
        options = analysis.Options(bootstrap=self.bootstrap, cluster="run", level=self.level)
        try:
            law = laws_json.without_nonfinite(analysis.analyze(loaded, form, options))
        except ValueError as error:
            return None, [{"code": "no_law", "level": "warn", "text": f"no fit of the data-constrained law: {error}"}]
        return law, law["verdicts"]


METHODS = (
    "Models were trained on U tokens, evenly from all of one text, for D tokens in all, D/U epochs, and compared with "
    "models of the same size, seed and D whose text was all new. The data-constrained law is that of Muennighoff et "
    "al. 2023 (arXiv:2305.16264), its seven parameters fitted together; parameters with a flat profile are called not "
    "identified."
)


def unique_tokens(data: Config) -> float:
    """Tokens that are read over and over; without a limit all text is new."""
    return math.inf if data.get("unique") is None else quantity(data["unique"])


def epochs(runs: Sequence[Run]) -> Rows:
    """A row a finished end: N, seed, tokens, unique, epochs, loss."""
    rows = []
    for run in (run for run in runs if run.status == "finished"):
        for stage in run.leaves:
            losses = [v for k, v in stage["metrics"].items() if k.startswith("val/") and k.endswith("/loss")]
            unique = stage["data"]["tokens"]
            if len(losses) == 1:
                rows.append({"run": run.name, "seed": run.summary.get("seed"), "N": stage["params"]["active"],
                             "tokens": stage["tokens"], "unique": min(unique, stage["tokens"]),
                             "epochs": max(1.0, stage["tokens"] / unique), "loss": losses[0]})  # fmt: skip
    if not rows:
        raise ValueError("no finished run with one validation loss: nothing to compare")
    return pd.DataFrame(rows).sort_values(["N", "tokens", "unique", "seed"], ignore_index=True)


def excess(rows: Rows) -> Rows:
    """Repeated runs with their loss less that of the fresh run of the same N, tokens and seed."""
    keys = ["N", "tokens", "seed"]
    again = rows["epochs"].round(1) > 1.0  # and not a last batch that begins anew
    fresh = rows[~again].groupby(keys)["loss"].mean().rename("fresh")
    paired = rows[again].join(fresh, on=keys).dropna(subset=["fresh"])
    return paired.assign(excess=paired["loss"] - paired["fresh"], epochs=paired["epochs"].round(1))


def figures(means: Rows) -> Json:
    """The figures of the excess loss vs epochs, one for each model size."""
    from kleiber.charts import format_count, line_chart

    if not len(means):
        return {}
    named = means.assign(length=[f"{format_count(tokens)} tokens" for tokens in means["tokens"]])
    return {
        f"repetition-{format_count(N)}": partial(
            line_chart, part, "epochs", "epochs", "length", "What repeating costs", every=2, zero=True,
            value="loss above fresh text (nats)", subtitle=f"{format_count(N)} parameters, same seed and tokens",
        )
        for N, part in named.groupby("N")
    }  # fmt: skip
