"""What an arm would have reached in a given training time, from the times and losses of its own budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kleiber.studies.arm_rows import Arm


def spent(arm: Arm) -> float:
    return arm.facts["train_s"]


def loss_after(seconds: float, budgets: Sequence[Arm]) -> Mapping[int, float] | None:
    """Loss by seed after `seconds` of training, linear in the log of time between two of `budgets`, one arm at several
    numbers of tokens; None where `seconds` lies outside them."""
    ladder = sorted(budgets, key=spent)
    below = [arm for arm in ladder if spent(arm) <= seconds]
    above = [arm for arm in ladder if spent(arm) >= seconds]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    begin, end = math.log(spent(low)), math.log(spent(high))
    share = (math.log(seconds) - begin) / (end - begin) if end > begin else 0.0
    both = set(low.at_best) & set(high.at_best)
    return {seed: (1 - share) * low.at_best[seed] + share * high.at_best[seed] for seed in both}
