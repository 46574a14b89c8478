"""The study `ablation`: does a change still help at several times the largest run?

A plain arm and one or more changed arms are trained on a ladder of widths and training lengths, each at its best
learning rate there. The gap of each changed arm is extrapolated in training compute (`ablation_ladder`); whether its
sign holds at a larger scale may stay undecided. Widths that are held out of the fit show whether predictions hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from kleiber.config.errors import Status
from kleiber.records.catalog import Run
from kleiber.studies.ablation_ladder import (
    UNIT,
    Ladder,
    Scale,
    check,
    compute_gain,
    crossing_text,
    crossings,
    ladder_of,
    predict,
    read_scales,
    sign,
)
from kleiber.studies.compare.arms import arm_name, planned_arms
from kleiber.studies.compare.decision import Claim, Decision, Estimate, level_of_each, mean_estimate, overall
from kleiber.studies.study import Figures, Findings, IntervalStudy
from kleiber.types import Count, Json, Positive, Row

SCALES = (2.0, 5.0, 10.0)  # multiples of the largest compute at which the gap is predicted


@dataclass(frozen=True)
class Change:
    """A changed arm against the plain one.

    fitted, held_out  the scales of the fit, and those that only test its predictions
    predictions       gap by multiple of the largest fitted compute
    decision          on the claim that the change lowers the loss at the target
    """

    name: str
    fitted: Sequence[Scale]
    held_out: Sequence[Scale]
    ladder: Ladder
    predictions: Mapping[float, Estimate]
    decision: Decision

    @property
    def at_edge(self) -> list[str]:
        return [f"{scale.place} ({arm})" for scale in (*self.fitted, *self.held_out) for arm in scale.at_edge]


@dataclass(frozen=True, kw_only=True)
class Ablation(IntervalStudy):
    """The gaps between a plain arm, the first, and changed arms as functions of training compute.

    arm        of a cell: set by the design
    target     multiple of the largest compute at which a change has to help: the claim that the study decides
    fit_width  wider models are held out of the fit and test its predictions; null: all are fitted
    """

    decides: ClassVar[bool] = True

    arm: str | None = None
    target: Positive = 10.0
    fit_width: Count | None = None

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Predicts the gaps and decides the claims. Raises ValueError without a changed arm or with too few scales."""
        names = planned_arms([run.config for run in runs]) or list(dict.fromkeys(filter(None, map(arm_name, runs))))
        if len(names) < 2:
            raise ValueError(
                f"an ablation compares changed arms with a plain one, the first, and these runs have {len(names)} arms"
            )
        plain, *changed = names
        unfinished = any(run.status not in (Status.FINISHED, Status.DIVERGED) for run in runs)
        changes = [self.change(runs, plain, name, unfinished, len(changed)) for name in changed]
        decision = overall([change.decision for change in changes])
        checks = [
            {"arm": change.name, **check(change.ladder, scale, self.level)}
            for change in changes
            for scale in change.held_out
        ]
        edges = {change.name: change.at_edge for change in changes}
        comparison = {
            "schema": "kleiber.compare/1", "measure": "loss", "equal": "tokens", "level": self.level, "looks": 1,
            "decision": str(decision), "why": "some best rates are at the edge of their grids" if any(edges.values())
            else "", "more_seeds_needed": None,
            "estimates": [{"arm": change.name, "against": plain, "equal": "tokens", "times": times, "value": gap.value,
                           "lo": gap.lo, "hi": gap.hi, "n": gap.n, "unit": UNIT, "tuned": not change.at_edge}
                          for change in changes for times, gap in change.predictions.items()],
        }  # fmt: skip
        tables = {
            "Predicted gap": [
                {"arm": change.name, "times the largest run": times, "gap": gap.value, "lo": gap.lo, "hi": gap.hi,
                 "seeds": gap.n, "sign": sign(gap)}
                for change in changes for times, gap in change.predictions.items()
            ],
            "Worth in compute": [{"arm": change.name, **asdict(compute_gain(change.ladder, self.level))}
                                 for change in changes],
            **({"Predictions at held-out widths": checks} if checks else {}),
            "Gap by scale": [row for change in changes for row in scale_rows(change, self.level)],
        }  # fmt: skip
        figures: Figures = {}
        if len(changes) > 1:
            figures["gap_by_arm"] = lambda: arms_figure(changes, self.target)
        for change in changes:
            name = "gap" if len(changes) == 1 else f"gap_{change.name}"
            figures[name] = lambda change=change: gap_figure(change, plain, self.level)
        methods = METHODS.format(level=f"{self.level:.0%}") + (SEVERAL if len(changes) > 1 else "")
        headline = self.headline(changes, plain, checks)
        verdicts = self.verdicts(changes, edges, checks)
        return Findings(headline, verdicts, tables, figures, methods=methods, comparison=comparison)

    def change(self, runs: Sequence[Run], plain: str, name: str, unfinished: bool, claims: int) -> Change:
        """Reads and extrapolates one changed arm; runs that are unfinished or untuned decide nothing."""
        scales = read_scales(runs, plain, name)
        widest = self.fit_width or max((scale.width for scale in scales), default=0)
        fitted, held_out = (
            [scale for scale in scales if (scale.width <= widest) == inside] for inside in (True, False)
        )
        ladder = ladder_of(fitted)
        each = level_of_each(self.level, claims, 1)
        decision = Claim(name, plain).decide(predict(ladder, self.target, each))
        if unfinished or any(scale.at_edge for scale in fitted):
            decision = Decision.NOT_TESTED
        times = sorted({1.0, *SCALES, self.target})
        predictions = {scale: predict(ladder, scale, self.level) for scale in times}
        return Change(name, fitted, held_out, ladder, predictions, decision)

    def headline(self, changes: Sequence[Change], plain: str, checks: Sequence[Row]) -> str:
        """Returns the decisions at the target; with several changes also how many predictions held."""
        at = f"at {self.target:g} times the largest compute"
        if len(changes) == 1:
            (change,) = changes
            gain = compute_gain(change.ladder, self.level)
            text = (
                f"{change.name} against {plain} {at}: {change.decision}; predicted gap "
                f"{change.predictions[self.target].text()}. At the largest run the change is worth {gain.text('.2f')}."
            )
        else:
            groups = {
                decision: [change.name for change in changes if change.decision == decision] for decision in Decision
            }
            parts = [f"{decision} for {', '.join(names)}" for decision, names in groups.items() if names]
            text = f"A lower loss than {plain} {at} is {'; '.join(parts)}."
        if not checks:
            return text
        held = held_text(checks)
        return f"{text} {held[0].upper()}{held[1:]}."

    def verdicts(
        self, changes: Sequence[Change], edges: Mapping[str, Sequence[str]], checks: Sequence[Row]
    ) -> list[Json]:
        """Returns a verdict for each prediction and crossing, for rates at the edge, and for held-out widths."""
        out: list[Json] = []
        for change in changes:
            end = "" if len(changes) == 1 else f"_{change.name}"
            for times, gap in change.predictions.items():
                text = f"at {times:g} times the largest compute {change.name} is {sign(gap)}: {gap.text()}"
                out.append({"code": f"sign_{times:g}x{end}", "level": "note", "text": text})
            text = crossing_text(crossings(change.ladder, self.level))
            out.append({"code": f"crossing{end}", "level": "note", "text": f"{change.name}: {text}"})
        if places := sorted({place for each in edges.values() for place in each}):
            text = f"the best learning rate is at the edge of its grid at {'; '.join(places)}: widen design.lrs"
            out.append({"code": "untuned", "level": "warn", "text": text})
        if checks:
            out.append({"code": "held_out", "level": "note", "text": held_text(checks)})
        return out


