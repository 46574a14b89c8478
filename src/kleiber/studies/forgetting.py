"""The study `forgetting`: ways not to forget on one base, as a frontier of target loss against forgetting.

It compares methods where they have learned equally much, and refuses a ranking at one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from kleiber.catalog import Run
from kleiber.studies import claims, forgetting_tables, frontier, outcomes
from kleiber.studies.findings import Findings, Tolerant
from kleiber.studies.outcomes import PLAIN


@dataclass(frozen=True)
class Forgetting(Tolerant):
    """How to compare.

    tolerance  methods are compared at (1 + tolerance) times the best target loss of plain fine-tuning
    level      of the intervals
    """

    def analyse(self, runs: Sequence[Run]) -> Findings:
        record = self.compare(runs)
        return Findings(
            headline=headline(record),
            verdicts=[*record["complaints"], *record["claims"]],
            tables={
                "At equal target loss": forgetting_tables.matched(record),
                "Settings": forgetting_tables.settings(record),
            },
            figures=figures(runs, record),
            methods=forgetting_tables.method(record),
        )

    def compare(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Points, frontier, methods at matched target loss, claims. ValueError where nothing can be compared."""
        rows = outcomes.outcomes(runs)
        at = frontier.reference(rows, self.tolerance)
        points = frontier.averaged(rows)
        found = frontier.matched(rows, at, self.level)
        noise = frontier.seed_noise(rows, "F")
        return {
            "matched_target": at,
            "tolerance": self.tolerance,
            "level": self.level,
            "seed_noise": {"F": noise.sd, "df": noise.df, "target": frontier.seed_noise(rows, "target").sd},
            "matched": [asdict(one) for one in found],
            "chosen": frontier.chosen(points, at).to_dict("records"),
            "points": points.to_dict("records"),
            "complaints": complaints(points, at),
            "claims": [claim.verdict() for claim in claims.claims(rows, found, self.level)],
        }


def complaints(points: pd.DataFrame, at: float) -> list[dict[str, str]]:
    """What makes the comparison weaker than it looks: methods whose slowest rate still learns more than is asked."""
    found = frontier.bounded(points, at)
    if not found:
        return []
    text = f"{', '.join(found)}: all of the frontier learns more than {at:.4f}, so F there is at most what is told"
    plain = "; so is what others gain on plain fine-tuning" if PLAIN in found else ""
    return [{"code": "bound", "level": "warn", "text": f"{text}{plain}: try lower learning rates"}]


def figures(runs: Sequence[Run], record: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The figures that the runs allow, by name."""
    from kleiber.studies import forgetting_plots as plots

    points, chosen = pd.DataFrame(record["points"]), pd.DataFrame(record["chosen"])
    made: dict[str, Callable[[], Any]] = {"pareto": lambda: plots.pareto(points, record["matched_target"])}
    if any(one["reached"] for one in record["matched"]):
        made["matched"] = lambda: plots.matched(record)
    paths, keys = outcomes.trajectories(runs), ["method", "setting", "lr"]
    paths = paths.merge(chosen[keys], on=keys) if len(paths) else paths
    if len(paths):
        made["trajectory"] = lambda: plots.trajectory(paths, plots.methods_of(points))
    made["matrix"] = lambda: plots.heat(forgetting_tables.scores(outcomes.outcomes(runs), chosen, runs))
    return made


def headline(record: dict[str, Any]) -> str:
    """Who forgets least at equal target loss, and whether that is more than noise."""
    reached = [one for one in record["matched"] if one["reached"]]
    plain = next((one for one in reached if one["method"] == PLAIN), None)
    where = f"At a target loss of {record['matched_target']:.4f} nats (plain fine-tuning + {record['tolerance']:.0%})"
    if not reached:
        return f"{where} no method can be compared: none reaches it."
    if plain is None:
        return f"{where} plain fine-tuning was not measured; {told(reached[0])} forgets least."
    if len(reached) == 1:
        return f"{where} only {told(reached[0])} can be compared."
    best = next(one for one in reached if one["method"] != PLAIN)
    if not forgetting_tables.bounded(best):
        return f"{where} {told(best)}, {told(plain)}: without replicates nothing says whether they differ."
    if not best["pairs"]:
        return f"{where} {told(best)}, {told(plain)}: no seed has both, so nothing says whether they differ."
    claim = next((one for one in record["claims"] if one["code"] == f"matched_{best['method']}"), None)
    holds = claim["holds"] if claim else None
    word = {True: "more than noise", False: "which is worse than none", None: "within noise"}[holds]
    less = f"{claims.gap(best['less'], best['half'])} below plain fine-tuning, {word}"
    return f"{where} {told(best)} forgets least of the methods, {less}; plain fine-tuning: {told(plain)}."


def told(one: dict[str, Any]) -> str:
    interval = f" {forgetting_tables.span(one)}" if forgetting_tables.bounded(one) else ""
    return f"{one['method']} (F {one['F']:.4f}{interval} nats)"
