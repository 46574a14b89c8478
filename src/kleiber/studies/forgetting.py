"""The studies `forgetting`, `moe_forgetting` and `adapters`: what fine-tuning from common bases forgets and learns.

Every arm runs with several settings and learning rates, and is compared on its frontier at equal target loss, since an
arm that learns less also forgets less. Options name the arms, the one that the others are compared with, the target
loss, and the questions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from kleiber.records.catalog import Run
from kleiber.studies import expert_loads
from kleiber.studies.compare import contrast
from kleiber.studies.compare.arms import untuned
from kleiber.studies.compare.contrast import QUESTIONS, Difference
from kleiber.studies.compare.decision import Estimate, estimate_around, level_of_each
from kleiber.studies.compare.frontier import (
    EQUAL,
    EqualTarget,
    averaged,
    best_settings,
    require_common_base,
)
from kleiber.studies.compare.labels import text_labels
from kleiber.studies.compare.noise import on_line, seed_noise
from kleiber.studies.compare.rows import CELL, PLAIN, REPLAY, Rows, adapter_arms, label, method_of, model_arm, outcomes
from kleiber.studies.compare.tables import matched_table, settings_table
from kleiber.studies.study import EqualTargetStudy, Figures, Findings
from kleiber.types import Json, NonNegative, Row

ARMS = ("method", "model", "adapter")
SLACK = 0.05  # relative difference of active parameters that still counts as equal


@dataclass(frozen=True)
class Forgetting(EqualTargetStudy):
    """How to compare.

    tolerance  arms are compared at (1 + tolerance) times a best target loss
    equal      whose best target loss: of the "reference", of the "weakest" arm, or of the weaker of each "pair"
    arms       what names an arm: the retention "method", the "model" (dense, moe, or moe with its router frozen), or
               the "adapter" (full, or rank r)
    reference  the arm that the others are compared with
    questions  asked of every arm: "matched" (forgets less at equal target loss), "forgets_less" and "learns_less"
               (each arm at its best rate)
    margin     asks in place of "matched" whether F of the two differs by less than this many nats
    claims     {code: {arm, against, question}}: what is asked in place of `questions` of every arm
    level      of the intervals
    """

    arms: str = "method"
    reference: str = PLAIN
    equal: str = "reference"
    questions: Sequence[str] = ("matched",)
    margin: NonNegative = 0.0
    claims: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = [*self.questions, *(claim.get("question", "matched") for claim in self.claims.values())]
        choices = [("arms", self.arms, ARMS), ("equal", self.equal, EQUAL)]
        for key, value, allowed in [*choices, *(("questions", question, tuple(QUESTIONS)) for question in asked)]:
            if value not in allowed:
                raise ValueError(f"study.{key}={value} must be one of {', '.join(allowed)}")
        for code, claim in self.claims.items():
            if not {"arm", "against"} <= claim.keys() <= {"arm", "against", "question"}:
                raise ValueError(f"study.claims.{code}={dict(claim)} must have arm and against, and may have question")

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the forgetting of all arms at equal target loss."""
        record = self.compare(runs)
        tables = {
            "At equal target loss": matched_table(record),
            "Differences": [entry.row() for entry in record["differences"]],
            "Where the experts' text went": record["loads"],
            "Settings": settings_table(record),
        }
        return Findings(
            headline=headline(record),
            verdicts=[*record["complaints"], *record["claims"]],
            tables={title: rows for title, rows in tables.items() if rows},
            figures=figures(record),
            methods=methods(self, record["seed_noise"]),
        )

    def compare(self, runs: Sequence[Run]) -> Json:
        """Returns rows, points, arms at equal target loss, differences and verdicts.

        Raises ValueError without a run of the reference arm, and where runs of one arm and seed have different bases.
        """
        rows = self.rows(runs)
        require_common_base(rows)
        target, points = EqualTarget(rows, self.reference, self.equal, self.tolerance), averaged(rows)
        chosen, gaps = target.chosen(points), self.gaps(target)
        others = len(further_claims(rows, self.level))
        each = level_of_each(self.level, max(1, len(gaps) + others), 1)
        differences = self.differences(target, gaps, each)
        noise = {measure: seed_noise(rows, measure) for measure in ("F", "target")}
        return {
            "study": self, "rows": rows, "points": points, "order": in_order(rows, self.reference),
            "best": target.best, "at": target.common, "matched": target.levels(self.level), "chosen": chosen,
            "differences": differences, "loads": expert_loads.load_table(rows, chosen, self.level),
            "seed_noise": {"F": noise["F"].sd, "df": noise["F"].df, "target": noise["target"].sd},
            "complaints": self.complaints(target), "texts": text_labels(runs),
            "claims": [*(entry.verdict for entry in differences), *further_claims(rows, each)],
        }  # fmt: skip

    def rows(self, runs: Sequence[Run]) -> Rows:
        """Returns the table of fine-tuned runs, with arms as options name them."""
        arm_of = {"method": method_of, "model": model_arm, "adapter": adapter_arms(runs)}[self.arms]
        rows: Rows = outcomes(runs, arm_of)
        if self.arms != "method":
            rows = rows[~on_line(rows["method"])].reset_index(drop=True)
        if self.reference not in set(rows["method"]):
            raise ValueError(f"no finished run of {label(self.reference)}, which the other arms are compared with")
        by_name = {run.name: run for run in runs}
        return rows.assign(shifts=[expert_loads.shifts(by_name[name]) for name in rows["run"]])

    def gaps(self, target: EqualTarget) -> list[PairGaps]:
        """Returns the differences that are asked for by seed, question by question, without those of no common seed."""
        arms = in_order(target.rows, self.reference)
        asked = [
            PairGaps(code, question, arm, against, target.differences(question, arm, against))
            for question in QUESTIONS
            for code, (arm, against) in self.pairs(question, arms).items()
            if {arm, against} <= {*arms}
        ]
        return [gaps for gaps in asked if len(gaps.by_seed)]

    def differences(self, target: EqualTarget, gaps: Sequence[PairGaps], level: float) -> list[Difference]:
        """Returns the mean of each of the `gaps`, with an interval of the confidence level `level`."""
        results = []
        for question in QUESTIONS:
            part = [entry for entry in gaps if entry.question == question]
            matched = question == "matched"
            halves = target.half_widths(question, [entry.by_seed for entry in part], level)
            for (code, _, arm, against, by_seed), half in zip(part, halves, strict=True):
                estimate = estimate_around(float(by_seed.mean()), half, len(by_seed), "nats")
                bounds = target.bounds(arm, against) if matched else (False, False)
                margin = self.margin if matched else 0.0
                results.append(Difference(code, question, arm, against, estimate, margin, bounds))
        return results

    def pairs(self, question: str, arms: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Returns the arm and the one that it is compared with, by code, of the claims that ask this question."""
        if not self.claims:
            asked = arms[1:] if question in self.questions else []
            return {f"{question}_{arm}".replace(" ", ""): (arm, self.reference) for arm in asked}
        claims = {code: claim for code, claim in self.claims.items() if claim.get("question", "matched") == question}
        return {code: (claim["arm"], claim["against"]) for code, claim in claims.items()}

    def complaints(self, target: EqualTarget) -> list[Json]:
        """Returns verdicts on incomplete settings, on frontiers that end before the target loss, and on arms that are
        absent, untuned, unequal.

        Tuning matters where arms are compared at their best rates, and sizes where models are compared.
        """
        texts = []
        for arm, settings in target.left_out().items():
            texts.append(("left_out", arm, f"is compared without {', '.join(settings)}: a mean over fewer seeds leaves "
                          "out those that diverged"))  # fmt: skip
        for arm, (loss, seeds) in target.bounded().items():
            others = ", and so is what others forget less" * (arm == self.reference)
            texts.append(("bound", arm, f"learns more than {loss:.4f} on the whole frontier of {seeds} of its "
                          f"{len(target.by_seed[arm])} seeds, so its F is an upper bound{others}; try lower learning "
                          "rates"))  # fmt: skip
        present = in_order(target.rows, self.reference)
        for code, claim in self.claims.items():
            absent = [claim[side] for side in ("arm", "against") if claim[side] not in present]
            texts += [("absent", arm, f"has no finished run, so {code} is not tested; arms are {', '.join(present)}")
                      for arm in absent]  # fmt: skip
        asked = {*self.questions, *(claim.get("question") for claim in self.claims.values())}
        best = target.best.groupby("method")["lr"].first()
        for arm, part in target.complete.groupby("method") if asked & {"forgets_less", "learns_less"} else ():
            why = untuned(sorted(set(part["lr"])), float(best[arm]), part["seed"].nunique())
            texts += [("untuned", str(arm), f"is not tuned: {why}")] * bool(why)
        sizes = target.rows.groupby("method")["N"].median()
        for arm, size in sizes.items() if self.arms == "model" else ():
            if abs(size / sizes[self.reference] - 1) > SLACK:
                reference = f"{label(self.reference)} {sizes[self.reference]:,.0f}"
                texts.append(("unequal", str(arm), f"has {size:,.0f} active parameters and {reference}"))
        return [{"code": code, "level": "warn", "text": f"{label(arm)} {text}"} for code, arm, text in texts]


class PairGaps(NamedTuple):
    """By seed, how much less an arm forgets or learns than another: a question of QUESTIONS."""

    code: str
    question: str
    arm: str
    against: str
    by_seed: Rows


def further_claims(rows: Rows, level: float) -> list[Json]:
    """Returns the verdicts that need no target loss, each with an interval of the confidence level `level`."""
    return [*contrast.verdicts_on_forgetting(rows, level), *expert_loads.frozen_load(rows, level)]


def in_order(rows: Rows, reference: str) -> list[str]:
    """The reference first, the others by name, with numbers in ascending order."""

    def key(arm: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", arm)]

    return sorted(set(rows["method"]), key=lambda arm: (arm != reference, key(arm)))


def headline(record: Json) -> str:
    """Returns who forgets least at equal target loss, or the decisions on the claims that were asked."""
    study, differences = record["study"], record["differences"]
    where = "At equal target loss" if record["at"] is None else f"At a target loss of {record['at']:.4f} nats"
    compared = {entry.arm for entry in differences if entry.question == "matched"}
    best = next((row for row in record["matched"] if row["method"] in compared), None)
    if best is None:
        names = ", ".join(map(label, record["order"]))
        return f"{where} nothing can be compared: the arms are {names}, and no seed has two that reach it."
    if study.claims:
        return f"{where}: {'; '.join(entry.verdict['text'] for entry in differences)}."
    answers = [entry.verdict["text"] for entry in differences if entry.arm == best["method"]]
    level = contrast.format_level(Estimate(best["F"], best["lo"], best["hi"], best["reached"], "nats"))
    level = f"{best['bound']} {level}".lstrip()
    least = f"{label(best['method'])} forgets least of the arms compared with {label(study.reference)}"
    answer = "; ".join(answers)
    return f"{where} {least} (F {level} nats). {answer[:1].upper()}{answer[1:]}."


def methods(study: Forgetting, noise: Row) -> str:
    """Returns a paragraph for a paper."""
    whose = {
        "reference": f"the best of {label(study.reference)}", "weakest": "the best of the arm that learns least",
        "pair": "the best of the weaker arm of each pair",
    }  # fmt: skip
    spread = "not measured" if not noise["df"] else f"{noise['F']:.4f} nats ({noise['df']} degrees of freedom)"
    over = {"pair": "is the spread of differences over seeds, pooled over pairs"}
    return METHODS.format(
        loss=whose[study.equal], tolerance=study.tolerance, level=study.level, spread=spread,
        noise=over.get(study.equal, "seeds and arms leave over"),
    ) + REPLAY * (study.arms == "method")  # fmt: skip


METHODS = (
    "All arms of a seed go on from base runs of that seed. F is the rise of the earlier tasks' mean held-out loss "
    "between the first and the last step, peak F its largest rise on a subset while training went on. Every arm was "
    "tuned over its settings and learning rates; F is read off its own frontier (straight lines between its "
    "undominated points, seed by seed) at {loss} and {tolerance:.1%} more. At its best rate an arm has the setting of "
    "least mean target loss, among those with the most seeds. Intervals are Student's at {level:.0%}: of F with as "
    "many degrees of freedom as there are bases less one, of differences within seeds with the noise that {noise}. "
    "Those of the claims hold for all claims of the study at once (Bonferroni). An F that is an upper bound decides no "
    "claim that a smaller F could turn. Seed noise of a run: {spread}. The choice among settings is "
    "made on the same runs, which favors arms with more of them; the line of WiSE-FT contains the ends of plain "
    "fine-tuning, so it cannot come out behind it. Replayed tokens count as tokens of the budget unless the design "
    "says otherwise. Expert loads are the share of assignments by expert on fixed held-out text; distances are total "
    "variation. After Biderman et al. 2024, arXiv:2405.09673, and Bethune et al. 2025, arXiv:2502.06042."
)


def figures(record: Json) -> Figures:
    """Returns the figures that the runs allow, by name."""
    from kleiber.studies.compare import chart_forms
    from kleiber.studies.compare import figures as drawing

    study, rows, order, at = (record[name] for name in ("study", "rows", "order", "at"))
    names = [label(arm) for arm in order]
    charts: Figures = {"pareto": lambda: chart_forms.frontier(record["points"], order, at)}
    reached = [
        {**row, "series": label(row["method"]), "value": row["F"]} for row in record["matched"] if row["reached"]
    ]
    if reached and at is not None:
        title = f"Forgetting at a target loss of {at:.4f} nats, {study.level:.0%} intervals"
        charts["matched"] = lambda: chart_forms.estimates(reached, names, chart_forms.FORGETTING, title)
    gaps = [
        {"panel": gap.measure, "series": label(gap.arm), "bound": gap.bound, **asdict(gap.estimate)}
        for gap in record["differences"]
    ]
    if gaps:
        heading = f"Differences between arms; all intervals hold at once at {study.level:.0%}"
        charts["differences"] = lambda: chart_forms.estimates(gaps, names, "nats per token", heading, zero=True)
    keys = record["chosen"][CELL]
    paths = rows.merge(keys, on=CELL)[["method", "seed", "path"]].explode("path").dropna()
    if len(paths):
        steps = paths.assign(step=paths["path"].str[0].astype(float), F=paths["path"].str[1].astype(float))
        steps = steps[steps["step"] > 0]
        charts["trajectory"] = lambda: drawing.over(steps, "step", "F", order, drawing.CHOSEN)
    if rows["lr"].nunique() > 1:
        trained = rows[~on_line(rows["method"])]
        best = best_settings(trained, ["method", "lr"], ["setting", "tokens"], "target")
        charts["tuning"] = lambda: drawing.over(trained.merge(best, on=CELL), "lr", "target", order)
    charts["matrix"] = lambda: drawing.task_losses(rows, keys, order, record["texts"])
    if record["loads"]:
        charts["loads"] = lambda: drawing.loads(record["loads"], names)
    return charts
