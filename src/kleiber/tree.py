"""Which stages a run has, and where each begins: a small tree, laid out before anything is trained.

An ordinary run has one stage. `stages=trunk_and_cooldowns` has a trunk at a constant rate and branches that leave it to
decay. It plans and does not train: `stage` does, and hands state over by checkpoint path alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from kleiber.budget import quantity
from kleiber.plan import Plan

ONLY = "main"  # the name of the one stage of an ordinary run


@dataclass(frozen=True)
class Stage:
    """A stage: the optimizer steps from `branch_step` of its parent (0 without one) to `stop_step`.

    total_steps  the horizon of its schedule, counted from the root of the tree as all steps are
    """

    name: str
    total_steps: int
    stop_step: int
    schedule: Any
    parent: str | None = None
    branch_step: int = 0

    def plan(self, base: Plan, model: Any) -> Plan:
        """The plan of the run with what is this stage's own in it."""
        return replace(base, model=model, schedule=self.schedule, steps=self.total_steps, stop_step=self.stop_step)


class Tree(Protocol):
    """Lays out the stages of a run; parents come before their children."""

    def stages(self, plan: Plan) -> list[Stage]: ...


class Single:
    """The tree of an ordinary run."""

    def stages(self, plan: Plan) -> list[Stage]:
        return [Stage(ONLY, plan.steps, plan.stop_step, plan.schedule)]


class TrunkAndCooldowns:
    """One trunk at a constant rate, and from it a cooldown to each number of training tokens in `branches`.

    A branch has seen what a run of that many tokens would have seen, in the same order and at the same rates, and so is
    that run: K points of a law for the price of the longest and the shorter ones' decays (Hägele et al. 2024,
    arXiv:2405.18392, section 4). Its tokens are those since the root.

    branches  tokens of each branch, such as [1M, 2M, 4M]
    """

    def __init__(self, branches: Sequence[int | float | str]) -> None:
        if not branches:
            raise ValueError("stages.branches=[]: give the training tokens of each branch, such as [1M,2M,4M]")
        self.branches = sorted({label(tokens): quantity(tokens) for tokens in branches}.items(), key=lambda b: b[1])
        if len({tokens for _, tokens in self.branches}) < len(branches):
            raise ValueError(f"stages.branches={list(branches)} names a number of tokens twice")

    def stages(self, plan: Plan) -> list[Stage]:
        if not hasattr(plan.schedule, "branch_step"):
            kind = type(plan.schedule).__name__.lower()
            raise ValueError(
                f"stages=trunk_and_cooldowns has nowhere to leave schedule={kind}, whose rates all depend on the "
                "horizon or never fall: set schedule=wsd"
            )
        totals = {name: max(2, round(tokens / plan.batch_tokens)) for name, tokens in self.branches}
        if plan.max_steps == 1:
            raise ValueError("trainer.max_steps=1 leaves no step for a cooldown: a tree needs at least 2")
        if plan.max_steps is not None and max(totals.values()) > plan.max_steps:  # the whole tree, in small
            shrink = plan.max_steps / max(totals.values())
            totals = {name: max(2, round(total * shrink)) for name, total in totals.items()}
        shortest, longest = min(totals.values()), max(totals.values())
        # All share the warm-up of the shortest, which has a fifth of its own steps for it.
        schedule = replace(plan.schedule, warmup_steps=min(plan.schedule.warmup_steps, shortest // 5))
        trunk = Stage("trunk", longest, schedule.branch_step(longest), schedule)
        return [trunk, *(Stage(n, t, t, schedule, "trunk", schedule.branch_step(t)) for n, t in totals.items())]


def label(tokens: int | float | str) -> str:
    """The name of a branch: its tokens as they were written, a round number of millions as `4M`."""
    if isinstance(tokens, str):
        return tokens
    return f"{tokens / 1e6:g}M" if tokens >= 1e6 else f"{tokens:g}"


def branch_steps(stages: Sequence[Stage], name: str) -> list[int]:
    """Where children leave the stage `name`."""
    return sorted({stage.branch_step for stage in stages if stage.parent == name})
