"""The study `instructions`: what instruction tuning teaches a small model, and what it forgets.

The arms and claims between them are those of `Compare`. This module adds the model before tuning, which every run
scores before its first step, and claims of the arms against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import Arm, arm_name, arms_in_order, not_ready
from kleiber.studies.compare.decision import Claim, Decision, level_of_each, mean_estimate, overall
from kleiber.studies.compare.differences import Result, decide, judge, more_seeds_of_all
from kleiber.studies.compare.labels import LOSS, readable
from kleiber.studies.compare.measures import Measures
from kleiber.studies.compare.study import Compare, compare, read_claim
from kleiber.studies.compare.tables import at_common_budget
from kleiber.studies.study import Findings
from kleiber.types import Json, NonNegative
from kleiber.types.score import Score

START = "before tuning"
FOLLOWED = "eval/instructions/"
Starts = Mapping[str, Mapping[str, Mapping[int, float]]]  # scores before tuning by arm, measure and seed
SHOWN = {  # of all instructions together
    "accuracy": "instructions followed (share)",
    "unasked": "followed by answers to other prompts (share)",
    "lift": "lift: followed, less by answers to other prompts",
}


@dataclass(frozen=True)
class StartClaim(Claim):
    """A claim about an arm and the model before tuning."""

    def text(self, measure: str) -> str:
        """The statement as a sentence without a period."""
        if self.direction == "within":
            return f"{self.arm} differs in {measure} by less than {self.margin:g} from {self.against}"
        return self.difference(measure)


@dataclass(frozen=True)
class Instructions(Compare):
    """Compares arms of instruction tuning with one another, and each with the model that it started from.

    against_start  claims {arm, direction, margin, measure} about what tuning changed, as in `claims`; they share the
                   error rate with those
    """

    against_start: Sequence[Mapping[str, str | NonNegative]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.start_claims()

    def start_claims(self) -> list[StartClaim]:
        """The claims about the start. Raises ValueError, which names the key, for one that is invalid."""
        claims = []
        for at, node in enumerate(self.against_start):
            key = f"study.against_start[{at}]"
            if not {"arm"} <= node.keys() <= {"arm", "direction", "margin", "measure"}:
                raise ValueError(
                    f"{key}={dict(node)} must have the key arm, and may have direction, margin and measure"
                )
            claim = read_claim({"measure": self.measure, **node, "against": START}, key)
            claims.append(StartClaim(**asdict(claim)))
        return claims

    def named_arms(self, arms: Sequence[str]) -> dict[str, Sequence[str]]:
        return {**super().named_arms(arms), "against_start": [claim.arm for claim in self.start_claims()]}

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Decides all claims, and shows what each arm scores beside its start."""
        about_start = self.start_claims()
        findings = compare(runs, self, arm_name, len(about_start))
        ladders, starts = self.ladders(runs), start_scores(runs)
        arms, between = at_common_budget(ladders), self.read_claims(arms_in_order(runs), self.direction(runs))
        level = level_of_each(self.level, len(about_start) + len(between), self.looks)
        why_not = not_ready(runs, self.looks)
        scores = Measures(runs)
        judged = [judge_start(claim, scores[claim.measure], arms, starts, level, why_not) for claim in about_start]
        results = [*judged, *(judge(claim, ladders, level, why_not) for claim in between)]
        rows = score_rows(arms, starts, scores, self.level)
        decision = overall([result.decision for result in results])
        comparison = {
            **(findings.comparison or {}),
            "decision": str(decision),
            "why": "; ".join(dict.fromkeys(result.why for result in results if result.decision == decision)),
            "estimates": [result.to_json() for result in results],
            "more_seeds_needed": more_seeds_of_all(results),
        }
        changed = [result.row() for result in judged]
        # Arms start from one base, so their sizes differ by adapters alone.
        charts = {name: draw for name, draw in findings.figures.items() if name != "sizes"}
        return replace(
            findings,
            headline=" ".join([*(result.sentence() for result in judged), findings.headline]),
            verdicts=[
                *({**result.verdict(), "code": f"start_{result.claim.arm}"} for result in judged),
                *findings.verdicts,
            ],
            tables={"Scores before and after tuning": rows, "Claims about the start": changed, **findings.tables},
            figures={"scores": partial(chart, rows, self.labels(runs)), **charts},
            methods=f"{METHODS} {findings.methods}",
            comparison=comparison,
        )


METHODS = (
    "Every run starts from the same trained weights, or from those of the base of its seed, and learns the answers of "
    "instruction data. Losses are those of answer tokens of held-out instructions, and of the text that the start was "
    "trained on. Instructions that a rule verifies (after IFEval, Zhou et al. 2023, arXiv:2311.07911) are answered "
    "greedily; the lift is the share of answers that follow the instruction of their prompt less the share of answers "
    "to other prompts that follow it. Differences to the start are paired by seed, and their claims share the error "
    "rate with those between arms."
)


