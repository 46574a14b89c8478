"""The study `forgetting`: ways not to forget on one base, as a frontier of target loss against forgetting.

It compares methods where they have learned equally much, and refuses a ranking at one learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kleiber.catalog import Run, counts
from kleiber.studies import claims, frontier, outcomes
from kleiber.studies import record as records
from kleiber.studies.outcomes import PLAIN
from kleiber.summary import write_json


@dataclass(frozen=True)
class Forgetting:
    """How to compare.

    tolerance  methods are compared at (1 + tolerance) times the best target loss of plain fine-tuning
    level      of the intervals
    max_cells  cells of the sweep, base runs included; those beyond it are left out (read by the sweeper)
    seeds      of every cell, in place of the design's (read by the sweeper)
    """

    tolerance: float = 0.02
    level: float = 0.9
    max_cells: int | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        if not (self.tolerance >= 0 and 0 < self.level < 1):
            raise ValueError(f"study: tolerance={self.tolerance} must be at least 0, level={self.level} in (0, 1)")
        for name in ("max_cells", "seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"study.{name}={value}: write a number from 1, or null")

    def analyse(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Points, frontier, methods at matched target loss, claims. ValueError where nothing can be compared."""
        rows = outcomes.outcomes(runs)
        at = frontier.reference(rows, self.tolerance)
        points = frontier.averaged(rows)
        found = frontier.matched(rows, at, self.level)
        noise = frontier.seed_noise(rows, "F")
        return {
            "schema": "kleiber.forgetting/1",
            "matched_target": at,
            "tolerance": self.tolerance,
            "level": self.level,
            "seed_noise": {"F": noise.sd, "df": noise.df, "target": frontier.seed_noise(rows, "target").sd},
            "matched": [asdict(one) for one in found],
            "chosen": frontier.chosen(points, at).to_dict("records"),
            "points": points.to_dict("records"),
            "claims": [claim.verdict() for claim in claims.claims(rows, found, self.level)],
            "start": float(rows["start"].mean()),
        }

    def report(self, folder: Path, runs: Sequence[Run], out: Path | None = None) -> dict[str, Any]:
        """Writes forgetting.json, findings.json, figures and the page; returns the findings."""
        from kleiber.studies import forgetting_page

        record = records.finite(self.analyse(runs))
        write_json(folder / "forgetting.json", record)
        found = findings(folder, runs, record)
        charts = forgetting_page.figures(runs, record)
        forgetting_page.save(folder, charts)
        write_json(folder / "findings.json", found)
        (out or folder / "report.html").write_text(forgetting_page.page(found, record, charts))
        return found


def findings(folder: Path, runs: Sequence[Run], record: dict[str, Any]) -> dict[str, Any]:
    missing = [f"{run.name} ({run.status})" for run in runs if run.status != "finished"]
    return {
        "schema": "kleiber.findings/1",
        "study": folder.name,
        "headline": headline(record),
        "runs": counts(runs),
        "missing": missing,
        "seconds": sum(run.summary.get("seconds") or 0 for run in runs),
        "verdicts": record["claims"],
        "laws": None,
    }


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
    if None in (best["lo"], best["hi"], plain["lo"], plain["hi"]):
        return f"{where} {told(best)}, {told(plain)}: without replicates nothing says whether they differ."
    claim = next((one for one in record["claims"] if one["code"] == f"matched_{best['method']}"), None)
    word = {True: "forgets least", False: "is best and yet worse than none", None: "is best, within noise"}
    return f"{where} {told(best)} {word[claim['holds'] if claim else None]}; plain fine-tuning: {told(plain)}."


def told(one: dict[str, Any]) -> str:
    if one["lo"] is None:
        return f"{one['method']} (F {one['F']:.4f} nats)"
    return f"{one['method']} (F {one['F']:.4f} [{one['lo']:.4f}, {one['hi']:.4f}] nats)"
