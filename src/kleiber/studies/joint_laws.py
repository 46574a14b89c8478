"""The studies `moe_law` and `data_repeat`: joint laws of the loss with an input beside parameters and tokens.

moe_law      the gain of more experts. X = experts / active experts, so X = 1, all experts active, is the dense model of
             the family. A gain is a difference of losses at the same seed, active parameters and tokens.
data_repeat  the excess loss of repeated text. The excess of a run is its loss less that of a run with the same size,
             seed and tokens on fresh text, so seed noise cancels. A profile shows whether R_D is identified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from kleiber.config.stages import quantity
from kleiber.records.catalog import Run
from kleiber.studies.claims import Claim, Question, decide_together
from kleiber.studies.compare.arms import not_ready
from kleiber.studies.compare.decision import Estimate
from kleiber.studies.compare.rows import Rows, mean_of, seed_means
from kleiber.studies.designs.design import shortfall
from kleiber.studies.law_report import lines
from kleiber.studies.laws.analysis import Options, analyze_rows
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.table import round_down
from kleiber.studies.study import Findings, IntervalStudy, PlannedPoint, finished_rows
from kleiber.types import Config, Json, Natural

SAME = 0.03  # relative difference of active parameters that counts as equal, since a router adds some
FEW = 4.0  # epochs that are said to be nearly free
NEAR = 0.02  # nats that nearly free means
NATS = "nats per token"


@dataclass(frozen=True)
class JointLaw(IntervalStudy):
    """Base of the studies that fit a joint law; `bootstrap` is its number of resamples."""

    bootstrap: Natural = 300

    def fit(self, rows: Rows, form: Law, roles: Mapping[str, str], cluster: str) -> Json:
        """Fits a law; returns the content of laws.json.

        roles    column of each input of the law
        cluster  column of rows that share noise

        Raises ValueError if the rows cannot be fitted.
        """
        return analyze_rows(rows, form, roles, Options(bootstrap=self.bootstrap, cluster=cluster, level=self.level))


@dataclass(frozen=True)
class MoELaw(JointLaw):
    """The gain of more experts over X = 1, and a joint law.

    law  name of a law of N (active parameters), D and X
    """

    law: str = "joint_moe"

    def __post_init__(self) -> None:
        if set(find(self.law).inputs) != {"N", "D", "X"}:
            raise ValueError(f"study.law={self.law} must be a law of N, D and X, such as joint_moe")

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """A warning where the points do not determine the law; gains are estimated without it."""
        columns = {
            "N": round_down(np.array([point.N for point in points]), SAME),
            "D": np.array([point.D for point in points]),
            "X": np.array([expansion(point.config["model"]) for point in points]),
        }
        why = shortfall(find(self.law), columns)
        return [f"the study can estimate gains but not fit a law: {why}"] if why else []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates gains over X = 1, and fits the joint law where the runs determine it."""
        rows = finished_rows(runs)
        expansions = {run.name: expansion(run.config["model"]) for run in runs if run.finished}
        rows = rows.assign(X=[expansions[name] for name in rows["run"]])
        gained = gains(rows)
        means = seed_means(gained, ("size", "tokens", "X"), "gain", self.level) if len(gained) else gained
        law, verdicts = self._law(rows)
        shown = means.rename(columns={"mean": "gain (nats)"}).drop(columns="half", errors="ignore").to_dict("records")
        tables = {"Gain over X = 1 at equal active size": shown}
        text = lines(law) if law else ()
        return Findings(
            self._headline(means), verdicts=verdicts, tables=tables, figures=gain_figures(means), law=law, text=text,
            methods=MIXTURE_METHODS,
        )  # fmt: skip

    def _headline(self, means: Rows) -> str:
        if not len(means):
            return "The gain of more experts cannot be estimated: no run has X = 1 (all experts active)."
        most = means[means["X"] == means["X"].max()]
        best = most.loc[most["tokens"].idxmax()]
        gain = mean_of(best, NATS).text()
        return (
            f"The loss at X = 1 less that at X = {best['X']:g} is {gain}, at {best['tokens']:,.0f} tokens and "
            f"{best['size']:,.0f} active parameters."
        )

    def _law(self, rows: Rows) -> tuple[Json | None, list[Json]]:
        form = find(self.law)
        enough = len(rows) >= len(form.params) + 3 and all(
            rows[name].nunique() >= 3 for name in ("active", "tokens", "X")
        )
        if not enough:
            told_of = ", ".join(f"{rows[name].nunique()} {name}" for name in ("active", "tokens", "X"))
            text = f"{len(rows)} points ({told_of}) do not determine {self.law}: at least three of each are needed"
            return None, [{"code": "no_law", "level": "warn", "text": text}]
        law = self.fit(rows, form, {"N": "active", "D": "tokens", "X": "X", "L": "loss", "C": "flops"}, "trunk")
        return law, law["verdicts"]


MIXTURE_METHODS = (
    "Mixtures of E experts, k active, were trained at equal active width as trunks with cooldowns (Hägele et al. 2024, "
    "arXiv:2405.18392), with X = E/k from 1 (all active) upwards. The joint law of active parameters, tokens "
    "and X is that of Ludziejewski et al. 2025 (arXiv:2502.05172) without its saturation of X. Gains are differences "
    "of losses of the same seed, size and tokens; FLOPs are equal up to the router, wall-clock time is not and has to "
    "be read beside them."
)


def expansion(model: Config) -> float:
    """X = experts / active experts of a `model` node; 1 for a dense model."""
    mlp = model.get("mlp") or {}
    return float(mlp["num_experts"]) / float(mlp.get("k", 2)) if "num_experts" in mlp else 1.0


