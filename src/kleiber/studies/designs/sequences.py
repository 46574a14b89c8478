"""The design of continual learning: tasks one after another, in several orders, by every method and from every start.

Each cell is one chain of stages; beside them stand references, runs of one task alone from the same start, which say
how well a task can be learned. It refuses WiSE: it averages the two ends of one stage, and the next stage would go on
from the trained end all the same, so R would be that of plain training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from kleiber.config.compose import conf_dir
from kleiber.config.errors import did_you_mean
from kleiber.config.stages import OWN, RETAINING
from kleiber.studies.compare.task_rows import AGAIN
from kleiber.studies.designs.grid import filled
from kleiber.studies.designs.methods import Values, product

GROUPS = ("data", "objective", "optimizer", "schedule")  # which a task may choose as on the command line
FOLLOWING = ("tokenizer", "vocab_size")  # of a task's data: left to the start point, unless the task names them

Task = Mapping[str, Any]


class Sequences:
    """For every seed and start: each task alone, and every order of all tasks by every arm at every learning rate.

    tasks    by name, what differs from the run, as on the command line: {trec: {data: topic/trec, objective: classify}}
    arms     by name, overrides of the stages after the first: {ewc: {retention: ewc, ...: [1, 10]}}; a list is every
             value, null leaves an arm out
    orders   how many (balanced: see `williams`), or the orders themselves as lists of names
    starts   by name, overrides: {base: {init: checkpoint, init.path: RUN}}; `{seed}` in a value is the seed
    lrs      learning rates of every arm, start and reference that names none itself (`optimizer.lr`)
    seeds    how many
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
        self.tasks = {name: stage(name, told) for name, told in tasks.items()}
        self.lines = {name: [line(*item) for item in told.items()] for name, told in tasks.items()}
        self.arms = {name: dict(arm) for name, arm in arms.items() if arm is not None}
        self.starts = {name: dict(one) for name, one in (starts or {"scratch": {}}).items() if one is not None}
        if len(self.tasks) < 2 or AGAIN in self.tasks:
            raise ValueError(f"design.tasks={list(tasks)}: at least two tasks, none of them called {AGAIN}")
        if not self.arms or not self.starts or seeds < 1:
            raise ValueError(
                f"design.arms={list(self.arms)}, design.starts={list(self.starts)}, design.seeds={seeds}: give at "
                "least one of each"
            )
        for name, arm in self.arms.items():
            if "wise" in str(arm.get("retention")):
                raise ValueError(
                    f"design.arms.{name}: retention=wise changes no stage of a sequence, since the next one goes on "
                    "from the trained end; leave it out, or use study=forgetting, which has one stage"
                )
        self.orders = orders_of(list(self.tasks), orders)
        self.lrs, self.seeds, self.alone, self.again = list(lrs), seeds, alone, again

    def cells(self, ground: Any = None) -> list[list[str]]:
        """All of one seed before the next, references first."""
        planned = []
        for seed in range(self.seeds):
            for name, start in self.starts.items():
                last = [f"seed={seed}", f"study.start={name}"]
                given = {"seed": str(seed)}
                if self.alone:
                    for lines in self.lines.values():
                        planned += [[*lines, *one, *last] for one in self._varied(start, {}, given)]
                for order in self.orders:
                    stages = ["stages=chain", f"stages.chain={grammar(self.chain(order))}"]
                    for arm in self.arms.values():
                        planned += [[*stages, *one, *last] for one in self._varied(start, arm, given)]
        return planned

    def _varied(self, start: Task, arm: Task, given: Mapping[str, str]) -> list[list[str]]:
        rates = {"optimizer.lr": self.lrs} if self.lrs else {}
        return [[filled(line, given) for line in one] for one in product({**rates, **arm, **start})]

    def chain(self, order: Sequence[str]) -> dict[str, Any]:
        """The stages of one order; the last, plain one trains its first task once more."""
        stages = {name: self.tasks[name] for name in order}
        plain = dict.fromkeys(RETAINING)
        return {**stages, AGAIN: {**stages[order[0]], **plain}} if self.again else stages


def line(key: str, value: Any) -> str:
    """An override of a run of its own."""
    return f"{key}={value if isinstance(value, str) else grammar(value)}"


def stage(name: str, told: Task) -> dict[str, Any]:
    """The node of a stage from overrides: `data=topic/trec` is the file of that choice, `data.path=x` a key in it."""
    made: dict[str, Any] = {}
    for key, value in sorted(told.items(), key=lambda item: "." in item[0]):  # choices before their keys
        group, *keys = key.split(".")
        if group not in OWN or (not keys and group not in GROUPS):
            near = did_you_mean(group, OWN)
            raise ValueError(f"design.tasks.{name}.{key}: a task may set {', '.join(GROUPS)} and keys in them.{near}")
        if not keys:
            made[group] = choice(group, str(value))
            continue
        node = made.setdefault(group, {})
        for one in keys[:-1]:
            node = node.setdefault(one, {})
        node[keys[-1]] = value
    return made


def choice(group: str, name: str) -> dict[str, Any]:
    """The node of conf/<group>/<name>.yaml. ValueError where there is none that stands alone."""
    known = sorted(str(path.relative_to(conf_dir() / group).with_suffix("")) for path in
                   (conf_dir() / group).rglob("*.yaml"))  # fmt: skip
    if name not in known:
        raise ValueError(f"{group}={name}: no such choice.{did_you_mean(name, known)} One of {', '.join(known)}")
    node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"), resolve=False)
    if "defaults" in node:
        raise ValueError(f"{group}={name} is built on another choice; a task needs one that stands alone")
    return {key: value for key, value in node.items() if group != "data" or key not in FOLLOWING}


def orders_of(names: Sequence[str], orders: int | Sequence[Sequence[str]]) -> list[list[str]]:
    """The orders as asked. ValueError for one that leaves out a task, and for more than there are balanced ones."""
    if isinstance(orders, int):
        made = [[names[i] for i in row] for row in williams(len(names))]
        if not 1 <= orders <= len(made):
            raise ValueError(f"design.orders={orders}: from 1 to {len(made)} for {len(names)} tasks, or a list of them")
        return made[:orders]
    for order in orders:
        if sorted(order) != sorted(names):
            raise ValueError(f"design.orders: {list(order)} is no order of {', '.join(names)}")
    if not orders or len({tuple(order) for order in orders}) < len(orders):
        raise ValueError(f"design.orders={[list(o) for o in orders]}: give at least one, and each once")
    return [list(order) for order in orders]


def williams(n: int) -> list[list[int]]:
    """Orders of n things in which each stands at each place equally often, and follows each other one equally often.

    n of them for even n, 2 n for odd; the first is 0, 1, ... Williams 1949, Aust. J. Sci. Res. A 2, 149.
    """
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]
    names = {value: place for place, value in enumerate(zigzag)}
    rows = [[names[(value + shift) % n] for value in zigzag] for shift in range(n)]
    return rows if n % 2 == 0 else [*rows, *(row[::-1] for row in rows)]


def grammar(value: Any) -> str:
    """A value in the override grammar of Hydra; text is quoted."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{grammar(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(grammar, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