METHODS = (
    "All arms were trained at every width and length with the same seeds and learning rates, and enter each scale at "
    "the rate of the least mean loss over all seeds. The gap is the difference of log losses of the same seed. A line "
    "in log10 of the training compute was fitted to the gaps of each seed; predictions are means over these lines with "
    "Student's intervals at {level}. The intervals hold if the gap is a line in log compute. The compute-equivalent "
    "gain is the gap at the largest scale over the slope of the plain arm's log loss in log compute."
)
SEVERAL = " Claims are decided at one level for all changed arms together (Bonferroni)."


def held_text(checks: Sequence[Row]) -> str:
    """Returns how many predictions held at the widths that were held out of the fit."""
    signs = [row["sign"] for row in checks]
    held = [row["holds"] for row in checks if row["holds"] is not None]
    return (
        f"at held-out widths, {sum(held)} of {len(held)} intervals of the error of prediction contain 0; the predicted "
        f"sign was right at {signs.count('right')}, wrong at {signs.count('wrong')}, and undecided at "
        f"{signs.count('undecided')} of {len(signs)} scales"
    )


def scale_rows(change: Change, level: float) -> list[Json]:
    """Returns a table row for each scale: its place, the best rates and the gap with its interval over seeds."""
    rows = []
    for scale in (*change.fitted, *change.held_out):
        gap = mean_estimate(list(scale.gaps.values()), level, UNIT)
        if gap is not None:
            rows.append({"arm": change.name, "width": scale.width, "tokens": scale.tokens, "compute": scale.compute,
                         "gap": gap.value, "lo": gap.lo, "hi": gap.hi, "rate of the plain arm": scale.rates[0],
                         "rate of the changed arm": scale.rates[1],
                         "fitted": "yes" if scale in change.fitted else "held out"})  # fmt: skip
    return rows


