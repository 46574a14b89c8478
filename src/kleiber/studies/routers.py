"""The study `routers`: the loss and the expert loads of all routers at equal compute.

It reads the cells of the design `arms` and the loads that their runs logged, and tests three claims of the literature:
each is shown, not shown, contradicted, or not tested.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kleiber.config.stages import Quantity, quantity
from kleiber.records.catalog import Run
from kleiber.records.summary import rows_with
from kleiber.studies.compare.arms import (
    Arm,
    against_loss,
    all_tuned,
    complaints,
    differences_chart,
    each_arm,
    format_gap,
    paired,
    points,
    read,
)
from kleiber.studies.study import Figures, Findings, Study
from kleiber.types import Json, Row

AS_EVEN = 0.1  # of the mean load: how much more the busiest expert may have and balance still be called as even
NO_WORSE = 0.01  # nats


@dataclass(frozen=True)
class Routers(Study):
    """Which arm is which.

    arm       of a cell: set by the design
    tokens    training tokens of the comparison; null: the most of each arm
    learned, hashed, lossfree, unbalanced  names of the arms that the claims are about
    """

    arm: str | None = None
    tokens: Quantity | None = None
    learned: str = "topk"
    hashed: str = "hash"
    lossfree: str = "lossfree"
    unbalanced: str = "unbalanced"

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the loss and the expert loads of all routers."""
        arms = read(runs, None if self.tokens is None else quantity(self.tokens))
        run_rows = points(runs)
        loads = {name: health(run_rows, arm) for name, arm in arms.items()}
        claims = [*learned_beats(arms, self.learned, self.hashed), *self.balance_claims(arms, loads)]
        verdicts = [*complaints(arms), *claims]
        base = arms.get(self.learned)
        gaps = [
            {"what": f"{arm.name} - {self.learned}", **paired(arm.at_best, base.at_best)}
            for arm in arms.values()
            if base is not None and arm is not base
        ]
        means = {name: {kind: statistics.fmean(seeds.values()) for kind, seeds in loads[name].items()} for name in arms}
        rows = [{**arm.row(), **means[name]} for name, arm in arms.items()]
        text = headline(self.learned, arms)
        return Findings(
            text, verdicts, {"Against the learned router": gaps, "Routers": rows}, self.figures(arms, gaps, rows)
        )

    def balance_claims(self, arms: Mapping[str, Arm], loads: Mapping[str, Health]) -> list[dict[str, str]]:
        """What an interval leaves open is not shown; every seed has to have dead experts, or none."""
        verdicts = []
        if self.lossfree in arms and self.learned in arms:
            pair = [arms[self.lossfree], arms[self.learned]]
            ours, theirs = (loads[arm.name].get("max violation", {}) for arm in pair)
            uneven = paired(ours, theirs)
            gap = paired(pair[0].at_best, pair[1].at_best)
            if uneven["lo"] is not None and gap["lo"] is not None:
                text = f"maximal violation {format_gap(uneven, 'of the mean load')}; loss {format_gap(gap)}"
                shown = uneven["hi"] <= AS_EVEN and gap["hi"] <= NO_WORSE
                against = uneven["lo"] > AS_EVEN or gap["lo"] > NO_WORSE
                verdicts.append(claim("loss-free balance is as even at no worse loss", pair, shown, against, text))
        if self.unbalanced in arms and (dead := loads[self.unbalanced].get("dead")):
            text = f"{statistics.fmean(dead.values()):.1f} dead experts a layer, mean of {len(dead)} seeds"
            shown, against = min(dead.values()) >= 1, max(dead.values()) == 0
            verdicts.append(claim("without balance experts die", [arms[self.unbalanced]], shown, against, text))
        return verdicts

    def figures(self, arms: Mapping[str, Arm], gaps: Sequence[Json], rows: Sequence[Json]) -> Figures:
        """The figures of the study."""
        balanced = [row for row in rows if row.get("max violation") is not None]
        title = "Loss against the load of the busiest expert"
        return {
            **differences_chart(gaps, f"Routers less {self.learned}: left of 0 they are better"),
            **against_loss("balance", balanced, "max violation", title),
            **each_arm(arms),
        }


def headline(learned: str, arms: Mapping[str, Arm]) -> str:
    """Each tuned router's loss less that of the learned one, with its interval."""
    tuned = {name: arm for name, arm in arms.items() if not arm.wrong}
    if learned not in tuned:
        return f"No comparison: the router {learned} is {'not tuned' if learned in arms else 'missing'}."
    gaps = {name: paired(arm.at_best, tuned[learned].at_best) for name, arm in tuned.items() if name != learned}
    if not gaps:
        return f"No comparison: no router but {learned} is tuned."
    order = sorted(gaps, key=lambda name: math.inf if gaps[name]["value"] is None else gaps[name]["value"])
    return f"Loss less that of {learned}: " + "; ".join(f"{name} {format_gap(gaps[name])}" for name in order) + "."


def learned_beats(arms: Mapping[str, Arm], learned: str, hashed: str) -> list[dict[str, str]]:
    """The claim that a learned router has a lower loss than hashing; none without both arms."""
    if learned not in arms or hashed not in arms:
        return []
    pair = [arms[learned], arms[hashed]]
    gap = paired(pair[0].at_best, pair[1].at_best)
    if gap["lo"] is None:
        return []
    return [claim("a learned router beats hashing", pair, gap["hi"] < 0, gap["lo"] > 0, format_gap(gap))]


def claim(statement: str, arms: Sequence[Arm], shown: bool, contradicted: bool, text: str) -> dict[str, str]:
    """A verdict on a claim: of untuned arms it is not tested, whatever the numbers say."""
    outcome = "shown" if shown else "contradicted" if contradicted else "not shown"
    outcome = outcome if all_tuned(*arms) else "not tested, for want of tuned arms,"
    return {
        "code": "claim",
        "level": "note" if outcome == "shown" else "warn",
        "text": f"{statement}: {outcome} here ({text})",
    }


Health = dict[str, dict[int, float]]


def health(rows: Sequence[Row], arm: Arm) -> Health:
    """By kind and seed, means over layers at the arm's best learning rate of what the last tenth of a run logged."""
    by_kind: Health = {}
    mine = [row for row in rows if row["arm"] == arm.name and row["lr"] == arm.best_lr and row["loss"] is not None]
    for row in mine:
        for name, values in late(row["source"].rows).items():
            by_kind.setdefault(name, {})[row["seed"]] = statistics.fmean(values)
    return dict(sorted(by_kind.items()))


def late(logged: Sequence[Row]) -> dict[str, list[float]]:
    """max violation and load entropy of the last tenth of the rows, and the last count of the dead."""
    rows = rows_with(logged, "moe/load_entropy/")
    by_kind: dict[str, list[float]] = {}
    for row in rows[-max(1, len(rows) // 10) :]:
        for key, value in row.items():
            kind = key.split("/")[1] if key.startswith("moe/") else ""
            if kind in ("max_violation", "load_entropy") and math.isfinite(value):
                by_kind.setdefault(kind.replace("_", " "), []).append(value)
    if counted := rows_with(rows, "moe/dead/"):
        by_kind["dead"] = [value for key, value in counted[-1].items() if key.startswith("moe/dead/")]
    return by_kind
