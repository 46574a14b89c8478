"""The designs of continual learning: tasks in sequence, in several orders, by every method and from every start point.

Each cell is one chain of stages. Reference runs of one task alone from the same start point measure how well a task can
be learned. WiSE is not allowed: the next stage of a chain starts from the trained weights, not from their average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from kleiber.config.compose import conf_dir
from kleiber.config.errors import did_you_mean
from kleiber.config.stages import OWN, RETAINING
from kleiber.studies.compare.task_rows import AGAIN
from kleiber.studies.designs.grid import filled
from kleiber.studies.designs.methods import Values, product
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.designs.plan import Ground

GROUPS = ("data", "objective", "optimizer", "schedule")  # config groups of which a task may name a choice
FOLLOWING = ("tokenizer", "vocab_size")  # keys of a task's data that the start point sets, unless the task does

Task = Row


class Sequences:
    """For every seed and start point: each task alone, and every order of all tasks by every arm and learning rate.

    tasks    overrides of the tasks, by name: {trec: {data: topic/trec, objective: classify}}
    arms     overrides of the stages after the first, by name: {ewc: {retention: ewc, ...: [1, 10]}}; a list makes a run
             of every value, null removes an arm
    orders   number of orders (balanced, see `williams`), or the orders as lists of names
    starts   overrides of the start points, by name: {base: {init: checkpoint, init.path: RUN}}; `{seed}` is the seed
    lrs      learning rates of every arm, start point and reference that does not set `optimizer.lr`
    seeds    number of seeds
    alone    whether each task is also trained alone, for intransigence
    again    whether the first task is trained once more at the end, for savings
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        arms: Mapping[str, Mapping[str, Values] | None],
        orders: int | Sequence[Sequence[str]] = 2,
        starts: Mapping[str, Mapping[str, Values] | None] | None = None,
        lrs: Sequence[float] = (),
        seeds: int = 2,
        alone: bool = True,
        again: bool = True,
    ) -> None:
        self.tasks = {name: stage(name, overrides) for name, overrides in tasks.items()}
        self.lines = {name: [line(*item) for item in overrides.items()] for name, overrides in tasks.items()}
        self.arms = {name: dict(arm) for name, arm in arms.items() if arm is not None}
        self.starts = {
            name: dict(overrides) for name, overrides in (starts or {"scratch": {}}).items() if overrides is not None
        }
        if len(self.tasks) < 2 or AGAIN in self.tasks:
            raise ValueError(f"design.tasks={list(tasks)} must have at least two tasks, none of them named {AGAIN}")
        if not self.arms or not self.starts or seeds < 1:
            raise ValueError(
                f"design.arms={list(self.arms)}, design.starts={list(self.starts)}, design.seeds={seeds}: give at "
                "least one of each"
            )
        for name, arm in self.arms.items():
            if "wise" in str(arm.get("retention")):
                raise ValueError(
                    f"design.arms.{name}: retention=wise has no effect in a sequence, since the next stage starts from "
                    "the trained weights; remove it, or use study=forgetting, which has one stage"
                )
        self.orders = orders_of(list(self.tasks), orders)
        self.lrs, self.seeds, self.alone, self.again = list(lrs), seeds, alone, again

    def cells(self, ground: Ground | None = None) -> list[list[str]]:
        """The overrides of each cell: all of one seed before the next, references first."""
        planned = []
        for seed in range(self.seeds):
            for name, start in self.starts.items():
                last = [f"seed={seed}", f"study.start={name}"]
                values = {"seed": str(seed)}
                if self.alone:
                    for lines in self.lines.values():
                        planned += [[*lines, *overrides, *last] for overrides in self._varied(start, {}, values)]
                for order in self.orders:
                    stages = ["stages=chain", f"stages.chain={grammar(self.chain(order))}"]
                    for arm in self.arms.values():
                        planned += [[*stages, *overrides, *last] for overrides in self._varied(start, arm, values)]
        return planned

    def _varied(self, start: Task, arm: Task, values: Mapping[str, str]) -> list[list[str]]:
        rates = {"optimizer.lr": self.lrs} if self.lrs else {}
        return [[filled(line, values) for line in overrides] for overrides in product({**rates, **arm, **start})]

    def chain(self, order: Sequence[str]) -> Json:
        """The stages of one order; with `again` a last stage without retention trains the first task once more."""
        stages = {name: self.tasks[name] for name in order}
        plain = dict.fromkeys(RETAINING)
        return {**stages, AGAIN: {**stages[order[0]], **plain}} if self.again else stages