def gains(rows: Rows) -> Rows:
    """The rows with X > 1 and their gain, loss(X = 1) - loss(X) at the same active size, tokens and seed."""
    base = rows[rows["X"] == 1.0]
    if not len(base):
        return pd.DataFrame(columns=pd.Index(["size", "tokens", "X", "gain"]))
    sizes = np.sort(base["active"].unique())
    nearest = sizes[np.abs(np.log(rows["active"].to_numpy()[:, None] / sizes[None])).argmin(1)]
    apart = np.abs(rows["active"].to_numpy() / nearest - 1)
    kept = rows.assign(size=nearest)[apart <= SAME]
    keys = ["size", "tokens", "seed"]
    paired = beside_base(kept, kept["X"] == 1.0, keys)
    return paired.assign(gain=paired["base"] - paired["loss"])


def beside_base(rows: Rows, is_base: pd.Series, keys: list[str]) -> Rows:
    """The rows that are no base, each with the mean loss of the base rows of equal keys in the column `base`."""
    base = rows[is_base].groupby(keys)["loss"].mean().rename("base")
    return rows[~is_base].join(base, on=keys).dropna(subset=["base"])


def gain_figures(means: Rows) -> Json:
    """The figure of the gain vs X at the most tokens."""
    from kleiber.charts.theme import format_count, line_chart

    if not len(means):
        return {}
    longest = means[means["tokens"] == means["tokens"].max()]
    named = longest.assign(active=[format_count(n) for n in longest["size"]])
    heading = f"Gain over X = 1 at {format_count(float(longest['tokens'].max()))} tokens, by active parameters"
    return {
        "gain": lambda: line_chart(
            named, "X", "X = experts / active experts", "active", heading, every=2, zero=True,
            value="gain (nats per token)",
        )
    }  # fmt: skip


@dataclass(frozen=True)
class DataRepeat(JointLaw):
    """The excess loss of repeated text, and the data-constrained law."""

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
        waiting = not_ready(runs, 1, lambda run: run.config["data"].get("path") or "text")
        claims = decide_together([self._few(paired, means, waiting)] if len(means) else [], self.level)
        law, verdicts = self._law(rows)
        shown = means.rename(columns={"mean": "excess (nats)"}).drop(columns="half").to_dict("records")
        tables = {"Excess over fresh text of the same length": shown}
        text = lines(law) if law else ()
        return Findings(
            self._headline(means), claims=claims, verdicts=verdicts, tables=tables, figures=excess_figures(means),
            law=law, text=text, methods=REPEAT_METHODS,
        )  # fmt: skip

    def _few(self, paired: Rows, means: Rows, waiting: str) -> Question:
        """The claim that few epochs cost little, about the cell of at most FEW epochs that costs most."""
        few = means["epochs"] <= FEW * 1.01
        claim = Claim(of={"epochs": f"up to {FEW:g}"}, against={"epochs": 1}, direction="not_higher", margin=NEAR)
        text = f"up to {FEW:g} epochs of a text cost less than {NEAR:g} nats per token, compared with fresh text"
        if not few.any():
            return Question(claim=claim, text=text, problem=waiting or f"no run has 2 to {FEW:g} epochs")

        def worst(level: float) -> Estimate:
            """The excess loss of the cell that costs most."""
            table = seed_means(paired, ("N", "tokens", "epochs"), "excess", level)
            part = table[table["epochs"] <= FEW * 1.01]
            return mean_of(part.loc[part["mean"].idxmax()], NATS)

        return Question(claim=claim, text=text, at=worst, unit=NATS, better="lower", problem=waiting)

    def _headline(self, means: Rows) -> str:
        if not len(means):
            return "No cell has both a fresh and a repeated run of the same length: nothing to compare yet."
        most = means.sort_values(["epochs", "N"]).iloc[-1]
        return (
            f"The loss after {most['epochs']:.0f} epochs of one text less that after fresh text is "
            f"{mean_of(most, NATS).text()}, at {most['tokens']:,.0f} tokens and {most['N']:,.0f} parameters."
        )

    def _law(self, rows: Rows) -> tuple[Json | None, list[Json]]:
        """The data-constrained law, and its verdicts; None with fewer than two sizes or too few rows."""
        form = find("data_constrained")
        if rows["N"].nunique() < 2 or len(rows) < len(form.params) + 3:
            text = f"{len(rows)} points of {rows['N'].nunique()} sizes do not determine the data-constrained law"
            return None, [{"code": "no_law", "level": "note", "text": text}]
        try:
            law = self.fit(rows, form, {"N": "N", "D": "tokens", "U": "unique", "L": "loss"}, "run")
        except ValueError as error:
            return None, [{"code": "no_law", "level": "warn", "text": f"no fit of the data-constrained law: {error}"}]
        return law, law["verdicts"]


REPEAT_METHODS = (
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
    for run in (run for run in runs if run.finished):
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
    paired = beside_base(rows, ~again, keys)
    return paired.assign(excess=paired["loss"] - paired["base"], epochs=paired["epochs"].round(1))


def excess_figures(means: Rows) -> Json:
    """The figures of the excess loss vs epochs, one for each model size."""
    from kleiber.charts.theme import format_count, line_chart

    if not len(means):
        return {}
    named = means.assign(length=[f"{format_count(tokens)} tokens" for tokens in means["tokens"]])
    return {
        f"repetition-{format_count(N)}": partial(
            line_chart, part, "epochs", "epochs", "length", "Loss above fresh text vs epochs", every=2, zero=True,
            value="loss above fresh text (nats)", subtitle=f"{format_count(N)} parameters, same seed and tokens",
        )
        for N, part in named.groupby("N")
    }  # fmt: skip