def gap_figure(change: Change, plain: str, level: float) -> object:
    """Gap vs training compute: each scale with its interval, the line, and its band up to the largest prediction."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import log_axis, with_title

    rows = [{**row, **_percent(row)} for row in scale_rows(change, level)]
    largest = float(change.ladder.compute.max())
    last = max(largest * max(change.predictions), max(row["compute"] for row in rows))
    at = np.geomspace(change.ladder.compute.min(), last, 60)
    predicted = [(C, predict(change.ladder, C / largest, level)) for C in at.tolist()]
    band = pd.DataFrame([{"compute": C, **_percent(asdict(gap) | {"gap": gap.value})} for C, gap in predicted])
    x = log_axis("compute", "training compute (FLOPs)", at)
    y, low = (alt.Y(f"{name}:Q", title=f"loss relative to {plain} (%)") for name in ("gap", "lo"))
    colors = alt.Scale(domain=["yes", "held out"], range=["#0072B2", "#D55E00"])
    color = alt.Color("fitted:N", scale=colors, legend=alt.Legend(title="in the fit") if change.held_out else None)
    base, line = alt.Chart(pd.DataFrame(rows)).encode(x=x, color=color), alt.Chart(band).encode(x=x)
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(y=y)
    inside = line.transform_filter(f"datum.compute <= {largest}").mark_line(color="black", strokeWidth=2).encode(y=y)
    layers = [
        zero, line.mark_area(opacity=0.2, color="#444").encode(y=low, y2="hi:Q"),
        line.mark_line(color="black", strokeDash=[5, 4]).encode(y=y), inside,
        base.mark_rule().encode(y=low, y2="hi:Q"), base.mark_point(filled=True, size=50, opacity=1).encode(y=y),
    ]  # fmt: skip
    subtitle = f"points: scales, {level:.0%} intervals over seeds; line and band: fitted, dashed where predicted"
    return with_title(alt.layer(*layers), f"Gap of {change.name} vs training compute", subtitle=subtitle)


def arms_figure(changes: Sequence[Change], target: float) -> object:
    """The gap of each changed arm at the largest fitted scale and predicted at the target, with intervals."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import kind_color, with_title

    places = {1.0: "largest run", target: f"{target:g} times the largest run"}
    rows = [
        {"arm": change.name, "at": place, **_percent(asdict(gap) | {"gap": gap.value})}
        for change in changes
        for times, place in places.items()
        for gap in [change.predictions[times]]
    ]
    order = sorted(
        (change.name for change in changes), key=lambda name: next(r["gap"] for r in rows if r["arm"] == name)
    )
    base = alt.Chart(pd.DataFrame(rows)).encode(
        y=alt.Y("arm:N", title=None, sort=order), yOffset=alt.YOffset("at:N", sort=list(places.values())),
        color=kind_color(list(places.values()), "at", alt.Legend(title=None)),
    )  # fmt: skip
    x, low = (alt.X(f"{name}:Q", title="loss relative to the plain arm (%)") for name in ("gap", "lo"))
    zero = alt.Chart(pd.DataFrame({"gap": [0.0]})).mark_rule(color="#888").encode(x=x)
    layers = [zero, base.mark_rule().encode(x=low, x2="hi:Q"), base.mark_point(filled=True, size=50).encode(x=x)]
    return with_title(
        alt.layer(*layers), "Gap of each change, at the largest run and predicted", height=60 + 40 * len(changes)
    )


def _percent(row: Row) -> Row:
    """The columns gap, lo and hi of a row in percent."""
    return {key: None if row[key] is None else 100 * row[key] for key in ("gap", "lo", "hi")}
