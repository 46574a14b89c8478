"""The studies `forgetting`, `moe_forgetting` and `adapters`: what fine-tuning from common bases forgets and learns.

Every arm runs with several settings and learning rates, and is compared on its frontier at equal target loss, since an
arm that learns less also forgets less. Options name the arms, the one that the others are compared with, the target
loss, and the questions. How far fine-tuning moves the load of experts is read from drift metrics: total variation
distances, 0 to 1, of the shares of assignments by expert on fixed held-out text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kleiber.config.labels import data_label
from kleiber.records.catalog import Run
from kleiber.studies.claims import RATE, TARGET, Claim, Question, Result, decide_together, read_claims
from kleiber.studies.compare import contrast
from kleiber.studies.compare.arms import not_ready, untuned
from kleiber.studies.compare.contrast import BASES, NATS
from kleiber.studies.compare.frontier import (
    EQUAL,
    EqualTarget,
    averaged,
    require_common_base,
)
from kleiber.studies.compare.labels import text_labels
from kleiber.studies.compare.noise import on_line, seed_noise
from kleiber.studies.compare.rows import (
    CELL,
    FROZEN,
    MIXTURE,
    PLAIN,
    REPLAY,
    Rows,
    adapter_arms,
    is_fine_tuned,
    label,
    mean,
    method_of,
    model_arm,
    outcomes,
)
from kleiber.studies.compare.tables import matched_table, settings_table
from kleiber.studies.decision import Estimate, as_row, mean_estimate
from kleiber.studies.statements import answer_text, statement
from kleiber.studies.study import EqualTargetStudy, Figures, Findings
from kleiber.types import Config, Json, Row

ARMS = ("method", "model", "adapter")
MEASURES = {"F": "forgetting F", "target": "target loss"}
SLACK = 0.05  # relative difference of active parameters that still counts as equal
KINDS = {"load_shift": "before to after", "load_gap_before": "to the new text, before",
         "load_gap_after": "to the new text, after"}  # fmt: skip
Shifts = Mapping[tuple[str, str, int], float]  # distances by (kind, task, layer)


@dataclass(frozen=True)
class Forgetting(EqualTargetStudy):
    """How to compare.

    tolerance  arms are compared at (1 + tolerance) times a best target loss
    equal      whose best target loss: of the "reference", of the "weakest" arm, or of the weaker of each "pair"
    arms       what names an arm: the retention "method", the "model" (dense, moe, or moe with its router frozen), or
               the "adapter" (full, or rank r)
    reference  the arm that the others are compared with
    claims     about the measures F and target of arms, see `kleiber.studies.claims.Claim`: with `equal: target_loss` on
               their frontiers, without it at the best rate of each arm. Without claims: every arm has a lower F than
               the reference at equal target loss
    level      of the intervals
    """

    arms: str = "method"
    reference: str = PLAIN
    equal: str = "reference"
    claims: Sequence[Config] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, allowed in [("arms", self.arms, ARMS), ("equal", self.equal, EQUAL)]:
            if value not in allowed:
                raise ValueError(f"study.{key}={value} must be one of {', '.join(allowed)}")
        self.read_claims([self.reference])

    def read_claims(self, arms: Sequence[str]) -> list[Claim]:
        """The claims of the study about these arms. Raises ValueError, which names the key, for one that is invalid."""
        others = {"of": {}, "each": {"arm": {"not": [self.reference]}}, "against": {"arm": self.reference}}
        nodes = self.claims or [{**others, "equal": TARGET}]
        claims = read_claims(nodes, "study.claims", {"measure": "F"}, {"arm": arms})
        for at, claim in enumerate(claims):
            names = [side.get("arm") for _, side in claim.sides if [*side] == ["arm"]]
            wrong = claim.equal not in (None, TARGET) or claim.measure not in MEASURES or len(names) != 2
            if wrong or (claim.measure != "F" and claim.equal):
                raise ValueError(
                    f"study.claims[{at}] must compare a measure of two arms: F, with equal={TARGET} or each arm at its "
                    "best rate, or target, at the best rates"
                )
        return claims

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the forgetting of all arms at equal target loss."""
        record = self.compare(runs)
        tables = {
            "At equal target loss": matched_table(record),
            "Differences": [difference_row(result) for result in record["between_arms"]],
            "Where the experts' text went": record["loads"],
            "Settings": settings_table(record),
        }
        return Findings(
            question=f"Which method forgets least at equal loss on {new_text(record)}?",
            answer=headline(record),
            claims=record["results"],
            caveats=record["complaints"],
            tables={title: rows for title, rows in tables.items() if rows},
            figures=forgetting_figures(record),
            methods=methods(self, record["seed_noise"]),
            measure="F",
        )

    def compare(self, runs: Sequence[Run]) -> Json:
        """Returns rows, points, arms at equal target loss, and the claims with their decisions.

        Raises ValueError without a run of the reference arm, and where runs of one arm and seed have different bases.
        """
        rows = self.rows(runs)
        require_common_base(rows)
        target, points = EqualTarget(rows, self.reference, self.equal, self.tolerance), averaged(rows)
        chosen, order = target.chosen(points), in_order(rows, self.reference)
        waiting = not_ready(runs, 1, lambda run: self.arms).why
        asked = self.questions(target, self.read_claims(order), waiting)
        results = decide_together([*asked, *further_claims(rows, waiting)], self.level, variance=self.variance)
        noise = {measure: seed_noise(rows, measure) for measure in ("F", "target")}
        return {
            "study": self, "rows": rows, "points": points, "order": order,
            "best": target.best, "at": target.common, "matched": target.levels(self.level), "chosen": chosen,
            "results": results, "between_arms": results[: len(asked)],
            "loads": load_table(rows, chosen, self.level),
            "seed_noise": {"F": noise["F"].sd, "df": noise["F"].df, "target": noise["target"].sd},
            "complaints": self.complaints(target), "texts": text_labels(runs),
            "new": sorted({task for run in runs if is_fine_tuned(run) for task in run.stage["tasks"]}),
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
        return rows.assign(shifts=[shifts(by_name[name]) for name in rows["run"]])

    def questions(self, target: EqualTarget, claims: Sequence[Claim], waiting: str) -> list[Question]:
        """Returns the claims about two arms with their differences by seed; `waiting` says why the runs decide nothing.

        Arms of a seed start from one base, which pairs them.
        """
        present = set(target.rows["method"])
        return [self.question(target, claim, present, waiting) for claim in claims]

    def question(self, target: EqualTarget, claim: Claim, present: Collection[str], waiting: str) -> Question:
        """Returns a claim about two arms; see `questions`.

        present  arms with finished runs
        """
        arms, matched = arms_of(claim), claim.equal == TARGET
        fields = {"claim": claim, "text": wording(claim), "wording": wording, "unit": NATS, "better": "lower"}
        fields["samples"] = BASES
        absent = ", ".join(label(arm) for arm in arms if arm not in present)
        gaps = [] if absent else target.differences(claim.measure, *arms, matched=matched).tolist()
        if not gaps:
            problem = f"no finished run of {absent}" if absent else "no seed has both arms at the target loss"
            return Question(**fields, problem=problem)
        bounds = target.bounds(*arms) if matched else (False, False)
        untuned = "" if matched else next(filter(None, (self.untuned(target, arm) for arm in arms)), "")
        problem = untuned or waiting
        sides = " and ".join(label(arm) for arm, is_bound in zip(arms, bounds, strict=True) if is_bound)
        bound = f"of {'both ' * all(bounds)}{sides} only an upper bound of F was measured"
        return Question(
            **fields, values=gaps, open_ends=bounds, bound=bound, problem=problem, tuned=not untuned, paired=True,
            groups=target.groups(claim.measure, matched), weights=dict(zip(arms, (1.0, -1.0), strict=True)),
        )  # fmt: skip

    def untuned(self, target: EqualTarget, arm: str) -> str:
        """Why an arm is not tuned, for claims about best rates; "" where it is."""
        part = target.complete[target.complete["method"] == arm]
        best = float(target.best.loc[target.best["method"] == arm, "lr"].iloc[0])
        why = untuned(sorted(set(part["lr"])), best, part["seed"].nunique())
        return f"for {label(arm)}, {why}" if why else ""

    def complaints(self, target: EqualTarget) -> list[Json]:
        """Returns caveats: incomplete settings, frontiers that end before the target loss, unequal sizes of models."""
        texts = []
        for arm, settings in target.left_out().items():
            texts.append(("left_out", arm, f"is compared without {', '.join(settings)}: a mean over fewer seeds leaves "
                          "out those that diverged"))  # fmt: skip
        for arm, (loss, seeds) in target.bounded().items():
            others = ", and so is what others forget less" * (arm == self.reference)
            texts.append(("bound", arm, f"learns more than {loss:.4f} on the whole frontier of {seeds} of its "
                          f"{len(target.by_seed[arm])} seeds, so its F is an upper bound{others}; try lower learning "
                          "rates"))  # fmt: skip
        sizes = target.rows.groupby("method")["N"].median()
        for arm, size in sizes.items() if self.arms == "model" else ():
            if abs(size / sizes[self.reference] - 1) > SLACK:
                reference = f"{label(self.reference)} {sizes[self.reference]:,.0f}"
                texts.append(("unequal", str(arm), f"has {size:,.0f} active parameters and {reference}"))
        return [{"code": code, "text": f"{label(arm)} {text}"} for code, arm, text in texts]


def arms_of(claim: Claim) -> tuple[str, str]:
    """Returns the names of the two arms of a claim."""
    ours, theirs = (str(side["arm"]) for _, side in claim.sides)
    return ours, theirs


def wording(claim: Claim) -> str:
    """Returns a claim about two arms as a sentence without a period."""
    at_best = "" if claim.equal else ", each at its best rate"
    return statement(claim, MEASURES[claim.measure], NATS, lambda _, value: label(str(value))) + at_best


def forgetting_figures(record: Json) -> Figures:
    """Returns the figures that the runs allow, by name."""
    from kleiber.studies.compare.forgetting_figures import figures  # late, for the libraries of charts

    gaps = [{**difference_row(result), "bound": bound_of(result)} for result in record["between_arms"]]
    return figures(record, [gap for gap in gaps if gap["value"] is not None])


def difference_row(result: Result) -> Json:
    """Returns the row of the table of differences between two arms."""
    arm, against = arms_of(result.claim)
    quantity = f"{MEASURES[result.claim.measure]}, {'equal target loss' if result.claim.equal else 'best rates'}"
    names = {"arm": label(arm), "against": label(against), "difference in": quantity, "is": bound_of(result)}
    return {**names, **as_row(result.estimate)}


def bound_of(result: Result) -> str:
    """Returns what a difference is if not its estimate, where F of a side is a bound; see `charts.intervals.BOUNDS`."""
    below, above = result.question.open_ends
    return {(True, False): "at most", (False, True): "at least", (True, True): "not bounded by"}.get((below, above), "")


def further_claims(rows: Rows, waiting: str) -> list[Question]:
    """Returns the claims that need no target loss; `waiting` says why the runs decide nothing yet."""
    asked = [*contrast.questions_on_forgetting(rows), *frozen_load(rows)]
    return [replace(entry, problem=waiting) for entry in asked]


def in_order(rows: Rows, reference: str) -> list[str]:
    """The reference first, the others by name, with numbers in ascending order."""

    def key(arm: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", arm)]

    return sorted(set(rows["method"]), key=lambda arm: (arm != reference, key(arm)))


def new_text(record: Json) -> str:
    """Returns what people call the text that arms were fine-tuned on."""
    return " and ".join(record["texts"].get(task) or data_label(task) for task in record["new"]) or "the new text"


def headline(record: Json) -> str:
    """Returns who forgets least at equal target loss, or the decisions on the claims that were asked."""
    study, results = record["study"], record["between_arms"]
    where = "At equal target loss" if record["at"] is None else f"At a target loss of {record['at']:.3f} nats"
    compared = {arms_of(result.claim)[0] for result in results if result.claim.equal}
    best = next((row for row in record["matched"] if row["method"] in compared), None)
    if best is None:
        names = ", ".join(map(label, record["order"]))
        return f"{where} nothing can be compared: the arms are {names}, and no seed has two that reach it."
    if study.claims:
        return answer_text("", record["results"], study.level)
    level = Estimate(best["F"], best["lo"], best["hi"], best["reached"], "nats").text(".3g")
    level = f"{best['bound']} {level}".lstrip()
    decision = next(each.decision for each in results if each.claim.equal and arms_of(each.claim)[0] == best["method"])
    less = f"That this is less than with {label(study.reference)} is {decision}"
    least = f"{label(best['method'])} forgets least of the compared arms, {level}. {less}."
    return answer_text(f"{where} {least}", record["results"], study.level)


def methods(study: Forgetting, noise: Row) -> str:
    """Returns a paragraph for a paper."""
    whose = {
        "reference": f"the best of {label(study.reference)}", "weakest": "the best of the arm that learns least",
        "pair": "the best of the weaker arm of each pair",
    }  # fmt: skip
    spread = "not measured" if not noise["df"] else f"{noise['F']:.4f} nats ({noise['df']} degrees of freedom)"
    return METHODS.format(
        loss=whose[study.equal], tolerance=study.tolerance, level=study.level, spread=spread,
    ) + REPLAY * (study.arms == "method")  # fmt: skip


METHODS = (
    "All arms of a seed go on from base runs of that seed. F is the rise of the earlier tasks' mean held-out loss "
    "between the first and the last step, peak F its largest rise on a subset while training went on. Every arm was "
    "tuned over its settings and learning rates; F is read off its own frontier (straight lines between its "
    "undominated points, seed by seed) at {loss} and {tolerance:.1%} more. At its best rate an arm has the setting of "
    "least mean target loss, among those with the most seeds. Intervals are at {level:.0%}: of F Student's t with as "
    "many degrees of freedom as there are bases less one. Differences are between runs from one base; those of the "
    "claims hold together, with variances that are shrunk to each other (Smyth 2004, doi 10.2202/1544-6115.1027) as "
    "far as they agree. An F that is an upper bound decides no claim that a smaller F could turn. Seed noise of a run: "
    "{spread}. The choice among settings is "
    "made on the same runs, which favors arms with more of them; the line of WiSE-FT contains the ends of plain "
    "fine-tuning, so it cannot come out behind it. Replayed tokens count as tokens of the budget unless the design "
    "says otherwise. Expert loads are the share of assignments by expert on fixed held-out text; distances are total "
    "variation. After Biderman et al. 2024, arXiv:2405.09673, and Bethune et al. 2025, arXiv:2502.06042."
)


def shifts(run: Run) -> Shifts:
    """Returns the distances of a run; empty for a model without experts."""
    distances = {}
    for name, value in run.metrics.items():
        first, *rest = name.split("/")
        if first == "drift" and len(rest) >= 3 and rest[-2] in KINDS and value is not None:
            distances[rest[-2], "/".join(rest[:-2]), int(rest[-1])] = value
    return distances


def load_table(rows: Rows, chosen: Rows, level: float) -> list[Json]:
    """Returns a row for each arm at its chosen setting, text and layer: the mean distance over seeds, and interval.

    rows    with the column `shifts`
    chosen  one setting of each arm
    """
    kept = rows.merge(chosen[CELL], on=CELL).sort_values("method", kind="stable")
    table = []
    for arm, part in kept.groupby("method", sort=False):
        keys = {key for distances in part["shifts"] for key in distances}
        for kind, task, layer in sorted(keys, key=lambda key: ([*KINDS].index(key[0]), *key[1:])):
            values = [entry[kind, task, layer] for entry in part["shifts"] if (kind, task, layer) in entry]
            entry = {"arm": label(str(arm)), "text": task, "distance": KINDS[kind], "layer": layer}
            table.append({**entry, **as_row(mean_estimate(values, level, "total variation"))})
    return table


def frozen_load(rows: Rows) -> list[Question]:
    """The claim that freezing the router moves the load of the earlier text less; empty without such runs.

    Layers and learning rates are averaged within seeds.
    """
    shifted = rows.assign(moved=[earlier_shift(distances) for distances in rows["shifts"]])
    table = shifted.pivot_table(index=["seed", "lr"], columns="method", values="moved")
    if not {MIXTURE, FROZEN} <= set(table):
        return []
    gaps = (table[FROZEN] - table[MIXTURE]).dropna().groupby("seed").mean().tolist()
    claim = Claim(of={"arm": FROZEN}, against={"arm": MIXTURE}, measure="load_shift", equal=RATE)
    text = "the load of the earlier text moves less with the router frozen, at equal learning rate"
    unit = "of total variation, mean of layers and rates"
    return [Question(claim=claim, text=text, values=gaps, unit=unit, better="lower")] if gaps else []


def earlier_shift(distances: Shifts) -> float:
    """Mean over layers and earlier tasks of how far their load moved; nan where it is not known."""
    earlier = {task for kind, task, _ in distances if kind == "load_gap_before"}
    return mean([value for (kind, task, _), value in distances.items() if kind == "load_shift" and task in earlier])
