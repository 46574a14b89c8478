"""The study `routers`: the zoo at equal compute, each with its loss and how evenly it used its experts.

It reads cells of the design `arms`, and what their runs logged of their loads. Three claims of the literature are put
to the test; each is shown, not shown, or contradicted here, and never assumed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleiber.budget import quantity
from kleiber.catalog import Run
from kleiber.metrics import having, read_rows
from kleiber.studies import arm_figures
from kleiber.studies.arms import Arm, all_tuned, complaints, paired, points, read, told
from kleiber.studies.findings import Findings, Options


@dataclass(frozen=True)
class Routers(Options):
    """Which arm is which.

    arm       of a cell: set by the design
    tokens    training tokens of the comparison; null: the most of each arm
    learned, hashed, lossfree, unbalanced  names of the arms that the claims are about
    """

    arm: str | None = None
    tokens: int | float | str | None = None
    learned: str = "topk"
    hashed: str = "hash"
    lossfree: str = "lossfree"
    unbalanced: str = "unbalanced"

    def analyse(self, runs: Sequence[Run]) -> Findings:
        arms = read(runs, None if self.tokens is None else quantity(self.tokens))
        loads = {name: health(runs, arm) for name, arm in arms.items()}
        claims = [*learned_beats(arms, self.learned, self.hashed), *self.balance_claims(arms, loads)]
        verdicts = [*complaints(arms), *claims]
        base = arms.get(self.learned)
        gaps = [
            {"what": f"{arm.name} - {self.learned}", **paired(arm.at_best, base.at_best)}
            for arm in arms.values()
            if base is not None and arm is not base
        ]
        rows = [{**arm.row(), **loads[name]} for name, arm in arms.items()]
        order = sorted(rows, key=lambda row: row["loss"])
        head = " < ".join(f"{row['arm']} {row['loss']:.4f}" for row in order if row["tuned"])
        text = f"Loss by router: {head}." if head else "No router is tuned: see the verdicts."
        return Findings(
            text, verdicts, {"Against the learned router": gaps, "Routers": rows}, self.figures(arms, gaps, rows)
        )

    def balance_claims(self, arms: Mapping[str, Arm], loads: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
        found = []
        if self.lossfree in arms and self.learned in arms:
            free, lost = loads[self.lossfree].get("max violation"), loads[self.learned].get("max violation")
            gap = paired(arms[self.lossfree].at_best, arms[self.learned].at_best)
            if free is not None and lost is not None and gap["lo"] is not None:
                text = f"maximal violation {free:.2f} against {lost:.2f} with the loss, {told(gap)}"
                against = free > lost or gap["lo"] > 0
                both = [arms[self.lossfree], arms[self.learned]]
                found.append(claim("loss-free balance is as even at no worse loss", both, not against, against, text))
        if self.unbalanced in arms:
            dead = loads[self.unbalanced].get("dead")
            if dead is not None:
                text = f"{dead:.1f} dead experts a layer"
                found.append(claim("without balance experts die", [arms[self.unbalanced]], dead >= 1, dead == 0, text))
        return found

    def figures(self, arms: Mapping[str, Arm], gaps: Sequence[Any], rows: Sequence[Any]) -> arm_figures.Figures:
        seen = [row for row in rows if row.get("max violation") is not None]
        title = "Loss against the load of the busiest expert"
        return {
            **arm_figures.differences(gaps, f"Routers less {self.learned}: left of 0 they are better"),
            **arm_figures.against_loss("balance", seen, "max violation", title),
            **arm_figures.each_arm(arms),
        }


def learned_beats(arms: Mapping[str, Arm], learned: str, hashed: str) -> list[dict[str, str]]:
    if learned not in arms or hashed not in arms:
        return []
    both = [arms[learned], arms[hashed]]
    gap = paired(both[0].at_best, both[1].at_best)
    if gap["lo"] is None:
        return []
    return [claim("a learned router beats hashing", both, gap["hi"] < 0, gap["lo"] > 0, told(gap))]


def claim(what: str, arms: Sequence[Arm], shown: bool, contradicted: bool, text: str) -> dict[str, str]:
    """A verdict on a claim: of untuned arms it is not tested, whatever the numbers say."""
    word = "shown" if shown else "contradicted" if contradicted else "not shown"
    word = word if all_tuned(*arms) else "not tested, for want of tuned arms,"
    return {"code": "claim", "level": "note" if word == "shown" else "warn", "text": f"{what}: {word} here ({text})"}


def health(runs: Sequence[Run], arm: Arm) -> dict[str, float]:
    """Means over layers and seeds, at the arm's best learning rate, of what the last tenth of a run logged."""
    rows = [row for row in points(runs) if row["arm"] == arm.name and row["lr"] == arm.best_lr]
    found: dict[str, list[float]] = {}
    for folder in sorted({row["folder"] for row in rows if row["loss"] is not None}):
        for name, values in late(folder).items():
            found.setdefault(name, []).extend(values)
    return {name: statistics.fmean(values) for name, values in sorted(found.items())}


def late(folder: Path) -> dict[str, list[float]]:
    """max violation and load entropy of the last tenth of the rows, and the last count of the dead."""
    rows = having(read_rows(folder), "moe/load_entropy/")
    found: dict[str, list[float]] = {}
    for row in rows[-max(1, len(rows) // 10) :]:
        for key, value in row.items():
            kind = key.split("/")[1] if key.startswith("moe/") else ""
            if kind in ("max_violation", "load_entropy") and math.isfinite(value):
                found.setdefault(kind.replace("_", " "), []).append(value)
    if counted := having(rows, "moe/dead/"):
        found["dead"] = [value for key, value in counted[-1].items() if key.startswith("moe/dead/")]
    return found
