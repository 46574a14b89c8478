"""The study `compare`: is one arm better than another, at equal what, and how sure is that?

Each arm enters at its learning rate of best mean over all seeds. An arm that is not tuned decides nothing. Claims say
what is compared and what is held equal. All other differences, and their trends over tokens and sizes, are shown beside
the claims and decide nothing. The studies `sparsity`, `moe_gain`, `routers` and `upcycling` are such claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar

from kleiber.config.extensions import runtime_signature
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import (
    Arm,
    ArmOf,
    arm_name,
    arms_in_order,
    not_ready,
    planned_arms,
    read_ladders,
)
from kleiber.studies.compare.costs import AT_ONE, LATENCY_METHODS, arms_without_latency, cost_table
from kleiber.studies.compare.decision import QUANTITIES, Claim, from_row, level_of_each, overall
from kleiber.studies.compare.differences import (
    Ladders,
    differences_drawn,
    judge,
    more_seeds_of_all,
    same,
    side_by_side,
)
from kleiber.studies.compare.labels import LOSS, arm_labels, axis_label, with_labels
from kleiber.studies.compare.measures import Measures, direction_of
from kleiber.studies.compare.places import refuse_planned_twins
from kleiber.studies.compare.tables import (
    Pairs,
    at_common_budget,
    multiplier_sentence,
    multiplier_table,
    tokens_table,
    trend_verdict,
    trends,
)
from kleiber.studies.study import Figures, Findings, IntervalStudy, PlannedPoint
from kleiber.types import Count, NonNegative, Row

SCHEMA = "kleiber.compare/1"


@dataclass(frozen=True)
class Compare(IntervalStudy):
    """Compares arms that the design `arms` trained, and decides claims about them.

    arm      of a cell: set by the design
    measure  column of the table of runs, such as loss or val/sst2/accuracy, by which arms are tuned and compared
    equal    what is held equal: tokens, flops, seconds (of training), params or memory (of inference)
    claims   claims {arm, against, direction: lower|higher|not_lower|not_higher|within, margin, measure, equal}; measure
             and equal are those of the study where a claim has none. Without claims: the second arm is better than the
             first, which means lower for losses and errors and higher for accuracies and other scores. A measure of
             unknown direction needs claims that state one
    looks    number of times that the runs will be looked at, each time with more seeds, until the claims are decided.
             A study that is looked at more often decides nothing
    sizes    arms of one kind of model at several sizes: the report tells at which size their measure would be that
             of the arm of the first claim, at training tokens that all of them have
    """

    decides: ClassVar[bool] = True

    arm: str | None = None
    measure: str = LOSS
    equal: str = "tokens"
    claims: Sequence[Mapping[str, str | NonNegative]] = field(default_factory=tuple)
    looks: Count = 1
    sizes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.equal not in QUANTITIES:
            raise ValueError(f"study.equal={self.equal} must be one of {', '.join(QUANTITIES)}")
        self.read_claims(("", ""))

    def read_claims(self, arms: Sequence[str], better: str = "lower") -> list[Claim]:
        """The claims of the study about these arms. Raises ValueError, which names the key, for one that is invalid.

        better  which value of the measure is better, for the claim of a study without claims
        """
        if not self.claims:
            return [Claim(arms[1], arms[0], better, 0.0, self.measure, self.equal)]
        shared = {"measure": self.measure, "equal": self.equal}
        return [read_claim({**shared, **node}, f"study.claims[{at}]") for at, node in enumerate(self.claims)]

    def direction(self, runs: Sequence[Run]) -> str:
        """Whether a "lower" or a "higher" measure is better, as `direction_of`."""
        return direction_of(self.measure, self.read_claims(()) if self.claims else (), runs)

    def ladders(self, runs: Sequence[Run], arm_of: ArmOf = arm_name) -> dict[str, list[Arm]]:
        """The arms of the runs at each of their budgets, as `read_ladders`."""
        return read_ladders(runs, self.measure, arm_of, higher_is_better=self.direction(runs) == "higher")

    def labels(self, runs: Sequence[Run], arm_of: ArmOf = arm_name) -> dict[str, str]:
        """What figures call each arm, as `arm_labels`."""
        return arm_labels(runs, arm_of)

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError for arms of equal configs, fewer than two arms, and a claim about an arm without runs.

        Also where two planned runs of an arm are at the same tokens, rate and seed.
        """
        planned = [point.config["study"].get("arm") for point in points]  # None: a base that arms start from
        arms = list(dict.fromkeys(str(name) for name in planned if name is not None))
        same_runs = [name for name in planned_arms([point.config for point in points]) if name not in arms]
        if same_runs:
            raise ValueError(
                f"design.arms: {same_runs[0]} has the same runs as another arm; does an override set its key?"
            )
        if len(arms) < 2:
            raise ValueError(f"design.arms plans {len(arms)} arms, and two are needed")
        self.require_arms(arms)
        refuse_planned_twins(points, lambda config: config["study"].get("arm"))
        return []

    def named_arms(self, arms: Sequence[str]) -> dict[str, Sequence[str]]:
        """The arms that each key of the study names, where the runs have `arms`."""
        claims = self.read_claims(arms)
        return {"claims": [name for claim in claims for name in (claim.arm, claim.against)], "sizes": self.sizes}

    def require_arms(self, arms: Sequence[str]) -> None:
        """Raises ValueError where the study names an arm that is not among `arms`."""
        for key, names in self.named_arms(arms).items():
            for name in names:
                if name not in arms:
                    raise ValueError(f"study.{key}: {name} is not an arm of these runs; name some of {', '.join(arms)}")

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the differences of the claims and decides them."""
        return compare(runs, self, arm_name)


def read_claim(node: Mapping[str, str | float], key: str) -> Claim:
    """Returns the claim of a config node. Raises ValueError, which names `key`, for other keys or values."""
    parameters = runtime_signature(Claim, "Claim").parameters
    if not {"arm", "against"} <= node.keys() <= parameters.keys():
        further = ", ".join(name for name in parameters if name not in ("arm", "against"))
        raise ValueError(f"{key}={dict(node)} must have the keys arm and against, and may have {further}")
    try:
        return Claim(**{**node, "arm": str(node["arm"]), "against": str(node["against"])})  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def compare(runs: Sequence[Run], study: Compare, arm_of: ArmOf, further_claims: int = 0) -> Findings:
    """Compares the arms of runs. `further_claims` of a study share the error rate with those of `study.claims`.

    Raises ValueError for fewer than two arms, a claim or a size of another arm, and a measure that no run has.
    """
    measure, level = study.measure, study.level
    ladders = study.ladders(runs, arm_of)
    order = arms_in_order(runs, arm_of)
    claims, scores = study.read_claims(order, study.direction(runs)), Measures(runs)
    study.require_arms(order)
    why_not = not_ready(runs, study.looks, arm_of)
    each = level_of_each(level, len(claims) + further_claims, study.looks)
    results = [judge(claim, ladders, each, why_not) for claim in claims]
    pairs, arms = compared_pairs(claims, ladders), at_common_budget(ladders)
    facts = {name: arm.facts for name, arm in arms.items()}
    changes = trends(pairs, ladders, measure, level)
    multipliers, warnings = multiplier_table(claims[0].arm, study.sizes, ladders, level)
    tables = {
        "Claims": [result.row() for result in results],
        "Differences": [row for names in pairs for row in side_by_side(names, ladders, measure, level)],
        "Differences by training tokens": tokens_table(pairs, ladders, measure, level),
        "Trends of differences": changes,
        "Effective parameter multiplier": multipliers,
        "Arms": [arm.row() for ladder in ladders.values() for arm in ladder],
        "Speed and memory": cost_table(facts, pairs),
    }
    drawn = differences_drawn(claims, pairs, ladders, measure, each)
    decision = overall([result.decision for result in results])
    comparison = {
        "schema": SCHEMA, "measure": measure, "equal": study.equal, "level": level, "looks": study.looks,
        "decision": str(decision),
        "why": "; ".join(dict.fromkeys(result.why for result in results if result.decision == decision)),
        "estimates": [result.to_json() for result in results],
        "more_seeds_needed": more_seeds_of_all(results),
    }  # fmt: skip
    return Findings(
        headline=" ".join(
            [
                *(result.sentence() for result in results),
                *(multiplier_sentence(row, scores[measure]) for row in multipliers),
            ]
        ),
        verdicts=[
            *(result.verdict() for result in results),
            *(trend_verdict(row, scores[measure]) for row in changes),
            *warnings,
            *arms_without_latency(facts),
        ],
        tables={title: rows for title, rows in tables.items() if rows},
        figures=figures(claims, arms, tables, measure, scores, drawn, each, study.labels(runs, arm_of)),
        methods=METHODS.format(level=f"{level:.0%}", claims=len(claims) + further_claims, looks=study.looks)
        + further_methods(tables),
        comparison=comparison,
    )


METHODS = (
    "Every arm was trained at every one of its learning rates with every seed; runs with the same seed see the same "
    "samples in the same order. An arm enters at the rate of best mean over all seeds. It counts as tuned with at "
    "least five rates and three seeds, if its best rate is neither the least nor the largest, and if all arms have as "
    "many rates with the same spacing. Differences are paired by seed. Intervals are Student's; those of the claims "
    "together have a confidence of {level} over {claims} claims and {looks} looks (Bonferroni) and are drawn in the "
    "figure of differences; those of the tables below have it each. Where arms do not meet in what is held equal, the "
    "loss of one is interpolated between two of its budgets, on logarithmic scales. Inference memory is that of the "
    "weights and of the keys and values of one context, in fp32."
)


def compared_pairs(claims: Sequence[Claim], ladders: Ladders) -> Pairs:
    """The pairs of arms of the claims, and of every other arm with the first one."""
    pairs = dict.fromkeys((claim.arm, claim.against) for claim in claims)
    named = {name for names in pairs for name in names}
    first, *rest = ladders
    pairs |= dict.fromkeys((name, first) for name in rest if name not in named)
    return [names for names in pairs if ladders.keys() >= set(names)]


def difference_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each row of a table of differences: the difference with its interval, or why there is none."""
    return [
        f"  {row['arm']} - {row['against']} at equal {row['equal']:<18} "
        + "  ".join([*([] if row["value"] is None else [from_row(row).text()]), *filter(None, [row["note"]])])
        for row in rows
    ]


