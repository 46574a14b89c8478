"""The stages of a run as a tree, laid out before training: where each begins, and which tasks it may forget.

An ordinary run has one stage. `stages=trunk_and_cooldowns` has a trunk at a constant learning rate and branches that
leave it to decay; a chain has stages that follow each other, each on its data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from kleiber.config.signatures import build
from kleiber.config.stages import ONLY, branches_of, from_weights, stage_configs
from kleiber.runs.plan import Plan
from kleiber.runs.start_point import StartPoint, corpus_tasks, same_text
from kleiber.training import checkpoint
from kleiber.training.loggers import Logger
from kleiber.training.trainer import Local
from kleiber.types import Config, Json
from kleiber.types.contracts import Corpus, Task

Planner = Callable[[DictConfig, Plan | None], Plan]  # of a stage's config and the plan of the stage before


@dataclass(frozen=True)
class Stage:
    """A stage: the optimizer steps of its plan up to `plan.stop_step`, and the config that they follow.

    parent     the stage whose weights it begins with; None at the root
    continues  whether it continues the parent's steps and optimizer from `branch_step`; otherwise it takes the parent's
               last weights and counts steps from 0
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


class Layout:
    """The stages of a run: a single one, unless overridden."""

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        """The stages, parents before their children. Raises ValueError where they do not fit the plan."""
        return [Stage(ONLY, plan(cfg, None), cfg)]


