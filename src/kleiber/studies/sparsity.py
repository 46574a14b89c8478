"""The study `sparsity`: a mixture of experts against dense models at equal active FLOPs, parameters, memory and time.

The headline uses tuned arms only. A verdict warns where arms differ by more than 5 % in the quantity held equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kleiber.config.stages import Quantity, quantity
from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import (
    HOW,
    Arm,
    against_loss,
    all_tuned,
    complaints,
    differences_chart,
    each_arm,
    format_gap,
    interval,
    paired,
    points,
    price,
    read,
    unmeasured,
)
from kleiber.studies.compare.frontier import loss_after, spent
from kleiber.studies.study import Figures, Findings, Study
from kleiber.types import Json, Row

EQUAL = {"flops": "training FLOPs", "params": "total parameters", "memory": "inference memory"}
SLACK = 0.05


@dataclass(frozen=True)
class Sparsity(Study):
    """Which arms are compared, and at what.

    arm          of a cell: set by the design
    tokens       training tokens of the headline
    mixture, dense  the arms of equal active FLOPs
    comparisons  further ones: {arm, against, equal: flops|params|memory}
    sizes        dense arms of several sizes, for the effective parameter multiplier
    """

    arm: str | None = None
    tokens: Quantity = "4M"
    mixture: str = "moe"
    dense: str = "dense"
    comparisons: Sequence[dict[str, str]] = field(default_factory=tuple)
    sizes: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for comparison in self.comparisons:
            if set(comparison) != {"arm", "against", "equal"} or comparison["equal"] not in EQUAL:
                raise ValueError(
                    f"study.comparisons: {comparison}: give arm, against and equal, one of {', '.join(EQUAL)}"
                )

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the mixture with dense models at equal FLOPs, parameters, memory and time."""
        arms = read(runs, quantity(self.tokens))
        verdicts = complaints(arms)
        first = {"arm": self.mixture, "against": self.dense, "equal": "flops"}
        rows = [compare(arms, comparison, verdicts) for comparison in (first, *self.comparisons)]
        gaps = [gap for gap in rows if gap]
        if (clock := at_equal_time(arms, runs, self.mixture, self.dense, verdicts)) is not None:
            gaps.append(clock)
        times = multiplier(arms, self.mixture, self.sizes, verdicts)
        trend = over_tokens(runs, self.mixture, self.dense)
        tables: dict[str, list[Json]] = {
            "Comparisons": gaps,
            "Effective parameter multiplier": [times] if times else [],
            "Gain by training tokens": trend,
            "Arms": [arm.row() for arm in arms.values()],
            "Speed and memory": price(arms, self.mixture),
        }
        verdicts += unmeasured(arms)
        return Findings(headline(arms, gaps, times), verdicts, tables, figures(arms, gaps), methods=METHODS)


METHODS = (
    "Every arm was trained at every learning rate with every seed; cells of a seed see the same samples in the same "
    "order. Inference memory is that of the weights and one context's keys and values in fp32. An arm enters at the "
    "learning rate of least mean loss, which must not be the least or the largest tried. Differences are paired by "
    "seed, with Student's 90 % interval. At equal wall-clock, the dense loss is interpolated in the logarithm of its "
    "training time between its budgets. The effective parameter multiplier is the size at which a line through the "
    "dense losses over log N (parameters outside the embeddings) meets the mixture's loss, over the mixture's active "
    "parameters outside the embeddings (after Clark et al. 2022, arXiv:2202.01169). " + HOW
)


def compare(arms: Mapping[str, Arm], comparison: Mapping[str, str], verdicts: list[dict[str, str]]) -> Json | None:
    """One comparison as a row, or None where an arm has no run."""
    if comparison["arm"] not in arms or comparison["against"] not in arms:
        return None
    ours, theirs = arms[comparison["arm"]], arms[comparison["against"]]
    label = f"{ours.name} - {theirs.name} at equal {EQUAL[comparison['equal']]}"
    ratio = ours.facts[comparison["equal"]] / theirs.facts[comparison["equal"]]
    if abs(math.log(ratio)) > SLACK:
        verdicts.append(
            {"code": "unequal", "level": "warn", "text": f"{label}: they differ by a factor of {ratio:.2f}"}
        )
    return {
        "what": label,
        **paired(ours.at_best, theirs.at_best),
        "ratio": ratio,
        "tuned": all_tuned(ours, theirs),
    }