def further_methods(tables: Mapping[str, Sequence[Row]]) -> str:
    """The methods of the tables that not every comparison has."""
    sentences = {
        "Trends of differences": " A trend over tokens is the slope of the difference on the binary logarithm of the "
        "tokens; one over sizes is the difference of the differences of two pairs of arms, seed by seed.",
        "Effective parameter multiplier": " The effective parameter multiplier is the size at which a line through the "
        "values of arms of one kind over log N (active parameters outside the embeddings) meets that of the arm, "
        "over the size of the arm (after Clark et al. 2022, arXiv:2202.01169).",
    }
    has_latency = any(name in row for row in tables["Arms"] for name in AT_ONE)
    texts = [text for title, text in sentences.items() if tables[title]]
    return "".join([*texts, *([LATENCY_METHODS] if has_latency else [])])


def figures(
    claims: Sequence[Claim],
    arms: Mapping[str, Arm],
    tables: Mapping[str, Sequence[Row]],
    measure: str,
    scores: Measures,
    gaps: Mapping[str, Sequence[Row]],
    level: float,
    names: Mapping[str, str],
) -> Figures:
    """The figures: differences, arms, tuning, and those over tokens, sizes and other measures that there are.

    scores  units and labels of the measures
    gaps    differences with intervals of the confidence level `level`, by the label of their measure
    names   what the figures call each arm
    """
    label = axis_label(scores[measure])
    arms = {names[name]: arm for name, arm in arms.items()}
    gaps = {name: with_labels(rows, names) for name, rows in gaps.items()}
    charts: Figures = {}
    if any(math.isfinite(value) for arm in arms.values() for value in arm.best_values.values()):
        charts["arms"] = lambda: _figures().side_by_side(arms, label)
    if any(len(arm.values_by_rate) > 1 for arm in arms.values()):
        charts["tuning"] = lambda: _figures().tuning(arms, label)
    if any(gaps.values()):
        charts["differences"] = lambda: _figures().differences(gaps, [*arms], level)
    if trajectory := with_labels(tables["Differences by training tokens"], names):
        charts["tokens"] = lambda: _figures().over_tokens(trajectory, [*arms], label)
    rows, first = with_labels([arm.row() for arm in arms.values()], names), next(iter(arms.values()))
    across = {f"by_{claim.measure.rpartition('/')[2]}": claim.measure for claim in claims if claim.measure != measure}
    if not all("params" in arm.facts and same(arm, first, "params") for arm in arms.values()):
        across["sizes"] = "params"
    for name, column in across.items():
        placed = [row for row in rows if row.get(column) is not None]
        title = "parameters" if column == "params" else axis_label(scores[column])
        if placed:
            charts[name] = lambda placed=placed, x=(column, title): _figures().scatter(
                placed, [*arms], x, (measure, label)
            )
    return charts


def _figures() -> ModuleType:
    """The module of figures, which imports altair."""
    from kleiber.studies.compare import figures

    return figures
