"""The design of continual learning: trains all tasks in sequence, in several orders, by every method.

Each cell is a chain of stages, one for each task. Reference runs train a single task from the same start point, and so
measure how well it can be learned. WiSE is not allowed here: it averages the weights after training, but the next stage
of a chain starts from the trained weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kleiber.config.compose import read_choice
from kleiber.config.errors import did_you_mean
from kleiber.config.stages import LATER_STAGE_KEYS, STAGE_KEYS
from kleiber.studies.designs.design import Cell, Level, SweepContext, Values, combine, seed_levels
from kleiber.studies.sequence_metrics import AGAIN
from kleiber.types import Count, Json, Positive, Row

GROUPS = ("data", "objective", "optimizer", "schedule")  # config groups of which a task may name a choice
FOLLOWING = ("tokenizer", "vocab_size")  # keys of a task's data that the start point sets, unless the task does

Task = Row


class Sequences:
    """For every seed and start point: each task alone, and every order of all tasks by every arm and learning rate.

    tasks    overrides of the tasks, by name: {trec: {data: topic/trec, objective: classify}}; null removes a task
    arms     overrides of the methods, by name: {ewc: {retention: ewc, ...: [1, 10]}}, used from the second stage on; a
             list of values makes one run for each value, null removes an arm
    orders   number of balanced orders (see `williams`), or a list of orders, each a list of all task names
    starts   overrides of the start points, by name: {base: {init: checkpoint, init.path: RUN}}; the placeholder
             `{seed}` is replaced by the seed of the run
    lrs      learning rates of every arm, start point and reference run that does not set `optimizer.lr`
    seeds    number of seeds
    alone    whether to train each task alone as a reference, which the metric intransigence needs
    again    whether to train the first task once more at the end, which the metric savings needs
    """

    def __init__(
        self,
        tasks: Mapping[str, Task | None],
        arms: Mapping[str, Mapping[str, Values] | None],
        orders: Count | Sequence[Sequence[str]] = 2,
        starts: Mapping[str, Mapping[str, Values] | None] | None = None,
        lrs: Sequence[Positive] = (),
        seeds: Count = 2,
        alone: bool = True,
        again: bool = True,
    ) -> None:
        chosen = {name: overrides for name, overrides in tasks.items() if overrides is not None}
        self.tasks = {name: stage_node(name, overrides) for name, overrides in chosen.items()}
        self.alone = [single_run(overrides) for overrides in chosen.values()] if alone else []
        self.arms = {name: dict(arm) for name, arm in arms.items() if arm is not None}
        self.starts = {
            name: dict(overrides) for name, overrides in (starts or {"scratch": {}}).items() if overrides is not None
        }
        if len(self.tasks) < 2 or AGAIN in self.tasks:
            raise ValueError(
                f"design.tasks={list(chosen)} must have at least two tasks, and none of them may have the reserved "
                f"name {AGAIN}"
            )
        if not self.arms or not self.starts:
            raise ValueError(
                f"design.arms={list(self.arms)} and design.starts={list(self.starts)} must each have at least one entry"
            )
        for name, arm in self.arms.items():
            if "wise" in str(arm.get("retention")):
                raise ValueError(
                    f"design.arms.{name}: retention=wise has no effect here, since the next stage starts from the "
                    "trained weights and not from the averaged ones; remove it, or use study=forgetting, which "
                    "fine-tunes once"
                )
        self.orders = orders_of(list(self.tasks), orders)
        self.rates = Level({"optimizer.lr": list(lrs)} if lrs else {})
        self.seeds, self.again = seeds, again

    def cells(self, context: SweepContext | None = None) -> list[Cell]:
        """Returns the overrides of each cell, one seed after another, with the reference runs first."""
        stages = [self.chain(order) for order in self.orders]
        chains = [Level({"stages": "chain", "stages.chain": hydra_literal(chain)}) for chain in stages]
        trained = [task | self.rates for task in self.alone]
        trained += [chain | self.rates | Level(arm) for chain in chains for arm in self.arms.values()]
        starts = [
            Level(start) | seed | Level({"study.start": name})
            for seed in seed_levels(self.seeds)
            for name, start in self.starts.items()
        ]
        return combine(trained, starts, slow=1)

    def chain(self, order: Sequence[str]) -> Json:
        """Returns the stages of one order; with `again`, the last one trains the first task without retention."""
        stages = {name: self.tasks[name] for name in order}
        plain = dict.fromkeys(LATER_STAGE_KEYS)
        return {**stages, AGAIN: {**stages[order[0]], **plain}} if self.again else stages


def single_run(overrides: Task) -> Level:
    """Returns the overrides of a task as those of a run that trains this task only."""
    return Level({key: [value if isinstance(value, str) else hydra_literal(value)] for key, value in overrides.items()})


def stage_node(name: str, overrides: Task) -> Json:
    """Returns the config node of a stage from the overrides of a task.

    `data: topic/trec` inserts the content of conf/data/topic/trec.yaml, and `data.path: x` sets a key of it. Raises
    ValueError for a config group that a task may not set.
    """
    nodes: Json = {}
    for key, value in sorted(overrides.items(), key=lambda item: "." in item[0]):  # choices before their keys
        group, *keys = key.split(".")
        if group not in STAGE_KEYS or (not keys and group not in GROUPS):
            near = did_you_mean(group, STAGE_KEYS)
            raise ValueError(
                f"design.tasks.{name}.{key} is not allowed: a task may set {', '.join(GROUPS)} and keys below "
                f"them.{near}"
            )
        if not keys:
            nodes[group] = load_choice(group, str(value))
            continue
        node = nodes.setdefault(group, {})
        for name_part in keys[:-1]:
            node = node.setdefault(name_part, {})
        node[keys[-1]] = value
    return nodes


def load_choice(group: str, name: str) -> Json:
    """Returns the content of the file <group>/<name>.yaml of a choice.

    Raises ValueError if there is no such file, or if it has a defaults list.
    """
    node = read_choice(group, name)
    if "defaults" in node:
        raise ValueError(
            f"{group}={name} cannot be used in design.tasks, since its file has a defaults list; "
            "choose a file without one"
        )
    return {key: value for key, value in node.items() if group != "data" or key not in FOLLOWING}


def orders_of(names: Sequence[str], orders: int | Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the orders as lists of task names: the first `orders` balanced ones, or the listed ones.

    Raises ValueError for an order that does not contain every task, for a repeated order, and for a number above that
    of the balanced orders.
    """
    if isinstance(orders, int):
        balanced = [[names[i] for i in row] for row in williams(len(names))]
        if not 1 <= orders <= len(balanced):
            raise ValueError(
                f"design.orders={orders} must be between 1 and {len(balanced)} for {len(names)} tasks, or a list of "
                "orders"
            )
        return balanced[:orders]
    for order in orders:
        if sorted(order) != sorted(names):
            raise ValueError(f"design.orders: the order {list(order)} must contain each of {', '.join(names)} once")
    if not orders or len({tuple(order) for order in orders}) < len(orders):
        raise ValueError(f"design.orders={[list(o) for o in orders]} must list at least one order, and no order twice")
    return [list(order) for order in orders]


def williams(n: int) -> list[list[int]]:
    """Returns orders of n items in which each item is at each place, and directly after each other item, equally often.

    There are n orders for even n and 2 n for odd n; the first is 0, 1, ... Source: Williams 1949, Aust. J. Sci. Res. A
    2, 149.
    """
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]
    names = {value: place for place, value in enumerate(zigzag)}
    rows = [[names[(value + shift) % n] for value in zigzag] for shift in range(n)]
    return rows if n % 2 == 0 else [*rows, *(row[::-1] for row in rows)]


def hydra_literal(value: Values) -> str:
    """Formats a value in the grammar of Hydra's overrides; strings are quoted."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
