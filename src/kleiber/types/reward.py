"""Rewards: what scores the answers that a policy writes.

A package offers rewards by name in the literal REWARDS of its `__init__.py`, as REWARDS = {"sorting":
"verifiers.sorting"}; `objective.reward` and `evals.reward.reward` name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kleiber.types import Row


class Reward(Protocol):
    """Scores answers; a function is one. A verifier gives 1 to a right answer, and less to another one."""

    def __call__(self, prompts: Sequence[str], answers: Sequence[str], rows: Sequence[Row]) -> Sequence[float]:
        """Returns a finite score for each answer.

        prompts  text that each answer follows
        answers  text without white space around it
        rows     columns of the data for each answer, with a right answer as `answer`
        """
        ...
