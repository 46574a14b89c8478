"""Tables that stand beside the claims of a comparison: trends of differences, and the size multiplier.

Of arms that fine-tune, `matched_table` and `settings_table`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from kleiber.studies.compare.arms import Arm, measured
from kleiber.studies.compare.differences import Differences, Ladder, Ladders, met_pair, pair, same
from kleiber.studies.compare.rows import label
from kleiber.studies.decision import Estimate, as_row, from_row, mean_estimate
from kleiber.types import Json, Row
from kleiber.types.score import Score

Pairs = Sequence[tuple[str, str]]  # names of an arm and of the arm that it is compared with
Gaps = Mapping[int, Mapping[float, float]]  # differences by seed and training tokens


def shared_budgets(ours: Ladder, theirs: Ladder) -> list[tuple[Arm, Arm]]:
    """Returns the pairs of budgets with equal training tokens, in ascending order."""
    return [(a, b) for a in ours for b in theirs if same(a, b, "tokens")]


def tokens_table(pairs: Pairs, differences: Differences) -> list[Json]:
    """A row for each number of tokens that a pair of arms shares, of the pairs that share several.

    It has the difference at equal tokens, the ratio of the training times, and the difference at equal training time.
    """
    table, ladders, measure = [], differences.ladders, differences.measure
    for arm, against in pairs:
        shared = shared_budgets(ladders[arm], ladders[against])
        for a, b in shared if len(shared) > 1 else ():
            times = [each.facts.get("train_s", math.nan) for each in (a, b)]
            row = {"arm": arm, "against": against, "active": b.facts.get("active"), "tokens": a.facts["tokens"]}
            sides = met_pair(a, b, measure, times[0] / times[1])
            row |= differences.row((arm, against), sides)
            clock = differences.row((arm, against), pair([a], ladders[against], "seconds", measure))
            at_equal_time = {f"{key} at equal time": clock[key] for key in ("value", "lo", "hi")}
            table.append(
                {**row, "tuned": not (a.untuned_because or b.untuned_because), "note": clock["note"], **at_equal_time}
            )
    return table


def gaps_by_budget(ours: Ladder, theirs: Ladder, measure: str) -> Gaps:
    """Returns ours - theirs by seed and tokens, of the seeds with a finite measure at every shared number of tokens."""
    columns = {a.facts["tokens"]: (a.values(measure), b.values(measure)) for a, b in shared_budgets(ours, theirs)}
    seeds = set.intersection(*({*a} & {*b} for a, b in columns.values())) if columns else set()
    gaps = {seed: {tokens: a[seed] - b[seed] for tokens, (a, b) in columns.items()} for seed in sorted(seeds)}
    return {seed: row for seed, row in gaps.items() if all(map(math.isfinite, row.values()))}


def trends(pairs: Pairs, ladders: Ladders, measure: str, level: float) -> list[Json]:
    """A row for each trend of a difference, estimated seed by seed.

    Over tokens it is the slope for each doubling, of pairs that share several numbers of tokens. Over sizes it is the
    mean change over the tokens that two pairs share, of pairs without an arm in common and of different active size.
    """
    unit = measured(ladders, measure).unit
    by_pair = {(a, b): gaps_by_budget(ladders[a], ladders[b], measure) for a, b in pairs}
    table = []
    for names, by_seed in by_pair.items():
        long = [gaps for gaps in by_seed.values() if len(gaps) > 1]
        slopes = [line([math.log2(tokens) for tokens in gaps], [*gaps.values()])[0] for gaps in long]
        over = "for each doubling of the training tokens"
        table.append(trend_row(names, over, mean_estimate(slopes, level, unit)))
    sized = [names for names in by_pair if all("active" in ladders[name][0].facts for name in names)]
    for small, large in pairwise(sorted(sized, key=lambda names: ladders[names[1]][0].facts["active"])):
        if {*small}.isdisjoint(large) and not same(ladders[small[1]][0], ladders[large[1]][0], "active"):
            changes = change_by_seed(by_pair[small], by_pair[large])
            table.append(trend_row(large, f"from {' - '.join(small)}", mean_estimate(changes, level, unit)))
    return [row for row in table if row["n"]]


def trend_row(names: tuple[str, str], over: str, estimate: Estimate | None) -> Json:
    return {"arm": names[0], "against": names[1], "over": over, **as_row(estimate)}


def change_by_seed(small: Gaps, large: Gaps) -> list[float]:
    """The mean change of the difference from one pair to another over the tokens of both, for each seed of both."""
    changes = []
    for seed in sorted(small.keys() & large.keys()):
        shared = small[seed].keys() & large[seed].keys()
        if shared:
            changes.append(sum(large[seed][tokens] - small[seed][tokens] for tokens in shared) / len(shared))
    return changes


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    slope /= sum((x - mean_x) ** 2 for x in xs)
    return slope, mean_y - slope * mean_x


def multiplier_table(name: str, sizes: Sequence[str], ladders: Ladders, level: float) -> tuple[list[Json], list[Json]]:
    """The row of the size multiplier of an arm, and verdicts on it; empty below two sizes of known parameters.

    There is no row where the arms share no number of training tokens.

    sizes  names of arms of one kind of model at several sizes
    """
    counted = {each: ladders[each] for each in (name, *sizes) if each in ladders and "core" in ladders[each][0].facts}
    sizes = [each for each in sizes if each in counted]
    if name not in counted or len({counted[each][0].facts["core"] for each in sizes}) < 2:  # no line through one size
        return [], []
    arms = shared_budget(counted)
    if not arms:
        text = f"the multiplier is not estimated: {', '.join(counted)} share no number of training tokens"
        return [], [{"code": "multiplier", "text": text}]
    arm, others = arms[name], [arms[each] for each in sizes]
    estimate = size_multiplier(arm, others, level)
    if estimate is None:
        change = f"{arm.scores[arm.measure].label} does not {'rise' if arm.higher_is_better else 'fall'}"
        text = f"the multiplier is not identified: the {change} with the size for every seed"
        return [], [{"code": "multiplier", "text": text}]
    tuned = not any(each.untuned_because for each in (arm, *others))
    row = {"arm": name, "tokens": arm.facts["tokens"], **as_row(estimate), "tuned": tuned}
    cores = [other.facts["core"] for other in others]
    if min(cores) <= estimate.value * arm.facts["core"] <= max(cores):
        return [row], []
    text = f"the multiplier {estimate.value:.2f} lies outside the sizes {min(cores):,.0f} to {max(cores):,.0f}"
    return [row], [{"code": "multiplier", "text": text}]


def multiplier_sentence(row: Row, measure: Score) -> str:
    """The multiplier with its interval as a sentence."""
    tuned = "" if row["tuned"] else ", but not all of these arms are tuned"
    times = replace(from_row(row), unit="times").text(".2f")
    reach = f"To reach the {measure.label} of {label(str(row['arm']))}, a dense model"
    return f"{reach} needs {times} its active parameters (embeddings not counted){tuned}."


def size_multiplier(arm: Arm, sizes: Sequence[Arm], level: float) -> Estimate | None:
    """The size at which the measure of `sizes` equals that of an arm, over the size of the arm (Clark et al. 2022).

    Sizes are active parameters outside the embeddings. The measure is a line in their logarithm, seed by seed; the mean
    and its interval are of the logarithm of the multiplier. None where it does not improve with the size for a seed.
    """
    xs = [math.log(other.facts["core"]) for other in sizes]
    log_ratios = []
    for seed, value in sorted(arm.best_values.items()):
        if all(math.isfinite(arm.best_values.get(seed, math.nan)) for arm in (arm, *sizes)):
            slope, at_zero = line(xs, [other.best_values[seed] for other in sizes])
            if slope == 0 or (slope > 0) != arm.higher_is_better:
                return None
            log_ratios.append((value - at_zero) / slope - math.log(arm.facts["core"]))
    estimate = mean_estimate(log_ratios, level, "times its size")
    if estimate is None:
        return None
    lo, hi = (None if end is None else math.exp(end) for end in (estimate.lo, estimate.hi))
    return Estimate(math.exp(estimate.value), lo, hi, estimate.n, estimate.unit)


def at_common_budget(ladders: Ladders) -> dict[str, Arm]:
    """Each arm at the most training tokens that all arms have; at its own most tokens where they share none."""
    return shared_budget(ladders) or {name: ladder[-1] for name, ladder in ladders.items()}


def shared_budget(ladders: Ladders) -> dict[str, Arm]:
    """Each arm at the most training tokens that all arms have; empty where they share none."""
    for at in reversed(next(iter(ladders.values()), ())):
        arms = {name: [arm for arm in ladder if same(arm, at, "tokens")] for name, ladder in ladders.items()}
        if all(arms.values()):
            return {name: each[-1] for name, each in arms.items()}
    return {}


def matched_table(record: Json) -> list[Json]:
    """Returns F of each arm at its target loss, that of the reference there, and a setting that stands for the arm."""
    chosen = {setting["method"]: setting for setting in record["chosen"].to_dict("records")}
    reference = f"F of {label(record['study'].reference)}"
    return [
        {
            "arm": label(arm["method"]), "at a target loss of": arm["at"],
            "F": arm["F"] if arm["reached"] else "does not reach it", "is": arm["bound"] if arm["reached"] else "",
            "lo": arm["lo"], "hi": arm["hi"], "seeds": f"{arm['reached']} of {arm['seeds']}",
            reference: arm["reference"], f"{reference} is": arm["reference_bound"],
            "setting chosen": f"{chosen[arm['method']]['setting']} lr={chosen[arm['method']]['lr']:g}".strip(),
        }
        for arm in record["matched"]
    ]  # fmt: skip


def settings_table(record: Json) -> list[Json]:
    """Returns every setting with its costs, arm by arm, the least forgetful first."""
    order = record["order"]
    points = sorted(record["points"].to_dict("records"), key=lambda row: (order.index(row["method"]), row["F"]))
    return [
        {
            "arm": label(point["method"]), "setting": point["setting"], "lr": point["lr"], "seeds": point["n"],
            "F": point["F"], "sd of F": point["F_sd"], "peak F": point["peak"],
            "F of what was learned": point["relative"], "target loss": point["target"], "sd": point["target_sd"],
            "on the frontier": bool(point["best"]), "trained parameters": point["tuned"],
            "new tokens": point["target_tokens"], "all tokens": float(point["tokens"]), "seconds": point["seconds"],
            "ms a step": rounded(point["seconds"], 1e3 / point["steps"]), "MiB": rounded(point["memory"], 2.0**-20),
        }
        for point in points
    ]  # fmt: skip


def rounded(value: float | None, scale: float) -> float | None:
    return None if value is None else round(value * scale, 1)
