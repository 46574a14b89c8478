"""The study `upcycling`: a dense run goes on as a mixture, goes on dense, or a mixture starts from nothing, at equal
extra FLOPs.

It reads cells of the design `arms`. The dense runs themselves are trained before, one a seed, and named in the design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kleiber.catalog import Run
from kleiber.studies.arms import Arm, complaints, paired, read, told
from kleiber.studies.findings import Findings, Options


@dataclass(frozen=True)
class Upcycling(Options):
    """Which arm is which; `against` are the ones that upcycling is compared with.

    arm  of a cell: set by the design
    """

    arm: str | None = None
    upcycled: str = "upcycled"
    against: Sequence[str] = ("continued", "scratch")

    def analyse(self, runs: Sequence[Run]) -> Findings:
        arms = read(runs)
        verdicts = complaints(arms)
        ours = arms.get(self.upcycled)
        gaps = []
        for name in self.against:
            if ours is not None and name in arms:
                tuned = not (ours.wrong or arms[name].wrong)
                ratio = ours.facts["flops"] / arms[name].facts["flops"]
                if not 0.95 < ratio < 1.05:
                    text = f"{ours.name} and {name} differ in FLOPs by a factor of {ratio:.2f}"
                    verdicts.append({"code": "unequal", "level": "warn", "text": text})
                gap = paired(ours.at_best, arms[name].at_best)
                gaps.append({"what": f"{ours.name} - {name}", **gap, "FLOPs ratio": ratio, "tuned": tuned})
        tuned = [f"{gap['what']} {told(gap)}" for gap in gaps if gap["tuned"]]
        text = "At equal extra FLOPs: " + "; ".join(tuned) + "." if tuned else "No comparison of tuned arms."
        tables: dict[str, Any] = {"Comparisons": gaps, "Arms": [arm.row() for arm in arms.values()]}
        return Findings(text, verdicts, tables, drawn(arms, gaps))


def drawn(arms: Mapping[str, Arm], gaps: Sequence[Any]) -> dict[str, Any]:
    def draw(name: str) -> Any:
        from kleiber.studies import arm_plots

        if name == "differences":
            return arm_plots.differences(gaps, "Upcycling less the others: left of 0 it is better")
        return {"tuning": arm_plots.tuning, "arms": arm_plots.side_by_side}[name](arms)

    wanted = {"differences": bool(gaps), "arms": True, "tuning": True}
    return {name: partial(draw, name) for name, there in wanted.items() if there}
