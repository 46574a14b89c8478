"""The study `ablation`: does a change still help at several times the largest run?

A plain arm and one or more changed arms are trained on a ladder of widths and training lengths, each at its best
learning rate there. The gap of each changed arm is extrapolated in training compute (`ablation_ladder`); whether its
sign holds at a larger scale may stay undecided. Widths that are held out of the fit show whether predictions hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kleiber.config.errors import Status
from kleiber.config.labels import readable
from kleiber.records.catalog import Run
from kleiber.studies.ablation_figures import arms_figure, gap_figure, scale_rows
from kleiber.studies.ablation_ladder import (
    UNIT,
    Ladder,
    Scale,
    arm_at_width,
    check,
    compute_gain,
    crossing_text,
    crossings,
    ladder_of,
    predict,
    predicted,
    read_scales,
    sign,
)
from kleiber.studies.claims import Claim, Question, Result, decide_together
from kleiber.studies.compare.arms import arm_name, planned_arms
from kleiber.studies.compare.places import refuse_planned_twins
from kleiber.studies.decision import Estimate, as_row
from kleiber.studies.statements import answer_text
from kleiber.studies.study import ClaimStudy, Figures, Findings, PlannedPoint
from kleiber.types import Count, Json, Positive, Row

SCALES = (2.0, 5.0, 10.0)  # multiples of the largest compute at which the gap is predicted


@dataclass(frozen=True)
class Change:
    """A changed arm against the plain one.

    fitted, held_out  the scales of the fit, and those that only test its predictions
    ladder            None where runs diverged at every rate of so many scales that no line can be fitted
    predictions       gap by multiple of the largest fitted compute; empty without a ladder
    """

    name: str
    fitted: Sequence[Scale]
    held_out: Sequence[Scale]
    ladder: Ladder | None
    predictions: Mapping[float, Estimate]

    @property
    def at_edge(self) -> list[str]:
        return [f"{scale.place} ({arm})" for scale in (*self.fitted, *self.held_out) for arm in scale.at_edge]

    @property
    def tuned(self) -> bool:
        """Whether both arms were tuned, and alike."""
        return not (self.at_edge or self.uneven)

    @property
    def uneven(self) -> list[str]:
        """Why the arms were not tuned alike at some scales."""
        return sorted({scale.uneven for scale in (*self.fitted, *self.held_out) if scale.uneven})

    @property
    def diverged(self) -> list[str]:
        """The arms and widths at which runs diverged at every learning rate, with the seeds at the best of them."""
        seeds: dict[tuple[str, int], set[int]] = {}
        for scale in (*self.fitted, *self.held_out):
            for arm, each in scale.diverged.items():
                seeds.setdefault((arm, scale.width), set()).update(each)
        return [
            f"{arm} at width {width} (seed{'s' * (len(each) > 1)} {', '.join(map(str, sorted(each)))})"
            for (arm, width), each in sorted(seeds.items())
        ]

    def checks(self, level: float) -> list[Json]:
        """Returns a row for each held-out scale: its measured gap and the predicted one."""
        if self.ladder is None:
            return []
        return [{"arm": self.name, **check(self.ladder, scale, level)} for scale in self.held_out if scale.gaps]


@dataclass(frozen=True, kw_only=True)
class Ablation(ClaimStudy):
    """The gaps between a plain arm, the first, and changed arms as functions of training compute.

    arm        of a cell: set by the design
    target     multiple of the largest compute at which a change has to help: the claim that the study decides
    fit_width  wider models are held out of the fit and test its predictions; null: all are fitted
    """

    arm: str | None = None
    target: Positive = 10.0
    fit_width: Count | None = None

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError where two planned runs of an arm are at the same width, tokens, rate and seed."""
        refuse_planned_twins(points, arm_at_width)
        return []

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Predicts the gaps and decides the claims. Raises ValueError without a changed arm or with too few scales."""
        names = planned_arms([run.config for run in runs]) or list(dict.fromkeys(filter(None, map(arm_name, runs))))
        if len(names) < 2:
            raise ValueError(
                f"an ablation compares changed arms with a plain one, the first, and these runs have {len(names)} arms"
            )
        plain, *changed = names
        unfinished = any(run.status not in (Status.FINISHED, Status.DIVERGED) for run in runs)
        changes = [self.change(runs, plain, name) for name in changed]
        waiting = "some runs have not finished" if unfinished else ""
        results = decide_together(
            [self.question(change, plain, waiting) for change in changes], self.level, variance=self.variance
        )
        checks = [row for change in changes for row in change.checks(self.level)]
        ladders = {change.name: change.ladder for change in changes if change.ladder is not None}
        tables = {
            "Predicted gap": [
                {"arm": change.name, "times the largest run": times, "gap": gap.value, "lo": gap.lo, "hi": gap.hi,
                 "seeds": gap.n, "sign": sign(gap)}
                for change in changes for times, gap in change.predictions.items()
            ],
            "Worth in compute": [{"arm": name, **as_row(compute_gain(ladder, self.level))}
                                 for name, ladder in ladders.items()],
            "Predictions at held-out widths": checks,
            "Gap by scale": [row for change in changes for row in scale_rows(change, self.level)],
        }  # fmt: skip
        tables = {title: rows for title, rows in tables.items() if rows}
        figures: Figures = {}
        if len(ladders) > 1:
            figures["gap_by_arm"] = lambda: arms_figure(
                [c for c in changes if c.ladder is not None], self.target, plain, self.level
            )
        for change in changes:
            if change.ladder is not None:
                name = "gap" if len(changes) == 1 else f"gap_{change.name}"
                figures[name] = partial(gap_figure, change, change.ladder, plain, self.level)
        methods = METHODS.format(level=f"{self.level:.0%}") + (SEVERAL if len(changes) > 1 else "")
        return Findings(
            self.headline(changes, results, plain, checks),
            question="Which changes lower the loss at larger training compute?",
            claims=results,
            estimates=[self.estimate(change, plain, times) for change in changes for times in change.predictions],
            caveats=self.caveats(changes),
            tables=tables,
            figures=figures,
            methods=methods,
            measure="loss",
        )

    def question(self, change: Change, plain: str, waiting: str) -> Question:
        """Returns the claim that a change lowers the loss at the target; `waiting` says why runs decide nothing yet."""
        at = {"compute": f"{self.target:g} times the largest"}
        claim = Claim(of={"arm": change.name, **at}, against={"arm": plain}, measure="loss", equal="tokens")

        def wording(stated: Claim) -> str:
            """Returns the claim with a direction as a sentence."""
            negation, _, comparative = stated.direction.rpartition("_")
            article, names = "no" if negation else "a", [f'"{readable(name)}"' for name in (change.name, plain)]
            has = f"{names[0]} is predicted to have {article} {comparative} loss than {names[1]}"
            return f"{has} at {self.target:g} times the largest compute"

        ladder = change.ladder
        edge = f"the best rate is at the edge of its grid at {change.at_edge[0]}" if change.at_edge else ""
        diverged = diverged_text(change.diverged) if change.diverged else ""
        return Question(
            claim=claim, text=wording(claim), wording=wording, unit=UNIT, better="lower",
            values=[] if ladder is None else predicted(ladder, self.target),
            problem=waiting or diverged or next(iter([*change.uneven, edge]), ""),
            tuned=change.tuned, paired=True, point="a line in log compute for each seed",
        )  # fmt: skip

    def estimate(self, change: Change, plain: str, times: float) -> Json:
        """The entry of `estimates` in findings.json of a predicted gap."""
        return {
            "measure": "loss", "arm": change.name, "against": plain, "times": times, "less": 0.0, "equal": "tokens",
            **as_row(change.predictions[times]), "better": "lower", "tuned": change.tuned,
            "method": "lines in log compute", "level": self.level,
        }  # fmt: skip

    def change(self, runs: Sequence[Run], plain: str, name: str) -> Change:
        """Reads and extrapolates one changed arm."""
        scales = read_scales(runs, plain, name)
        widest = self.fit_width or max((scale.width for scale in scales), default=0)
        fitted, held_out = (
            [scale for scale in scales if (scale.width <= widest) == inside] for inside in (True, False)
        )
        try:
            ladder = ladder_of(fitted)
        except ValueError:
            if not any(scale.diverged for scale in fitted):
                raise
            return Change(name, fitted, held_out, None, {})
        times = sorted({1.0, *SCALES, self.target})
        return Change(name, fitted, held_out, ladder, {scale: predict(ladder, scale, self.level) for scale in times})

    def headline(self, changes: Sequence[Change], results: Sequence[Result], plain: str, checks: Sequence[Row]) -> str:
        """Returns the decisions at the target; with several changes also how many predictions held."""
        at = f"at {self.target:g} times the largest compute"
        if len(changes) == 1:
            (change,), (result,) = changes, results
            text = f"{change.name} against {plain} {at}: {result.decision}"
            text += f", since {diverged_text(change.diverged)}" if change.diverged else ""
            if change.ladder is not None:
                gap = change.predictions[self.target].text()
                text += f"; predicted gap{' of the other seeds' if change.diverged else ''} {gap}. "
                text += gain_text(compute_gain(change.ladder, self.level))
            text += "."
        else:
            text = answer_text("", results, self.level)
        crossed = [
            f"{change.name}: {crossing_text(crossings(change.ladder, self.level))}."
            for change in changes
            if change.ladder is not None and len(changes) == 1
        ]
        held = held_text(checks) if checks else ""
        return " ".join([text, *crossed, *([f"{held[0].upper()}{held[1:]}."] if held else [])])

    def caveats(self, changes: Sequence[Change]) -> list[Json]:
        """Returns where arms are not tuned, or not alike, and where no rate trained every seed."""
        out: list[Json] = []
        if places := sorted({place for change in changes for place in change.at_edge}):
            text = f"the best learning rate is at the edge of its grid at {'; '.join(places)}: widen design.lrs"
            out.append({"code": "untuned", "text": text})
        for reason in sorted({reason for change in changes for reason in change.uneven}):
            text = f"{reason}: give the arms as many rates of the same spacing in design.lrs"
            out.append({"code": "untuned", "text": text})
        if places := sorted({place for change in changes for place in change.diverged}):
            out.append(
                {"code": "diverged", "text": f"{diverged_text(places)}: a change that this concerns is not tested"}
            )
        return out


METHODS = (
    "All arms were trained at every width and length with the same seeds, and enter each scale at the rate of the "
    "least mean loss over all seeds. A change is not tested if the two arms have different numbers or spacings of "
    "learning rates, or if at some scale no rate trained every seed, where the loss of a run that diverged is "
    "infinite. The gap is the difference of log losses of the same seed. A "
    "line in log10 of the training compute was fitted to the gaps of each seed; predictions are means over these lines "
    "with Student's intervals at {level}. The intervals hold if the gap is a line in log compute. The "
    "compute-equivalent gain is the gap at the largest scale over the slope of the plain arm's log loss in log "
    "compute, with an interval by the delta method; it is not estimated unless the interval of this slope is below 0."
)
SEVERAL = (
    " Claims are decided at one level for all changed arms together: the variance over seeds of each is shrunk to that "
    "of the others (Smyth 2004), and intervals are joint, by the multivariate t of the contrasts."
)


def gain_text(gain: Estimate | None) -> str:
    """Returns what a change is worth in compute as a sentence without a period."""
    if gain is None:
        return "The loss of the plain arm falls too little with compute to tell what the change is worth in compute"
    return f"At the largest run the change is worth {gain.text('.2f')}"


def diverged_text(places: Sequence[str]) -> str:
    """Returns a sentence about the entries of `Change.diverged`."""
    return f"no learning rate trained every seed of {'; '.join(places)}"


def held_text(checks: Sequence[Row]) -> str:
    """Returns how many predictions held at the widths that were held out of the fit."""
    signs = [row["sign"] for row in checks]
    held = [row["holds"] for row in checks if row["holds"] is not None]
    right, wrong, undecided = (signs.count(sign) for sign in ("right", "wrong", "undecided"))
    return (
        f"of {len(signs)} predictions at held-out widths, the sign of the difference is right in {right}, wrong in "
        f"{wrong} and undecided in {undecided}; {sum(held)} of {len(held)} intervals of the error of prediction "
        "contain 0"
    )
