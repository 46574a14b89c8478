"""Which stages a run has, where each begins and what it may forget: a small tree, laid out before anything is trained.

An ordinary run has one stage. `stages=trunk_and_cooldowns` has a trunk at a constant rate and branches that leave it to
decay; a chain has one stage after another, each on data of its own. It plans and does not train: `stage` does, and
hands state over by checkpoint path alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from kleiber.config.signatures import build
from kleiber.config.stages import ONLY, branches_of, from_weights, stage_configs
from kleiber.runs.plan import Plan
from kleiber.runs.start_point import Origin, domains, same_text
from kleiber.training import checkpoint
from kleiber.types.contracts import Corpus, Task

Planner = Callable[[DictConfig, Any], Plan]


@dataclass(frozen=True)
class Stage:
    """A stage: the optimizer steps of its plan up to `plan.stop_step`, and the config that they follow.

    parent     the stage whose weights it begins with; None at the root
    continues  whether it goes on with its parent's steps and optimizer, from `branch_step`; otherwise it takes the
               parent's last weights and counts its own steps from 0
    """

    name: str
    plan: Plan
    config: DictConfig
    parent: str | None = None
    continues: bool = False
    branch_step: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of its own."""
        return self.plan.stop_step - (self.branch_step if self.continues else 0)


class Layout(Protocol):
    """Lays out the stages of a run; parents come before their children."""

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]: ...


class Single:
    """The tree of an ordinary run."""

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        return [Stage(ONLY, plan(cfg, None), cfg)]


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
        self.branches = branches_of(branches)
        if len({tokens for _, tokens in self.branches}) < len(branches):
            raise ValueError(f"stages.branches={list(branches)} names a number of tokens twice")

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        base = plan(cfg, None)
        if not hasattr(base.schedule, "branch_step"):
            kind = type(base.schedule).__name__.lower()
            raise ValueError(
                f"stages=trunk_and_cooldowns has nowhere to leave schedule={kind}, whose rates all depend on the "
                "horizon or never fall: set schedule=wsd"
            )
        totals = {name: max(2, round(tokens / base.batch_tokens)) for name, tokens in self.branches}
        if base.max_steps == 1:
            raise ValueError("trainer.max_steps=1 leaves no step for a cooldown: a tree needs at least 2")
        if base.max_steps is not None and max(totals.values()) > base.max_steps:  # the whole tree, in small
            shrink = base.max_steps / max(totals.values())
            totals = {name: max(2, round(total * shrink)) for name, total in totals.items()}
        shortest, longest = min(totals.values()), max(totals.values())
        # All share the warm-up of the shortest, which has a fifth of its own steps for it.
        schedule = replace(base.schedule, warmup_steps=min(base.schedule.warmup_steps, shortest // 5))
        leave = schedule.branch_step
        trunk = replace(base, schedule=schedule, steps=longest, stop_step=leave(longest))
        return [
            Stage("trunk", trunk, cfg),
            *(
                Stage(name, replace(trunk, steps=total, stop_step=total), cfg, "trunk", True, leave(total))
                for name, total in totals.items()
            ),
        ]


class Chain:
    """One stage after another on one model: every stage begins with the last weights of the one before.

    chain  the stages in order; each says what differs from the run: data, objective, budget, schedule, optimizer,
           batch, retention, adapter. The run's own `retention` and `adapter` are for all stages but the first.

    Heads of all tasks are there from the start, so that every stage can be scored on every task.
    """

    def __init__(self, chain: Mapping[str, Any]) -> None:
        if len(chain) < 2:
            raise ValueError(f"stages.chain={list(chain)}: a chain has at least two stages")
        self.chain = chain

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        found: list[Stage] = []
        for name, one in stage_configs(OmegaConf.to_container(cfg, resolve=True)).items():  # type: ignore[arg-type]
            before = found[-1] if found else None
            config = OmegaConf.create(one)
            made = plan(config, before.plan if before else None)
            _distinct(found, name, made.corpus)
            step = before.plan.stop_step if before else 0
            found.append(Stage(name, made, config, before.name if before else None, False, step))
        outputs = {head: count for stage in found for head, count in stage.plan.outputs.items()}
        return [replace(stage, plan=replace(stage.plan, outputs=outputs)) for stage in found]


def _distinct(found: Sequence[Stage], name: str, corpus: Corpus) -> None:
    """Raises ValueError where a stage learns another text under the name of an earlier one: scores are kept by name."""
    known = {task.name: ("the start point", task.held_out) for stage in found[:1] for task in stage.plan.known}
    known |= {task: (one.name, held_out) for one in found for task, held_out in one.plan.corpus.validation.items()}
    for task, held_out in corpus.validation.items():
        if task in known and not same_text(known[task][1], held_out):
            raise ValueError(
                f"stages.chain.{name}: its text {task} or its labels are others than those of {known[task][0]}, and "
                "scores are kept by name: set data.name, or copy text without labels to a file of another name"
            )


def branch_steps(stages: Sequence[Stage], name: str) -> list[int]:
    """Where children leave the stage `name`."""
    return sorted({stage.branch_step for stage in stages if stage.parent == name})


@dataclass(frozen=True)
class Around:
    """The tasks of a stage, of those before it and of those after it."""

    own: list[Task]
    earlier: list[Task]
    later: list[Task]


@dataclass
class Tree:
    """A run's stages, where they are run, and what is known of those that are done (their records, by name)."""

    stages: list[Stage]
    folder: Path
    hardware: Any
    loggers: list[Any]
    done: dict[str, dict[str, Any]]

    def place(self, name: str) -> Path:
        """Where the checkpoints of a stage lie."""
        return self.folder / "stages" / name / "checkpoints"

    @cached_property
    def origin(self) -> Origin | None:
        node = self.stages[0].config.init
        return None if node is None else build(node)

    def verify(self) -> None:
        """Raises ValueError where the start point does not fit the model, before anything is written or trained."""
        first = self.stages[0]
        if self.origin is not None and first.name not in self.done and not checkpoint.steps(self.place(first.name)):
            self.origin.load(first.plan.model.to(self.hardware.dtype))

    @property
    def from_weights(self) -> bool:
        """Whether any stage begins with weights that were trained for something: a start point, or a stage before."""
        after_another = any(stage.parent and not stage.continues for stage in self.stages)
        return after_another or from_weights(OmegaConf.to_container(self.stages[0].config))  # type: ignore[arg-type]

    @cached_property
    def tasks(self) -> list[Task]:
        """All tasks in the order in which they were or will be trained on: those of the start point come first.

        A task that comes again is scored as it was trained on last.
        """
        first = self.stages[0]
        own = [task for stage in self.stages for task in domains(stage.plan.corpus, stage.plan.objective)]
        return list({task.name: task for task in (*first.plan.known, *own)}.values())

    def around(self, stage: Stage) -> Around:
        """The stage's own tasks, those of stages before it (the start point's among them) and those of later ones."""
        passed = self.stages[: self.stages.index(stage)]
        own = {task.name for task in domains(stage.plan.corpus, stage.plan.objective)}
        before = {task.name for one in passed for task in domains(one.plan.corpus, one.plan.objective)}
        before = (before | {task.name for task in self.stages[0].plan.known}) - own
        later = {task.name for task in self.tasks} - own - before
        return Around(*([task for task in self.tasks if task.name in names] for names in (own, before, later)))