def at_equal_time(
    arms: Mapping[str, Arm], runs: Sequence[Run], mixture: str, dense: str, verdicts: list[dict[str, str]]
) -> Json | None:
    """The mixture against a dense model that trains as long: its loss between two of its budgets."""
    if mixture not in arms or dense not in arms or "train_s" not in arms[mixture].facts:
        return None
    ours = arms[mixture]
    ladder = [read_at(runs, dense, tokens) for tokens in sorted(set(tokens_of(runs, dense)))]
    seconds = spent(ours)
    label = f"{mixture} - {dense} at equal training time"
    if (theirs := loss_after(seconds, ladder)) is None:
        span = ", ".join(f"{seconds:.0f}" for seconds in sorted(map(spent, ladder)))
        text = f"{label}: the mixture took {seconds:.0f} s and the dense budgets {span} s, so it is not covered"
        verdicts.append({"code": "uncovered", "level": "warn", "text": text})
        return None
    tuned = all_tuned(ours, *ladder)
    return {"what": label, **paired(ours.at_best, theirs), "ratio": seconds / spent(arms[dense]), "tuned": tuned}


def tokens_of(runs: Sequence[Run], name: str) -> list[float]:
    return [float(row["tokens"]) for row in points(runs) if row["arm"] == name and row["loss"] is not None]


def read_at(runs: Sequence[Run], name: str, tokens: float) -> Arm:
    return read(runs, tokens)[name]


def multiplier(
    arms: Mapping[str, Arm], mixture: str, sizes: Sequence[str], verdicts: list[dict[str, str]]
) -> Json | None:
    """Size of the dense model with the mixture's loss, over the mixture's active size; seed by seed, on a log scale."""
    dense = [arms[name] for name in sizes if name in arms]
    if mixture not in arms or len({arm.facts["core"] for arm in dense}) < 2:  # no line through one size
        return None
    ours = arms[mixture]
    xs = [math.log(arm.facts["core"]) for arm in dense]
    log_ratios = []
    for seed, loss in sorted(ours.at_best.items()):
        if all(seed in arm.at_best for arm in dense):
            slope, at_zero = line(xs, [arm.at_best[seed] for arm in dense])
            if slope < 0:
                log_ratios.append((loss - at_zero) / slope - math.log(ours.facts["core"]))
    if not log_ratios:
        text = "the multiplier is not identified: dense loss does not fall with size here"
        verdicts.append({"code": "multiplier", "level": "warn", "text": text})
        return None
    low, high = interval(log_ratios)
    value = math.exp(sum(log_ratios) / len(log_ratios))
    size = value * ours.facts["core"]
    if not min(map(math.exp, xs)) <= size <= max(map(math.exp, xs)):
        text = f"the multiplier {value:.2f} lies outside the dense sizes, which end at {max(map(math.exp, xs)):,.0f}"
        verdicts.append({"code": "multiplier", "level": "warn", "text": text})
    tuned = all_tuned(ours, *dense)
    ends = {"lo": None if low is None else math.exp(low), "hi": None if high is None else math.exp(high)}
    return {"what": "effective parameter multiplier", "value": value, **ends, "seeds": len(log_ratios), "tuned": tuned}


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    slope /= sum((x - mean_x) ** 2 for x in xs)
    return slope, mean_y - slope * mean_x


def over_tokens(runs: Sequence[Run], mixture: str, dense: str) -> list[Json]:
    """The gain at every number of tokens that both arms have."""
    shared = sorted(set(tokens_of(runs, mixture)) & set(tokens_of(runs, dense)))
    rows = []
    for tokens in shared:
        at = read(runs, tokens)
        rows.append({"tokens": tokens, **paired(at[mixture].at_best, at[dense].at_best)})
    return rows


def headline(arms: Mapping[str, Arm], gaps: Sequence[Row], times: Row | None) -> str:
    """The first tuned comparison, with the multiplier where it is known; else what is missing."""
    tuned = [gap for gap in gaps if gap["tuned"]]
    if not tuned:
        return "No comparison of tuned arms: " + (next((a.wrong for a in arms.values() if a.wrong), "arms are missing"))
    gap = tuned[0]
    text = f"{gap['what']}: {format_gap(gap)}, better on {gap['better on']} of {gap['seeds']} seeds"
    if times and times["tuned"] and times["lo"] is not None:
        text += f"; worth a dense model of {times['value']:.2f} [{times['lo']:.2f}, {times['hi']:.2f}] times the size"
    return text + "."


def figures(arms: Mapping[str, Arm], gaps: Sequence[Row]) -> Figures:
    """The figures of the study."""
    rows = [arm.row() for arm in arms.values()]
    return {
        **differences_chart(gaps, "Mixture less dense: left of 0 the mixture is better"),
        **each_arm(arms),
        **against_loss("sizes", rows, "params", "Loss against total parameters"),
    }