class TrunkAndCooldowns(Layout):
    """A trunk at a constant learning rate, and from it a cooldown to each number of training tokens in `branches`.

    A branch equals the run of that many tokens, because it trains on the same data in the same order at the same
    learning rates: K points of a law cost the longest run and the decays of the shorter ones (Hägele et al. 2024,
    arXiv:2405.18392, section 4). Its tokens are those since the root.

    branches  tokens of each branch, such as [1M, 2M, 4M]
    """

    def __init__(self, branches: Sequence[int | float | str]) -> None:
        if not branches:
            raise ValueError("stages.branches=[]: give the training tokens of each branch, such as [1M,2M,4M]")
        self.branches = branches_of(branches)
        if len({tokens for _, tokens in self.branches}) < len(branches):
            raise ValueError(f"stages.branches={list(branches)} has a number of tokens twice")

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        base = plan(cfg, None)
        if base.schedule.branch_step(2) is None:
            kind = type(base.schedule).__name__.lower()
            raise ValueError(
                f"stages=trunk_and_cooldowns needs a schedule that is constant before it decays, unlike {kind}: "
                "set schedule=wsd"
            )
        totals = {name: max(2, round(tokens / base.batch_tokens)) for name, tokens in self.branches}
        if base.max_steps == 1:
            raise ValueError("trainer.max_steps=1 must be >= 2, so that there is a step for a cooldown")
        if base.max_steps is not None and max(totals.values()) > base.max_steps:  # shrinks the whole tree
            shrink = base.max_steps / max(totals.values())
            totals = {name: max(2, round(total * shrink)) for name, total in totals.items()}
        shortest, longest = min(totals.values()), max(totals.values())
        # All share the warm-up of the shortest, at most a fifth of its steps.
        schedule = replace(base.schedule, warmup_steps=min(base.schedule.warmup_steps, shortest // 5))
        branch_step = schedule.branch_step
        trunk = replace(base, schedule=schedule, steps=longest, stop_step=branch_step(longest))
        return [
            Stage("trunk", trunk, cfg),
            *(
                Stage(name, replace(trunk, steps=total, stop_step=total), cfg, "trunk", True, branch_step(total))
                for name, total in totals.items()
            ),
        ]


class Chain(Layout):
    """Stages that train a model in turn: every stage begins with the last weights of the stage before.

    chain  the stages in order, each with what differs from the run: data, objective, budget, schedule, optimizer,
           batch, retention, adapter. The run's `retention` and `adapter` are for all stages but the first.

    The model has the heads of all tasks from the start, so that every stage can be scored on every task.
    """

    def __init__(self, chain: Mapping[str, Config]) -> None:
        if len(chain) < 2:
            raise ValueError(f"stages.chain={list(chain)} must have at least two stages")
        self.chain = chain

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        stages: list[Stage] = []
        for name, own in stage_configs(OmegaConf.to_container(cfg, resolve=True)).items():  # type: ignore[arg-type]
            before = stages[-1] if stages else None
            config = OmegaConf.create(own)
            stage_plan = plan(config, before.plan if before else None)
            _check_names(stages, name, stage_plan.corpus)
            step = before.plan.stop_step if before else 0
            stages.append(Stage(name, stage_plan, config, before.name if before else None, False, step))
        outputs = {head: count for stage in stages for head, count in stage.plan.outputs.items()}
        return [replace(stage, plan=replace(stage.plan, outputs=outputs)) for stage in stages]


def _check_names(stages: Sequence[Stage], name: str, corpus: Corpus) -> None:
    """Raises ValueError where a stage has another text under the name of an earlier one: scores are kept by name."""
    texts = {task.name: ("the start point", task.held_out) for stage in stages[:1] for task in stage.plan.earlier}
    texts |= {task: (stage.name, text) for stage in stages for task, text in stage.plan.corpus.validation.items()}
    for task, held_out in corpus.validation.items():
        if task in texts and not same_text(texts[task][1], held_out):
            raise ValueError(
                f"stages.chain.{name}: its text {task} or its labels differ from those of {texts[task][0]}, and scores "
                "are kept by name: set data.name, or copy text without labels to a file of another name"
            )


def branch_steps(stages: Sequence[Stage], name: str) -> list[int]:
    """The steps at which other stages branch off the stage `name`."""
    return sorted({stage.branch_step for stage in stages if stage.parent == name})


@dataclass(frozen=True)
class TasksAround:
    """The tasks of a stage, of the stages before it and of those after it."""

    own: list[Task]
    earlier: list[Task]
    later: list[Task]


@dataclass
class Tree:
    """A run's stages and where they are trained.

    done  records of the finished stages as in summary.json, by name
    """

    stages: list[Stage]
    folder: Path
    hardware: Local
    loggers: list[Logger]
    done: dict[str, Json]

    def checkpoints(self, name: str) -> Path:
        """The folder of a stage's checkpoints."""
        return self.folder / "stages" / name / "checkpoints"

    @cached_property
    def start_point(self) -> StartPoint | None:
        """The start point of the run, where its config has one."""
        node = self.stages[0].config.init
        return None if node is None else build(node)

    def verify(self) -> None:
        """Raises ValueError where the start point does not fit the model, before anything is written or trained."""
        first = self.stages[0]
        begun = first.name in self.done or checkpoint.steps(self.checkpoints(first.name))
        if self.start_point is not None and not begun:
            self.start_point.load(first.plan.model.to(self.hardware.dtype))

    @property
    def from_weights(self) -> bool:
        """Whether any stage begins with trained weights, of a start point or of another stage."""
        after_another = any(stage.parent and not stage.continues for stage in self.stages)
        return after_another or from_weights(OmegaConf.to_container(self.stages[0].config))  # type: ignore[arg-type]

    @cached_property
    def tasks(self) -> list[Task]:
        """All tasks in the order of training, those of the start point first.

        A task of several stages is scored as the last of them trains on it.
        """
        first = self.stages[0]
        own = [task for stage in self.stages for task in corpus_tasks(stage.plan.corpus, stage.plan.objective)]
        return list({task.name: task for task in (*first.plan.earlier, *own)}.values())

    def tasks_around(self, stage: Stage) -> TasksAround:
        """The stage's own tasks, those of stages before it (the start point's among them) and those of later ones."""
        passed = self.stages[: self.stages.index(stage)]
        own = {task.name for task in corpus_tasks(stage.plan.corpus, stage.plan.objective)}
        before = {task.name for other in passed for task in corpus_tasks(other.plan.corpus, other.plan.objective)}
        before = (before | {task.name for task in self.stages[0].plan.earlier}) - own
        later = {task.name for task in self.tasks} - own - before
        return TasksAround(*([task for task in self.tasks if task.name in names] for names in (own, before, later)))