def line(key: str, value: Values) -> str:
    """The override of a single run that sets `key` to `value`."""
    return f"{key}={value if isinstance(value, str) else grammar(value)}"


def stage(name: str, overrides: Task) -> Json:
    """The config node of a stage: `data: topic/trec` is the content of that choice, `data.path: x` sets a key of it.

    Raises ValueError for a group that a task may not set.
    """
    nodes: Json = {}
    for key, value in sorted(overrides.items(), key=lambda item: "." in item[0]):  # choices before their keys
        group, *keys = key.split(".")
        if group not in OWN or (not keys and group not in GROUPS):
            near = did_you_mean(group, OWN)
            raise ValueError(f"design.tasks.{name}.{key}: a task may set {', '.join(GROUPS)} and keys in them.{near}")
        if not keys:
            nodes[group] = choice(group, str(value))
            continue
        node = nodes.setdefault(group, {})
        for name_part in keys[:-1]:
            node = node.setdefault(name_part, {})
        node[keys[-1]] = value
    return nodes


def choice(group: str, name: str) -> Json:
    """The content of conf/<group>/<name>.yaml. Raises ValueError for an unknown choice and for one with defaults."""
    names = sorted(str(path.relative_to(conf_dir() / group).with_suffix("")) for path in
                   (conf_dir() / group).rglob("*.yaml"))  # fmt: skip
    if name not in names:
        raise ValueError(f"{group}={name}: no such choice.{did_you_mean(name, names)} Choices: {', '.join(names)}")
    node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"), resolve=False)
    if "defaults" in node:
        raise ValueError(f"{group}={name} has a defaults list; a task needs a choice without one")
    return {key: value for key, value in node.items() if group != "data" or key not in FOLLOWING}


def orders_of(names: Sequence[str], orders: int | Sequence[Sequence[str]]) -> list[list[str]]:
    """The orders as lists of names: the first `orders` balanced ones, or those that are listed.

    Raises ValueError for an order without every task, for a repeated order, and for more than the balanced ones.
    """
    if isinstance(orders, int):
        balanced = [[names[i] for i in row] for row in williams(len(names))]
        if not 1 <= orders <= len(balanced):
            raise ValueError(
                f"design.orders={orders}: from 1 to {len(balanced)} for {len(names)} tasks, or a list of them"
            )
        return balanced[:orders]
    for order in orders:
        if sorted(order) != sorted(names):
            raise ValueError(f"design.orders: {list(order)} must contain each of {', '.join(names)} once")
    if not orders or len({tuple(order) for order in orders}) < len(orders):
        raise ValueError(f"design.orders={[list(o) for o in orders]} must have at least one order, and each only once")
    return [list(order) for order in orders]


def williams(n: int) -> list[list[int]]:
    """Orders of n items in which each item is at each place, and follows each other item, equally often.

    n of them for even n, 2 n for odd; the first is 0, 1, ... Williams 1949, Aust. J. Sci. Res. A 2, 149.
    """
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]
    names = {value: place for place, value in enumerate(zigzag)}
    rows = [[names[(value + shift) % n] for value in zigzag] for shift in range(n)]
    return rows if n % 2 == 0 else [*rows, *(row[::-1] for row in rows)]


def grammar(value: Values) -> str:
    """A value in Hydra's override grammar; strings are quoted."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{grammar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(grammar, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
