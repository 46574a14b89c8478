"""The study `retrieval`: a datastore of the old domain at evaluation as a remedy for forgetting, beside replay.

Runs go on from common bases on another domain, plain or with replay, and are evaluated by `evals=[retrieval]` on both
domains with a datastore of the old one. Each run so has several ways to be used: alone, with nearest neighbors
(kNN-LM), or with retrieved text in front. Losses are compared within seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import mean_estimate
from kleiber.studies.compare.places import OneRunStudy
from kleiber.studies.compare.rows import PLAIN
from kleiber.studies.compare.verdicts import MeanClaim, decide_means
from kleiber.studies.retrieval_losses import (
    ALONE,
    BASE,
    KNN,
    UNIT,
    WAYS,
    Losses,
    arm_of,
    arm_table,
    change,
    evaluated,
    label,
    matched_table,
    size_table,
    sizes_chart,
    tradeoff_chart,
    used,
)
from kleiber.studies.study import Figures, Findings
from kleiber.types import Config, NonNegative


@dataclass(frozen=True, kw_only=True)
class Retrieval(OneRunStudy):
    """Losses on the old and on the new domain, by arm and way of retrieval.

    old, new   names of the data of both domains in the evaluation
    tolerance  nats within which the loss on the new domain counts as unchanged by the datastore of the old one
    """

    of_each_size: ClassVar[bool] = False

    old: str = "builtin/docs"
    new: str = "builtin/code"
    tolerance: NonNegative = 0.01

    def arm_of(self, config: Config) -> str:
        """The arm of the tables, since the runs of a method may have several arms of the design."""
        return arm_of(config)

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares all arms and ways. Raises ValueError without evaluated runs of plain fine-tuning and of bases."""
        losses = Losses(evaluated(runs, self.old, self.new))
        verdicts = decide_means(self.claims(losses), self.level)
        sizes = size_table(losses.rows, self.level)
        tables = {
            "Losses by arm and way of retrieval": arm_table(losses, self.level),
            "Change by retrieval on the old domain": sizes,
            "At equal loss on the new domain": matched_table(losses, self.level),
        }
        charts: Figures = {"tradeoff": partial(tradeoff_chart, losses)}
        if len(sizes) > 1:
            charts["sizes"] = partial(sizes_chart, sizes, losses.arms(), self.level)
        tables = {title: rows for title, rows in tables.items() if rows}
        return Findings(headline(losses, self.level), verdicts, tables, charts, methods=METHODS)

    def claims(self, losses: Losses) -> list[MeanClaim]:
        """The claims of the study; those that these runs cannot test have no values."""
        plain, base = losses.of(PLAIN), losses.of(BASE)
        text = "plain fine-tuning raises the loss on the old domain"
        mean_claims = [MeanClaim("forgets", text, change(plain, base, "old"), "higher")]
        for way in (way for way in WAYS if way != ALONE and losses.has(PLAIN, way)):
            name, helped = used(PLAIN, way), losses.of(PLAIN, way)
            text = f"{name} has a lower loss on the old domain than without"
            mean_claims.append(MeanClaim(f"{way}_old", text, change(helped, plain, "old")))
            if self.tolerance:
                text = f"{name} differs in loss on the new domain by less than {self.tolerance:g} from without"
                mean_claims.append(
                    MeanClaim(f"{way}_new", text, change(helped, plain, "new"), "within", self.tolerance)
                )
        neighbors = losses.of(PLAIN, KNN)
        if losses.has(BASE, KNN):
            text = f"{used(BASE, KNN)} the loss on the old domain is lower than without"
            mean_claims.append(MeanClaim("knn_base", text, change(losses.of(BASE, KNN), base, "old")))
        for arm in losses.arms():
            if arm in (BASE, PLAIN):
                continue
            name, code = label(arm), arm.replace(" ", "_").replace("=", "")
            text = f"{name} has a lower loss on the old domain than plain fine-tuning"
            mean_claims.append(MeanClaim(f"old_{code}", text, change(losses.of(arm), plain, "old")))
            text = f"{used(PLAIN, KNN)} has a lower loss on the old domain than {name}"
            mean_claims.append(MeanClaim(f"knn_against_{code}", text, change(neighbors, losses.of(arm), "old")))
            text = f"{used(arm, KNN)} has a lower loss on the old domain than without"
            mean_claims.append(MeanClaim(f"knn_with_{code}", text, change(losses.of(arm, KNN), losses.of(arm), "old")))
        return [claim._replace(unit=UNIT) for claim in mean_claims]


METHODS = (
    "All arms of a seed go on from the base run of that seed, at one learning rate and for equally many tokens, of "
    "which replay takes its share from the training text of the old domain. Every run was then scored on held-out text "
    "of both domains with a datastore of the old one (kNN-LM: Khandelwal et al. 2020, arXiv:1911.00172; text in front: "
    "Ram et al. 2023, arXiv:2302.00083), from which windows with text of the evaluated samples were left out. The "
    "weight of the neighbors and their temperature are the same on both domains; they were chosen on the first half of "
    "the samples of both, and all losses are those of the other half. Differences are paired by seed, with Student's "
    "intervals; those of the claims hold for all claims together (Bonferroni). Seconds and bytes are those "
    "of the machine that evaluated."
)


def headline(losses: Losses, level: float) -> str:
    """What fine-tuning cost the old domain, and how much of it each remedy takes back."""
    base, plain = losses.of(BASE), losses.of(PLAIN)
    lost = mean_estimate(change(plain, base, "old"), level, UNIT)
    if lost is None:
        return "What fine-tuning costs the old domain is not determined: no seed has a base and a fine-tuned run."
    parts, ways = [], [way for way in WAYS if way != ALONE and losses.has(PLAIN, way)]
    remedies = [*((PLAIN, way) for way in ways[:1]), *((a, ALONE) for a in losses.arms() if a not in (BASE, PLAIN))]
    for arm, way in remedies:
        sides = [mean_estimate(change(losses.of(arm, way), plain, domain), level, UNIT) for domain in ("old", "new")]
        if None not in sides:
            old, new = (side.text("+.3f") for side in sides if side is not None)
            parts.append(f"{used(arm, way)} changes the loss on the old domain by {old} and on the new one by {new}")
    cost = f"Fine-tuning costs the old domain {lost.text('+.3f')}."
    return f"{cost} Relative to it, {'; '.join(parts)}." if parts else cost
