"""The stages of a run as a tree, planned before training: what each starts from, and which tasks it may forget.

An ordinary run has one stage. `stages=trunk_and_cooldowns` has a trunk at a constant learning rate, and branches that
start from the trunk and decay the learning rate. `stages=chain` has stages that follow one another, each on its own
data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import MinLen
from omegaconf import DictConfig, OmegaConf

from kleiber.config.stages import SINGLE_STAGE, Quantity, branch_tokens, stage_configs
from kleiber.config.targets import build
from kleiber.records.summary import StageRecord
from kleiber.records.terminal import print_line
from kleiber.runs.defaults import starts_trained
from kleiber.runs.open import load_stage
from kleiber.runs.plan import Plan
from kleiber.runs.start_point import StartPoint, corpus_tasks, same_text
from kleiber.training import checkpoint
from kleiber.training.loggers import Logger, StageAxis
from kleiber.training.trainer import Local
from kleiber.types import Config, Json
from kleiber.types.contracts import Corpus, Task
from kleiber.types.model import Model

Planner = Callable[[DictConfig, Plan | None], Plan]  # arguments: config of a stage, plan of the stage before it


@dataclass(frozen=True)
class Stage:
    """A stage of a run: it trains the steps of `plan` up to `plan.stop_step`, with the settings of `config`.

    parent       name of the stage whose weights it starts from; None for the first stage
    continues    true for a branch, which continues the parent's steps and optimizer state from `branch_step`; otherwise
                 the stage takes the parent's last weights and counts steps from 0
    branch_step  step of the parent from which the stage starts
    """

    name: str
    plan: Plan
    config: DictConfig
    parent: str | None = None
    continues: bool = False
    branch_step: int = 0

    @property
    def steps(self) -> int:
        """Number of optimizer steps that this stage trains, without those of its parent."""
        return self.plan.stop_step - (self.branch_step if self.continues else 0)

    def new_record(self, tasks: StageTasks) -> StageRecord:
        """Returns a record of the stage that holds what is known before it is trained."""
        corpus, counted = self.plan.corpus, self.plan.corpus.train.random_access
        return StageRecord(
            name=self.name,
            parent=self.parent,
            trunk=self.parent if self.continues else None,
            branch_step=self.branch_step if self.parent else None,
            objective=type(self.plan.objective).__name__.lower(),
            tasks=[task.name for task in tasks.current],
            data={
                "name": corpus.name, "config": corpus.config, "hash": corpus.hash,
                "tokenizer_hash": corpus.tokenizer.hash,
                "tokens": corpus.train.num_tokens if counted else None,
                "bytes": corpus.train.num_bytes if counted else None,
                "separator": corpus.tokenizer.separator_texts,
            },
            batch_tokens=self.plan.batch_tokens,
            lr=self.plan.optimizer.lr,
        )  # fmt: skip


class Layout:
    """The choices of the group `stages`: how a run is divided into stages. This one makes a single stage."""

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        """Returns the planned stages, parents before their children.

        Raises ValueError when the config of a stage does not fit the plan.
        """
        return [Stage(SINGLE_STAGE, plan(cfg, None), cfg)]


class TrunkAndCooldowns(Layout):
    """A trunk at a constant learning rate, and a branch with a cooldown for each number of tokens in `branches`.

    A branch equals a separate run of that many tokens with the warm-up of the trunk, because both train on the same
    data in the same order at the same learning rates. That warm-up is `schedule.warmup_steps`, or a fifth of the steps
    of the shortest branch if that is less. K points of a scaling law therefore cost only the longest run and the
    cooldowns of the shorter ones (Hägele et al. 2024, arXiv:2405.18392, section 4).

    branches  training tokens of each branch, counted from the start of the trunk, such as [1M, 2M, 4M]
    """

    def __init__(self, branches: Annotated[Sequence[Quantity], MinLen(1)]) -> None:
        self.branches = branch_tokens(branches)
        if len({tokens for _, tokens in self.branches}) < len(branches):
            raise ValueError(f"stages.branches={list(branches)} lists a number of tokens twice: remove one of the two")

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        """Returns the trunk and its branches. Raises ValueError when the schedule has no constant part for a trunk."""
        base = plan(cfg, None)
        if base.schedule.branch_step(2) is None:
            kind = type(base.schedule).__name__.lower()
            raise ValueError(
                f"stages=trunk_and_cooldowns needs a schedule that stays constant before it decays, which "
                f"schedule={kind} does not: set schedule=wsd"
            )
        totals = {name: max(2, round(tokens / base.batch_tokens)) for name, tokens in self.branches}
        if base.max_steps == 1:
            raise ValueError("trainer.max_steps=1 must be >= 2: stages=trunk_and_cooldowns needs a step for a cooldown")
        if base.max_steps is not None and max(totals.values()) > base.max_steps:  # shorten all branches alike
            shrink = base.max_steps / max(totals.values())
            totals = {name: max(2, round(total * shrink)) for name, total in totals.items()}
        # All branches have the warm-up of the shortest one, which is at most a fifth of its steps.
        schedule = base.schedule.limit_warmup(min(totals.values()) // 5)
        starts = {total: schedule.branch_step(total) or 0 for total in totals.values()}
        shortest, longest = min(starts), max(starts)
        if starts[shortest] < 1:
            raise ValueError(
                f"schedule.decay leaves no step of the trunk to the shortest of stages.branches, which has {shortest} "
                "steps: set a smaller schedule.decay, or a larger number of tokens"
            )
        trunk = replace(base, schedule=schedule, steps=longest, stop_step=starts[longest])
        stages = [Stage("trunk", trunk, cfg)]
        for name, total in totals.items():
            branch = replace(trunk, steps=total, stop_step=total)
            stages.append(Stage(name, branch, cfg, "trunk", True, starts[total]))
        return stages


class Chain(Layout):
    """Stages that train one model in turn: every stage starts from the last weights of the stage before it.

    The model has the task heads of all stages from the start, so that every stage can be scored on every task.

    chain  the stages by name and in order, each with the keys in which it differs from the run: data, objective,
           budget, schedule, optimizer, batch, retention, adapter. `retention` and `adapter` of the run apply to all
           stages except the first. Where every stage has a budget, one of the run is their total
    """

    keeps_nodes: ClassVar[bool] = True  # the nodes in `chain` are built stage by stage

    def __init__(self, chain: Mapping[str, Config]) -> None:
        if len(chain) < 2:
            raise ValueError(f"stages.chain={list(chain)} must have at least two stages: add one, or set stages=null")
        self.chain = chain

    def stages(self, cfg: DictConfig, plan: Planner) -> list[Stage]:
        """Returns the stages in order. Raises ValueError when two stages have different texts of the same name."""
        stages: list[Stage] = []
        for name, node in stage_configs(OmegaConf.to_container(cfg, resolve=True)).items():  # type: ignore[arg-type]
            before = stages[-1] if stages else None
            config = OmegaConf.create(node)
            stage_plan = plan(config, before.plan if before else None)
            _check_text_names(stages, name, stage_plan.corpus)
            step = before.plan.stop_step if before else 0
            stages.append(Stage(name, stage_plan, config, before.name if before else None, False, step))
        outputs = {head: count for stage in stages for head, count in stage.plan.outputs.items()}
        return [replace(stage, plan=replace(stage.plan, outputs=outputs)) for stage in stages]


def _check_text_names(stages: Sequence[Stage], name: str, corpus: Corpus) -> None:
    """Raises ValueError when a text of a stage has the name of another text of an earlier stage."""
    texts = {task.name: ("the start point", task.held_out) for stage in stages[:1] for task in stage.plan.earlier}
    texts |= {task: (stage.name, text) for stage in stages for task, text in stage.plan.corpus.validation.items()}
    for task, held_out in corpus.validation.items():
        if task in texts and not same_text(texts[task][1], held_out):
            raise ValueError(
                f"stages.chain.{name}: its text {task!r} differs in content or labels from the text of that name in "
                f"{texts[task][0]}, but scores are stored by name: set data.name of the stage to another name, or "
                "rename the file"
            )


def branch_steps(stages: Sequence[Stage], name: str) -> list[int]:
    """Returns the steps of the stage `name` from which other stages start, in ascending order."""
    return sorted({stage.branch_step for stage in stages if stage.parent == name})


@dataclass(frozen=True)
class StageTasks:
    """The tasks that a stage trains on, those of earlier stages and of the start point, and those of later stages."""

    current: list[Task]
    earlier: list[Task]
    later: list[Task]


@dataclass
class Tree:
    """The stages of a run, and where and on what hardware they are trained.

    done  entries of the finished stages in summary.json, by name
    """

    stages: list[Stage]
    folder: Path
    hardware: Local
    loggers: list[Logger]
    done: dict[str, Json]

    def checkpoints(self, name: str) -> Path:
        """Returns the folder of a stage's checkpoints."""
        return self.folder / "stages" / name / "checkpoints"

    def axis(self, stage: Stage) -> StageAxis:
        """Returns where the steps of a stage lie: behind those of all stages before it on the path from the root."""
        if stage.parent is None:
            return StageAxis(batch_tokens=stage.plan.batch_tokens)
        parent = next(other for other in self.stages if other.name == stage.parent)
        before = self.axis(parent)
        if stage.continues:  # its steps are counted with those of the parent
            return before
        last = self.done[parent.name]["steps"]
        return StageAxis(before.steps(last), before.tokens(last), stage.plan.batch_tokens)

    @cached_property
    def start_point(self) -> StartPoint | None:
        """The start point of the run; None when its config has none."""
        node = self.stages[0].config.init
        return None if node is None else build(node)

    def verify(self) -> None:
        """Raises ValueError when the start point does not fit the model, before anything is written or trained."""
        first = self.stages[0]
        begun = first.name in self.done or checkpoint.steps(self.checkpoints(first.name))
        if self.start_point is not None and not begun:
            self.start_point.load(first.plan.model.to(self.hardware.dtype))

    @property
    def from_weights(self) -> bool:
        """Whether any stage starts from trained weights: of the start point, of another stage, or of `model=hf`."""
        after_another = any(stage.parent and not stage.continues for stage in self.stages)
        return after_another or starts_trained(self.stages[0].config)

    def load_start(self, stage: Stage, model: Model) -> bool:
        """Loads the trained weights that a stage starts from, which a new `model=hf` has. Returns if there are any."""
        if stage.parent is not None and not stage.continues:
            load_stage(model, self.folder, stage.parent)
            return True
        if self.start_point is not None:
            self.start_point.load(model)
        return stage.parent is None and starts_trained(stage.config)

    def begin_objective(self, stage: Stage, model: Model | None) -> None:
        """Lets the objective of a stage compute what it needs from the model that the stage (or its trunk) starts with.

        A stage that has checkpoints loads the results of its first start; `model` may then be None.
        """
        first = stage.parent if stage.continues and stage.parent else stage.name
        with self.hardware.runtime.precision(self.hardware.device):  # the precision of training
            stage.plan.objective.begin(model, stage.plan.corpus, self.checkpoints(first).parent)

    def newest_checkpoint(self, stage: Stage, limit: int | None = None) -> tuple[checkpoint.Checkpoint | None, bool]:
        """Returns the checkpoint that a stage continues from, and whether the stage itself saved it.

        A branch that has no checkpoint yet continues from that of its trunk. Any other stage without a checkpoint gets
        (None, False). Warns about damaged checkpoints.

        limit  step after which copies elsewhere do not count; None: all count
        """
        saved, defects = _latest(stage.config, self.checkpoints(stage.name), limit)
        checkpoint.warn_of_damage(defects)
        if self.hardware.rank == 0 and saved:
            print_line(f"resuming at step {saved.step:,} from {saved.path}", err=True)
        if saved is None and stage.continues:
            assert stage.parent is not None
            trunk = self.checkpoints(stage.parent)
            return _read(stage.config, trunk, checkpoint.name(stage.branch_step)), False
        return saved, saved is not None

    @cached_property
    def tasks(self) -> list[Task]:
        """All tasks in the order of training, those of the start point first.

        A task that several stages train on is scored with the settings of the last of them.
        """
        first = self.stages[0]
        trained = [task for stage in self.stages for task in corpus_tasks(stage.plan.corpus, stage.plan.objective)]
        return list({task.name: task for task in (*first.plan.earlier, *trained)}.values())

    def stage_tasks(self, stage: Stage) -> StageTasks:
        """Returns the tasks of a stage, of the stages before it and the start point, and of the stages after it."""
        stages_before = self.stages[: self.stages.index(stage)]
        current = set(stage.plan.corpus.validation)
        before = {name for other in stages_before for name in other.plan.corpus.validation}
        before = (before | {task.name for task in self.stages[0].plan.earlier}) - current
        later = {task.name for task in self.tasks} - current - before
        return StageTasks(*([task for task in self.tasks if task.name in names] for names in (current, before, later)))


def _has_copies(config: DictConfig) -> bool:
    """Whether the checkpoints of a stage are copied to a remote folder."""
    return ((config.get("callbacks") or {}).get("checkpoints") or {}).get("remote") is not None


def _latest(config: DictConfig, folder: Path, limit: int | None) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The newest valid checkpoint of a folder or of its copies, and the defects of others."""
    if not _has_copies(config):
        return checkpoint.latest(folder)
    from kleiber.training import remote

    return remote.latest(config, folder, limit)


def _read(config: DictConfig, folder: Path, name: str) -> checkpoint.Checkpoint:
    """The checkpoint of a name, of a folder or of its copies."""
    if not _has_copies(config):
        return checkpoint.read(folder / name)
    from kleiber.training import remote

    return remote.read(config, folder, name)
