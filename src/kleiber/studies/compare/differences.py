"""Differences of two arms at equal tokens, FLOPs, training time, parameters or memory, and the claims they decide.

An arm that was trained at several numbers of tokens has a loss for each. Where the arms do not meet in the quantity
that is held equal, the loss of one of them is interpolated between two of its budgets, linearly in the logarithms of
loss and quantity, so a power law is interpolated exactly. Nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from kleiber.inference.contrasts import Cell, Contrast, estimate_family
from kleiber.studies.claims import Claim, Question, Result, Selection
from kleiber.studies.compare.arms import START, Arm, Unready, measured, rates_to_add, uneven
from kleiber.studies.compare.labels import LOSS, axis_label
from kleiber.studies.decision import QUANTITIES, Estimate, as_row, estimate_around, gaps_by_seed
from kleiber.studies.statements import statement
from kleiber.types import Json, Row
from kleiber.types.score import Score

GROWING = ("tokens", "flops", "seconds")  # quantities that grow along training, over which losses are interpolated
MOMENT, BEFORE = "moment", "start"  # the key of a claim that reads an arm before its last stage: {moment: start}
TOLERANCE = 0.05  # relative difference up to which a quantity counts as equal
AS_RUN = "seeds"  # what tables say where no quantity is held equal: runs are compared as they are, seed by seed

Ladder = Sequence[Arm]  # one arm at several numbers of tokens
Ladders = Mapping[str, Ladder]  # by the name of the arm


@dataclass(frozen=True)
class Pair:
    """A measure of two arms by seed at an equal quantity, or why there is none.

    ratio         of the quantity, arm over against, where the measure was taken
    interpolated  name of the arm whose measure was interpolated; "" for none
    arms          the arms at the budgets that were used; all of them have to be tuned
    why           why the arms cannot be compared; "" where they can
    """

    ours: Mapping[int, float]
    theirs: Mapping[int, float]
    ratio: float | None = None
    interpolated: str = ""
    arms: tuple[Arm, ...] = ()
    why: str = ""

    @property
    def untuned(self) -> Arm | None:
        """The first arm that is not tuned."""
        return next((arm for arm in self.arms if arm.untuned_because), None)


@dataclass(frozen=True)
class Differences:
    """How differences between arms are estimated in tables and figures: as claims are, each at a level of its own.

    variance    moderated or separate, see `kleiber.inference.contrasts.estimate_family`
    quantities  what is held equal, keys of QUANTITIES; None: nothing, the arms are compared as they were run
    """

    ladders: Ladders
    measure: str
    level: float
    variance: str
    quantities: Sequence[str | None] = tuple(QUANTITIES)

    @property
    def score(self) -> Score:
        """Unit, direction and label of the measure."""
        return measured(self.ladders, self.measure)

    def estimate(self, names: tuple[str, str], sides: Pair) -> Estimate | None:
        """Returns the difference of two arms with its interval; None without a common seed and where one diverged."""
        gaps = gaps_by_seed(sides.ours, sides.theirs)
        if not gaps or not all(map(math.isfinite, gaps)):
            return None
        contrast = Contrast(dict(zip(names, (1.0, -1.0), strict=True)), gaps)
        groups = groups_of(self.ladders, self.measure, sides.arms)
        half = math.nan
        if len(gaps) > 1:
            half = estimate_family([contrast], groups, self.level, self.variance).spreads[0].half_width(self.level)
        return estimate_around(math.fsum(gaps) / len(gaps), half, len(gaps), self.score.unit)

    def row(self, names: tuple[str, str], sides: Pair) -> Json:
        """The columns of a table of differences, with the number of seeds on which the first arm is lower."""
        gaps = gaps_by_seed(sides.ours, sides.theirs)
        note = sides.why or (f"{sides.interpolated} interpolated" if sides.interpolated else "")
        counts = {"lower on": sum(gap < 0 for gap in gaps), "ratio": sides.ratio}
        return {**as_row(self.estimate(names, sides)), **counts, "tuned": not sides.untuned, "note": note}

    def side_by_side(self, names: tuple[str, str]) -> list[Json]:
        """A row for each quantity that can be held equal: the difference of the arms, or why there is none."""
        arm, against = names
        rows = []
        for equal in self.quantities:
            sides = pair(self.ladders[arm], self.ladders[against], equal, self.measure)
            rows.append({"arm": arm, "against": against, "equal": equal_label(equal), **self.row(names, sides)})
        return rows


def equal_label(equal: str | None) -> str:
    """What tables call the quantity that is held equal; AS_RUN for None."""
    return AS_RUN if equal is None else QUANTITIES[equal].label


def at_vertex(arms: Sequence[Arm]) -> bool:
    """Whether all arms have a vertex of a parabola; they are compared at their best cells otherwise.

    The best cell of a grid is up to half a step off the optimum, so a vertex against a cell would win by that alone.
    """
    return all(arm.optimum.fitted for arm in arms)


def pair(ours: Ladder, theirs: Ladder, equal: str | None, measure: str = LOSS, vertex: bool = True) -> Pair:
    """Returns a measure of two arms at an equal quantity: at the largest at which they can be compared.

    Two budgets that are equal within TOLERANCE are preferred to an interpolation that is no further than that.

    equal   a key of QUANTITIES; None: each arm is compared at its last budget
    vertex  whether arms are compared at the vertices of parabolas where all have one
    """
    if equal is None:
        return met_pair(ours[-1], theirs[-1], measure, None, vertex)
    fact, label = QUANTITIES[equal]
    names = f"{ours[0].name} and {theirs[0].name}"
    for needed in dict.fromkeys((fact, *(() if equal in GROWING else ("tokens",)))):
        ours, theirs = ([arm for arm in ladder if needed in arm.facts] for ladder in (ours, theirs))
        if not ours or not theirs:
            name = label if needed == fact else QUANTITIES["tokens"].label
            return Pair({}, {}, why=f"{name} of {names} was not measured")
    met = [(a, b) for a in ours for b in theirs if same(a, b, fact) and (equal in GROWING or same(a, b, "tokens"))]
    meeting = max(met, key=lambda arms: extent(arms[0], fact), default=())
    reached = max((arm.facts[fact] for arm in meeting), default=0.0) * (1 + TOLERANCE)
    candidates = [(arm, theirs) for arm in ours] + [(arm, ours) for arm in theirs] if equal in GROWING else []
    for arm, others in sorted(candidates, key=lambda candidate: -candidate[0].facts[fact]):
        interpolated = interpolate(others, fact, arm.facts[fact], measure) if arm.facts[fact] > reached else None
        if interpolated is not None:
            values, used = interpolated
            if vertex and at_vertex((arm, *used)):
                values = between_budgets(used, fact, arm.facts[fact], measure, vertex=True)
            measured = arm.values(measure, vertex and at_vertex((arm, *used)))
            sides = (measured, values) if others is theirs else (values, measured)
            return Pair(*sides, 1.0, used[0].name, (arm, *used))
    if meeting:
        return met_pair(*meeting, measure, meeting[0].facts[fact] / meeting[1].facts[fact], vertex)
    a, b = (max(ladder, key=lambda arm: extent(arm, fact)) for ladder in (ours, theirs))
    ratio = a.facts[fact] / b.facts[fact]
    why = f"{names} differ in {label} by a factor of {ratio:.2f}"
    if equal in GROWING:
        why += ", and neither has a length of training between two of the other"
    return Pair({}, {}, ratio, arms=(a, b), why=why)


def extent(arm: Arm, fact: str) -> float:
    """Returns the training tokens of an arm; another quantity where they were not measured."""
    return arm.facts.get("tokens", arm.facts[fact])


def met_pair(ours: Arm, theirs: Arm, measure: str, ratio: float | None, vertex: bool = True) -> Pair:
    """Returns a measure of two arms at one budget each; see `pair`."""
    vertex = vertex and at_vertex((ours, theirs))
    return Pair(ours.values(measure, vertex), theirs.values(measure, vertex), ratio, arms=(ours, theirs))


def same(a: Arm, b: Arm, fact: str) -> bool:
    """Whether a quantity of two arms is equal within TOLERANCE; one that was not measured is not."""
    return fact in a.facts and fact in b.facts and abs(math.log(a.facts[fact] / b.facts[fact])) <= math.log1p(TOLERANCE)


def interpolate(
    budgets: Ladder, fact: str, at: float, measure: str = LOSS
) -> tuple[Mapping[int, float], tuple[Arm, Arm]] | None:
    """Returns a measure by seed at the quantity `at`, and the two budgets around it; None outside the budgets.

    Values that are not positive are interpolated linearly, those of runs that diverged stay infinite.
    """
    ladder = sorted(budgets, key=lambda arm: arm.facts[fact])
    below = [arm for arm in ladder if arm.facts[fact] <= at]
    above = [arm for arm in ladder if arm.facts[fact] >= at]
    if not below or not above:
        return None
    used = below[-1], above[0]
    return between_budgets(used, fact, at, measure), used


def between_budgets(
    budgets: tuple[Arm, Arm], fact: str, at: float, measure: str, vertex: bool = False
) -> Mapping[int, float]:
    """Returns a measure by seed at the quantity `at` between two budgets of an arm."""
    low, high = budgets
    begin, end = math.log(low.facts[fact]), math.log(high.facts[fact])
    share = (math.log(at) - begin) / (end - begin) if end > begin else 0.0
    lows, highs = low.values(measure, vertex), high.values(measure, vertex)
    return {seed: between(lows[seed], highs[seed], share) for seed in lows.keys() & highs.keys()}


def between(low: float, high: float, share: float) -> float:
    """Returns the value at `share` of the way from `low` to `high`, on a logarithmic scale where both are positive."""
    if min(low, high) > 0 and math.isfinite(low) and math.isfinite(high):
        return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return (1 - share) * low + share * high


def question(
    claim: Claim, ladders: Ladders, waiting: Unready, labels: Mapping[str, str] | None = None, plain: str = ""
) -> Question:
    """Returns a claim about arms with what their runs say about it.

    waiting  why the runs as a whole decide nothing, and what helps
    labels   what people call the arms; None for their names
    plain    name of the arm that verdicts subtract from others
    """
    measure = measured(ladders, claim.measure)

    def wording(stated: Claim) -> str:
        """Returns a claim about these arms as a sentence."""
        return sentence(stated, measure, labels or {})

    turned = bool(arms_of(claim)) and arm_named(claim.of) == plain
    fields = {
        "claim": claim, "text": wording(claim), "wording": wording, "turned": turned, "unit": measure.unit,
        "better": measure.better,
    }  # fmt: skip
    names = [arm_named(side) for _, side in claim.sides]
    absent = [name for name in dict.fromkeys(names) if name not in ladders]
    if absent:
        tuned_by = next(iter(ladders.values()))[0].measure
        problem = f"no finished run of {' and '.join(absent)} has the measure {tuned_by}"
        return Question(**fields, values=[], problem=problem, tuned=False)
    tuned_by = next(iter(ladders.values()))[0].measure
    sides = [side_values(claim, ladders)] if claim.against is None else contrasted(claim, ladders)
    if not at_vertex([arm for each in sides for arm in each.arms]) and len(sides) > 1:
        sides = contrasted(claim, ladders, vertex=False)
    gaps = [
        {seed: each.ours[seed] - each.theirs[seed] for seed in each.ours.keys() & each.theirs.keys()} for each in sides
    ]
    seeds = sorted(set.intersection(*map(set, gaps)))
    values = [gaps[0][seed] - sum(other[seed] for other in gaps[1:]) - claim.less for seed in seeds]
    arms = [arm for each in sides for arm in each.arms]
    arm = next((each.untuned for each in sides if each.untuned), None)
    name = "" if arm is None else in_sentence((labels or {}).get(arm.name, arm.name))
    untuned = "" if arm is None else f"for {name}, {arm.untuned_because}"
    unlike = uneven(arms) if arms else ""
    problems = [waiting.why, *(each.why for each in sides), untuned, unlike]
    before = any(MOMENT in side for _, side in claim.sides)
    return Question(
        **fields, values=values, problem=next(filter(None, problems), ""), tuned=not untuned, paired=before,
        groups={} if before else groups_of(ladders, claim.measure, arms),
        advice=waiting.advice or (rates_to_add(arms) if untuned or unlike else ""),
        weights=None if before else weights_of(claim), point=point_of(arms) if claim.measure == tuned_by else "",
    )  # fmt: skip


def weights_of(claim: Claim) -> dict[Hashable, float]:
    """Returns the signs of the sides of a claim by the names of their arms."""
    return {arm_named(side): float(sign) for sign, side in claim.sides}


def groups_of(ladders: Ladders, measure: str, arms: Sequence[Arm]) -> dict[Hashable, list[Cell]]:
    """Returns the cells of all arms by name: of those that are compared at the budget compared, of others at the last.

    An arm that is interpolated between two budgets has the cells of the larger one.
    """
    compared = {arm.name: arm for arm in arms}
    groups = {name: compared.get(name, ladder[-1]).cells(measure) for name, ladder in ladders.items()}
    return {name: cells for name, cells in groups.items() if cells}


def point_of(arms: Sequence[Arm]) -> str:
    """Returns how the measure of these arms at their best rates is estimated."""
    return "vertex of a parabola in log rate" if at_vertex(arms) else "best rate"


def arm_named(side: Selection) -> str:
    """Returns the name of the arm of a group."""
    return name_with_keys(str(side.get("arm")), {key: side[key] for key in side if key not in ("arm", MOMENT)})


def name_with_keys(arm: str, values: Selection) -> str:
    """Returns the name of an arm that values of further keys tell from others, such as `gelu, width=64`."""
    return ", ".join([arm, *(f"{key}={values[key]}" for key in sorted(values))])


def contrasted(claim: Claim, ladders: Ladders, vertex: bool = True) -> list[Pair]:
    """Returns the pairs of arms whose differences a claim is about: one, and with `than` another one."""
    sides = [side for _, side in claim.sides]
    return [
        change(ladders[arm_named(ours)], claim.measure)
        if theirs.get(MOMENT) == BEFORE
        else pair(ladders[arm_named(ours)], ladders[arm_named(theirs)], claim.equal, claim.measure, vertex)
        for ours, theirs in zip(sides[::2], sides[1::2], strict=True)
    ]


def side_values(claim: Claim, ladders: Ladders) -> Pair:
    """Returns the measure of the arm of a claim about a level, at its largest number of tokens."""
    arm = ladders[arm_named(claim.of)][-1]
    values = arm.values(claim.measure, arm.optimum.fitted)
    return Pair(values, dict.fromkeys(values, 0.0), arms=(arm,))


def change(ladder: Ladder, measure: str) -> Pair:
    """Returns a measure of an arm after its last stage and before, of the same runs."""
    arm = ladder[-1]
    return Pair(arm.values(measure), arm.values(f"{START}{measure}"), arms=(arm,))


def sentence(claim: Claim, measure: Score, labels: Mapping[str, str]) -> str:
    """Returns a claim about arms as a sentence without a period.

    measure  unit and label of what is compared
    labels   what people call the arms, where it is not their name
    """

    def label(_: str, value: object) -> str:
        return in_sentence(labels.get(str(value), str(value)))

    if claim.text or claim.against is None or claim.against.get(MOMENT) != BEFORE:
        return statement(claim, measure.label, measure.unit, label)
    arm, amount = label("arm", arm_named(claim.of)), f"{claim.margin:g} {measure.unit}".strip()
    negation, _, comparative = claim.direction.rpartition("_")
    size, by = f"{'not ' * bool(negation)}{comparative}", f", by more than {amount}" if claim.margin else ""
    if claim.direction == "within":
        return f"{measure.label} with {arm} is within {amount} of that before tuning"
    return f"{measure.label} is {size} with {arm} than before tuning{by}"


def in_sentence(label: str) -> str:
    """Returns the label of an arm as sentences have it: `dense (width 64)` for `dense, width 64`."""
    name, comma, rest = label.partition(", ")
    return f"{name} ({rest})" if comma else name


def plain_arm(claims: Sequence[Claim], first: str) -> str:
    """Returns the arm with which most claims compare others, of those that claims subtract; else the first arm."""
    pairs = [names for names in map(arms_of, claims) if names]
    subtracted = dict.fromkeys(against for _, against in pairs)
    return max(subtracted, key=lambda name: sum(name in names for names in pairs), default=first)


def arms_of(claim: Claim) -> tuple[str, ...]:
    """Returns the names of the two arms of a claim about a difference; empty for another claim."""
    if claim.against is None or claim.than is not None or MOMENT in claim.against:
        return ()
    return arm_named(claim.of), arm_named({**claim.of, **claim.against})


def claimed_rows(results: Sequence[Result]) -> dict[str, list[Json]]:
    """The differences of the claims about two arms, by measure, with the intervals that decide the claims."""
    rows: dict[str, list[Json]] = {}
    for result in results:
        names, claim = arms_of(result.claim), result.claim
        if names and result.estimate is not None:
            labels = {"arm": names[0], "against": names[1], "equal": equal_label(claim.equal)}
            row = {**labels, **as_row(result.estimate), "tuned": result.question.tuned, "note": ""}
            rows.setdefault(claim.measure, []).append(row)
    return rows


def differences_drawn(
    results: Sequence[Result], pairs: Sequence[tuple[str, str]], differences: Differences
) -> dict[str, Sequence[Row]]:
    """The differences in the figure, by the label of their measure; those of claims with the intervals that decide.

    Of a single pair they are all; of several pairs those of the claims, or at equal tokens.

    differences  estimates those of no claim
    """
    claimed = claimed_rows([result for result in results if arms_of(result.claim)])
    places = {
        measure: {(row["arm"], row["against"], row["equal"]): row for row in rows} for measure, rows in claimed.items()
    }
    decided = places.pop(differences.measure, {})
    of_claims, tokens = {key[:2] for key in decided}, QUANTITIES["tokens"].label
    rows = []
    for row in (row for names in pairs for row in differences.side_by_side(names)):
        place = (row["arm"], row["against"], row["equal"])
        alone = place[:2] not in of_claims and row["equal"] == tokens
        if row["value"] is not None and (len(pairs) == 1 or place in decided or alone):
            rows.append({**row, **decided.get(place, {}), "note": row["note"], "better": differences.score.better})
    others = {}
    for name, each in places.items():
        score = measured(differences.ladders, name)
        others[axis_label(score)] = [{**row, "better": score.better} for row in each.values()]
    return {axis_label(differences.score): rows, **others}
