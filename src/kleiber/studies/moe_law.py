"""The study `moe_law`: the gain of more experts at equal active parameters, and the joint law of size, tokens, experts.

X = experts / active experts, so X = 1, all experts active, is the dense model of the family. A gain is a difference of
losses at the same seed, active parameters and tokens; cells whose active parameters differ are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import Rows, format_mean, seed_means
from kleiber.studies.designs.sizes import PlannedPoint, shortfall
from kleiber.studies.laws import analysis, laws_json, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.laws_json import lines
from kleiber.studies.study import Findings, Study, check_level, points
from kleiber.types import Config, Json

SAME = 0.03  # relative difference of active parameters that counts as equal, since a router adds some


@dataclass(frozen=True)
class MoELaw(Study):
    """The gain of more experts over X = 1, and a joint law.

    law        name of a law of N (active parameters), D and X
    bootstrap  number of resamples
    level      confidence level of the intervals
    """

    law: str = "joint_moe"
    bootstrap: int = 300
    level: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_level(self.level)
        if set(find(self.law).inputs) != {"N", "D", "X"}:
            raise ValueError(f"study.law={self.law} must be a law of N, D and X, such as joint_moe")

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """A warning where the points do not determine the law; gains are estimated without it."""
        columns = {
            "N": without_routers(np.array([point.N for point in points])),
            "D": np.array([point.D for point in points]),
            "X": np.array([expansion_of(point.config["model"]) for point in points]),
        }
        why = shortfall(find(self.law), columns)
        return [f"the study can estimate gains but not fit a law: {why}"] if why else []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates gains over X = 1, and fits the joint law where the runs determine it."""
        rows = points(runs)
        expansions = {run.name: expansion(run) for run in runs if run.status == "finished"}
        rows = rows.assign(X=[expansions[name] for name in rows["run"]])
        gained = gains(rows)
        means = seed_means(gained, ("size", "tokens", "X"), "gain", self.level) if len(gained) else gained
        law, verdicts = self._law(rows)
        shown = means.rename(columns={"mean": "gain (nats)"}).drop(columns="half", errors="ignore").to_dict("records")
        tables = {"Gain over X = 1 at equal active size": shown}
        text = lines(law) if law else ()
        return Findings(self._headline(means), verdicts, tables, figures(means), law, text, METHODS)

    def _headline(self, means: Rows) -> str:
        if not len(means):
            return "The gain of more experts cannot be estimated: no run has X = 1 (all experts active)."
        most = means[means["X"] == means["X"].max()]
        best = most.loc[most["tokens"].idxmax()]
        return (
            f"X = {best['X']:g} lowers the loss by {format_mean(best['mean'], best['half'])} nats compared with X = 1, "
            f"at {best['tokens']:,.0f} tokens and {best['size']:,.0f} active parameters."
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
        loaded = table.load(rows, {"N": "active", "D": "tokens", "X": "X", "L": "loss", "C": "flops"}, (), form.inputs)
        options = analysis.Options(bootstrap=self.bootstrap, cluster="trunk", level=self.level)
        law = laws_json.without_nonfinite(analysis.analyze(loaded, form, options))
        return law, law["verdicts"]


METHODS = (
    "Mixtures of E experts, k active, were trained at equal active width as trunks with cooldowns (Hägele et al. 2024, "
    "arXiv:2405.18392), with X = E/k from 1 (all active) upwards. The joint law of active parameters, tokens "
    "and X is that "
    "of Ludziejewski et al. 2025 (arXiv:2502.05172) without its saturation of X. Gains are differences of "
    "losses of the same "
    "seed, size and tokens; FLOPs are equal up to the router, wall-clock time is not and has to be read beside them."
)


def without_routers(active: np.ndarray) -> np.ndarray:
    """Active parameters with sizes that differ by at most SAME set to the least of them, since a router adds some."""
    least: list[float] = []
    for size in np.unique(active):
        if not least or size > (1 + SAME) * least[-1]:
            least.append(size)
    return np.array(least)[np.searchsorted(least, active, "right") - 1]


def expansion(run: Run) -> float:
    """X = experts / active experts of a run; 1 for a dense model."""
    return expansion_of(run.config["model"])


def expansion_of(model: Config) -> float:
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
    dense = kept[kept["X"] == 1.0].groupby(keys)["loss"].mean().rename("dense")
    paired = kept[kept["X"] > 1.0].join(dense, on=keys).dropna(subset=["dense"])
    return paired.assign(gain=paired["dense"] - paired["loss"])


def figures(means: Rows) -> Json:
    """The figure of the gain vs X at the most tokens."""
    from kleiber.charts import format_count, line_chart

    if not len(means):
        return {}
    longest = means[means["tokens"] == means["tokens"].max()]
    named = longest.assign(active=[format_count(n) for n in longest["size"]])
    heading = f"Gain over X = 1 at {format_count(float(longest['tokens'].max()))} tokens, by active parameters"
    return {
        "gain": lambda: line_chart(
            named,
            "X",
            "X = experts / active experts",
            "active",
            heading,
            every=2,
            value="gain (nats per token)",
            zero=True,
        )
    }
