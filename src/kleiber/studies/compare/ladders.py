"""The arms of a comparison at each of their budgets, and whether they may be compared.

Arms may be compared if they were tuned alike: as many learning rates with the same spacing. The runs as a whole decide
nothing before all of them have ended, nor when they are looked at more often than was planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from kleiber.records.catalog import Run
from kleiber.studies.compare.arms import Arm, arm_from_rows, by_arm, points

LOSS = "loss"
LOWER_IS_BETTER = (LOSS, "bits_per_byte", "perplexity", "gap", "rmse", "mae", "error")
SAME_TOKENS = 0.02  # relative difference up to which numbers of tokens are one budget
SPACING = 0.1  # relative difference up to which two ratios of neighboring rates count as equal


def read_ladders(runs: Sequence[Run], measure: str, arm_of: Callable[[Run], str | None]) -> dict[str, list[Arm]]:
    """Returns each arm at every number of tokens (to 2 %) that it was trained for, in ascending order.

    Arms are in the order of the design that planned them, others in that of the runs. Raises ValueError for fewer than
    two arms with the measure.
    """
    rows = points(runs, arm_of)
    metrics = {name for row in rows for name, value in row.items() if isinstance(value, float) and "/" in name}
    rows = [
        {**row, "loss": row.get(measure)} for row in rows if row["status"] == "diverged" or row.get(measure) is not None
    ]
    higher = higher_is_better(measure)
    ladders: dict[str, list[Arm]] = {}
    parts = by_arm(rows)
    planned = [name for run in runs for name in (run.config.get("design") or {}).get("arms") or () if name in parts]
    for name, part in ((name, parts[name]) for name in dict.fromkeys([*planned, *parts])):
        ended = [row for row in part if row["loss"] is not None]
        lengths: list[float] = []
        for tokens in sorted(row["tokens"] for row in ended):
            if not lengths or not near(tokens, lengths[-1]):
                lengths.append(tokens)
        ladder = [
            arm_from_rows(name, [row for row in part if row["loss"] is None or near(row["tokens"], at)], higher)
            for at in lengths
        ]
        if ladder:
            ladders[name] = ladder
    if len(ladders) < 2:
        raise ValueError(
            f"study.measure={measure}: {len(ladders)} arms have finished runs with this measure, and two are needed; "
            f"measures of these runs: {', '.join([LOSS, *sorted(metrics)])}"
        )
    return ladders


def higher_is_better(measure: str) -> bool:
    """Whether a higher value of the measure is better: of everything but losses and errors."""
    return measure.rpartition("/")[2] not in LOWER_IS_BETTER


def near(tokens: float, budget: float) -> bool:
    """Whether a number of tokens belongs to a budget, which is the least of its group."""
    return 0 <= tokens / budget - 1 <= SAME_TOKENS


def uneven(arms: Sequence[Arm]) -> str:
    """Why arms were not tuned alike: another number of learning rates, or another spacing; "" where they were."""
    grids = {arm.name: sorted(lr for lr, each in arm.losses.items() if len(each) == most_seeds(arm)) for arm in arms}
    sizes = {name: len(rates) for name, rates in grids.items()}
    if len(set(sizes.values())) > 1:
        return "the arms have different numbers of learning rates: " + format_pairs(sizes)
    steps = {name: math.log(rates[-1] / rates[0]) / max(len(rates) - 1, 1) for name, rates in grids.items()}
    if max(steps.values()) > (1 + SPACING) * min(steps.values()):
        factors = {name: f"{math.exp(step):.3g}x" for name, step in steps.items()}
        return "the learning rates of the arms have different spacing: " + format_pairs(factors)
    wide = [name for name, rates in grids.items() if not evenly_spaced(rates)]
    return f"the learning rates of {wide[0]} are not evenly spaced on a logarithmic scale" if wide else ""


def evenly_spaced(rates: Sequence[float]) -> bool:
    """Whether neighboring rates have about the same ratio, as 1, 2, 5, 10 do."""
    ratios = [math.log(high / low) for low, high in pairwise(rates)]
    return not ratios or max(ratios) <= 1.5 * min(ratios)


def most_seeds(arm: Arm) -> int:
    return max(map(len, arm.losses.values()))


def format_pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def not_ready(runs: Sequence[Run], looks: int, arm_of: Callable[[Run], str | None]) -> str:
    """Why these runs decide nothing yet: some have not finished, or they were looked at too often; "" otherwise.

    Each plan with another number of seeds was a look, because the runs of the plan before had been seen by then.
    """
    mine = [run for run in runs if arm_of(run) is not None]
    waiting = [run for run in mine if run.status not in ("finished", "diverged")]
    if waiting:
        return f"{len(waiting)} of {len(mine)} runs have not finished"
    plans = {planned_seeds(run) for run in mine} - {None}
    if len(plans) > looks:
        numbers = ", ".join(sorted(map(str, plans)))
        return (
            f"the runs were planned with {numbers} seeds, which makes {len(plans)} looks, and study.looks={looks}: "
            "set study.looks before the first look in a new study"
        )
    return ""


def planned_seeds(run: Run) -> int | None:
    """The number of seeds of the design that planned a run; None for a run without such a design."""
    study, design = run.config.get("study") or {}, run.config.get("design") or {}
    return study.get("seeds") or design.get("seeds")