def start_scores(runs: Sequence[Run]) -> Starts:
    """The scores of the models before their first step; LOSS is that of the task, where a run has a single one."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        arm = arm_name(run)
        if arm is None or not run.finished:
            continue
        stage = run.leaves[0]
        measured = dict(stage["start_metrics"])
        names = [f"val/{task}/loss" for task in stage["tasks"]]
        losses = [measured[name] for name in names if name in measured]
        if len(losses) == 1:
            measured[LOSS] = losses[0]
        for measure, value in measured.items():
            scores.setdefault(arm, {}).setdefault(measure, {})[run.config["seed"]] = value
    return scores


def scores_before(starts: Starts, measure: str) -> Mapping[str, Mapping[int, float]]:
    """A measure by seed before tuning: of the start that all arms share, or of each arm where their starts differ."""
    by_arm = {arm: scores[measure] for arm, scores in starts.items() if measure in scores}
    shared: dict[int, float] = {}
    for scores in by_arm.values():
        for seed, value in scores.items():
            if not math.isclose(shared.setdefault(seed, value), value, rel_tol=1e-4):
                return {f"{arm}, {START}": scores for arm, scores in by_arm.items()}
    return {START: shared}


def judge_start(
    claim: Claim, measure: Score, arms: Mapping[str, Arm], starts: Starts, level: float, why_not: str
) -> Result:
    """Decides a claim about the change of a measure from the start to an arm at its best rate.

    why_not  why the runs as a whole decide nothing; "" where they can
    """
    arm = arms.get(claim.arm)
    if arm is None:
        return Result(claim, measure, None, Decision.NOT_TESTED, f"no finished run of {claim.arm}")
    start = starts.get(claim.arm, {}).get(claim.measure, {})
    problem = arm.untuned_because or why_not
    values, tuned = arm.values(claim.measure), not arm.untuned_because
    return decide(claim, measure, values, start, level, "change", problem, tuned=tuned)


def score_rows(arms: Mapping[str, Arm], starts: Starts, scores: Measures, level: float) -> list[Json]:
    """A row for each measure and for the start and each arm at its best rate: the mean over seeds with its interval."""
    measures = dict.fromkeys(name for scores in starts.values() for name in scores if is_shown(name))
    rows = []
    for measure in measures:
        by_model = {**scores_before(starts, measure), **{name: arm.values(measure) for name, arm in arms.items()}}
        for model, values in by_model.items():
            estimate = mean_estimate([*values.values()], level, scores[measure].unit)
            if estimate is not None:
                rows.append({"measure": title_of(measure), "model": model, **asdict(estimate)})
    return rows


def is_shown(measure: str) -> bool:
    """Whether a measure is a loss of a text, or of all instructions together."""
    if measure.startswith(FOLLOWED):
        return measure.rpartition("/")[2] in SHOWN and measure.count("/") == FOLLOWED.count("/") + 2
    return measure.startswith("val/") and measure.endswith("/loss")


def title_of(measure: str) -> str:
    """What people call a measure."""
    middle, last = measure.split("/")[1:-1], measure.rpartition("/")[2]
    return SHOWN[last] if last in SHOWN else f"loss on {'/'.join(middle)} (nats per token)"


def chart(rows: Sequence[Json], labels: Mapping[str, str]) -> object:
    """Losses and instruction following before and after tuning, a panel for each measure, with intervals.

    labels  what each arm is called
    """
    import altair as alt

    from kleiber.charts.theme import apply_theme, kind_color

    named = {**labels, **{f"{arm}, {START}": f"{label}, {START}" for arm, label in labels.items()}, START: START}
    table = pd.DataFrame([{**row, "model": named[row["model"]]} for row in rows])
    models = list(dict.fromkeys(table["model"]))
    arms_first = sorted(models, key=lambda model: model.endswith(START))  # with the colors of the page
    color = kind_color(models, "model", order=arms_first)
    panels = []
    for measure, part in table.groupby("measure", sort=False):
        base = alt.Chart(part).encode(y=alt.Y("model:N", sort=models, title=None), color=color)
        low, value = (
            alt.X(f"{name}:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4, labelOverlap=True))
            for name in ("lo", "value")
        )
        layers = alt.layer(
            base.mark_rule(strokeWidth=1.6).encode(x=low, x2="hi:Q"),
            base.mark_point(filled=True, size=60, opacity=1).encode(
                x=value, tooltip=["model", alt.Tooltip("value:Q", format=".4f")]
            ),
        )
        panels.append(layers.properties(title=" ".join(map(readable, str(measure).split())), width=240, height=80))
    title = alt.TitleParams("Losses and instruction following before and after tuning", anchor="start")
    return apply_theme(alt.concat(*panels, columns=2).properties(title=title))
