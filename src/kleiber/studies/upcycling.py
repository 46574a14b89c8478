"""The study `upcycling`: an upcycled mixture compared with continued dense training and with a mixture from scratch.

The arms have equal extra FLOPs. The design names the dense runs to start from, one for each seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import (
    all_tuned,
    complaints,
    differences_chart,
    each_arm,
    format_gap,
    paired,
    read,
)
from kleiber.studies.study import Findings, Study
from kleiber.types import Json


@dataclass(frozen=True)
class Upcycling(Study):
    """Which arm is which; `against` are the ones that upcycling is compared with.

    arm  of a cell: set by the design
    """

    arm: str | None = None
    upcycled: str = "upcycled"
    against: Sequence[str] = ("continued", "scratch")

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the upcycled mixture with the other arms at equal extra FLOPs."""
        arms = read(runs)
        verdicts = complaints(arms)
        ours = arms.get(self.upcycled)
        gaps = []
        for theirs in (arms[name] for name in self.against if name in arms):
            if ours is not None:
                ratio, names = ours.facts["flops"] / theirs.facts["flops"], (ours.name, theirs.name)
                if not 0.95 < ratio < 1.05:
                    text = f"{' and '.join(names)} differ in FLOPs by a factor of {ratio:.2f}"
                    verdicts.append({"code": "unequal", "level": "warn", "text": text})
                gap = {"what": " - ".join(names), **paired(ours.at_best, theirs.at_best), "FLOPs ratio": ratio}
                gaps.append({**gap, "tuned": all_tuned(ours, theirs)})
        tuned = [f"{gap['what']} {format_gap(gap)}" for gap in gaps if gap["tuned"]]
        text = "At equal extra FLOPs: " + "; ".join(tuned) + "." if tuned else "No comparison of tuned arms."
        tables: Json = {"Comparisons": gaps, "Arms": [arm.row() for arm in arms.values()]}
        differences = differences_chart(gaps, "Upcycling less the others: left of 0 it is better")
        return Findings(text, verdicts, tables, {**differences, **each_arm(arms)})
