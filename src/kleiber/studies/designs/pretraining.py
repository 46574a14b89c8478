"""The design `pretraining` of the study `transfer`: models pre-trained on several texts and fine-tuned on every task.

It plans in three rounds: the pre-training runs; every task at every learning rate, at the first seed with all labels;
then every seed and share of the labels at the rate with the best score. The same models are also trained from scratch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kleiber.config import hub
from kleiber.config.compose import conf_dir
from kleiber.config.errors import did_you_mean
from kleiber.records.catalog import Run
from kleiber.studies.compare.task_rows import SCRATCH, tuned_rates
from kleiber.studies.designs.methods import Ground, trained
from kleiber.types import Json, Row

Lines = Sequence[str]


@dataclass(frozen=True)
class Kind:
    """A model and how it is trained.

    model     overrides of the model, in both phases
    pretrain  overrides of the pre-training: objective, masks, learning rate
    lrs       learning rates of fine-tuning; a single one is used without tuning
    scratch   learning rates of training from scratch; without any there is no such run
    """

    model: Lines
    pretrain: Lines
    lrs: Sequence[float]
    scratch: Sequence[float] = ()


@dataclass(frozen=True)
class Start:
    """The start point of a fine-tune: `base` are the overrides of the pre-training run, None for random weights."""

    kind: str
    name: str
    base: Lines | None


@dataclass
class Pretraining:
    """Every kind of model pre-trained on every text of every size, and every task from each.

    kinds    kinds by name: {model: [overrides], pretrain: [overrides], lrs: [..], scratch: [..]}
    sources  overrides of the pre-training texts, by name: {docs: [data=builtin]}
    sizes    bytes of each text: [2M, 8M]
    pretrain, finetune  overrides of all runs of a phase
    tasks    overrides of the tasks, by name: {sst2: [data=glue/sst2, budget.steps=300]}
    only     names of the kinds, sources and tasks to plan; where it names none of a group, all of the group
    shares   shares of the labels
    seeds    number of seeds, of pre-training and tasks; scores are paired by seed
    """

    kinds: Mapping[str, Row]
    sources: Mapping[str, Lines]
    tasks: Mapping[str, Lines]
    sizes: Sequence[int | float | str] = ("8M",)
    pretrain: Lines = ()
    finetune: Lines = ()
    only: Sequence[str] = ()
    shares: Sequence[float] = (1.0,)
    seeds: int = 3
    chosen: dict[str, Kind] = field(init=False)

    def __post_init__(self) -> None:
        there = {"kinds": self.kinds, "sources": self.sources, "tasks": self.tasks}
        for name in self.only:
            if not any(name in group for group in there.values()):
                choices = ", ".join(choice for group in there.values() for choice in group)
                raise ValueError(
                    f"design.only has {name}, and there are {choices}.{did_you_mean(name, choices.split(', '))}"
                )
        kinds, self.sources, self.tasks = (wanted(group, self.only) for group in there.values())
        self.chosen = {name: Kind(**kind) for name, kind in kinds.items()}
        if not self.sizes or not self.shares or not all(0 < share <= 1 for share in self.shares) or self.seeds < 1:
            raise ValueError(
                f"design.sizes={list(self.sizes)}, design.shares={list(self.shares)}, design.seeds={self.seeds}: give "
                "at least one size and one seed, and shares in (0, 1]"
            )
        if any(not kind.lrs for kind in self.chosen.values()):
            raise ValueError("design.kinds: every kind needs lrs, its learning rates of fine-tuning")
        self.shares = sorted(self.shares, reverse=True)

    def starts(self) -> list[Start]:
        """The start points of all fine-tunes: random weights of each kind first, then each kind on each text."""
        new = [Start(name, SCRATCH, None) for name, kind in self.chosen.items() if kind.scratch]
        texts = itertools.product(self.chosen.items(), self.sources.items(), self.sizes)
        for (name, kind), (source, lines), size in texts:
            base = [*kind.model, *kind.pretrain, *lines, f"data.max_bytes={size}", *self.pretrain]
            start = f"{source}/{size}"  # recorded by the run, since the overrides of one text may contain another's
            new.append(Start(name, start, [*base, f"study.kind={name}", f"study.start={start}"]))
        return new

    def bases(self) -> list[list[str]]:
        planned = [start.base for start in self.starts() if start.base is not None]
        return [[*base, f"seed={seed}"] for base in planned for seed in range(self.seeds)]

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        self.needs()
        yield self.bases()
        yield self.tuning(ground)
        yield self.scoring(ground)

    def tuning(self, ground: Ground) -> list[list[str]]:
        """Every rate of every task, at the first seed with all labels, for each kind's first text only."""
        runs, planned = ground.runs(), []
        for start in self.tuned():
            rates = self.rates(start)
            if len(rates) > 1:
                for task, lr in itertools.product(self.tasks, rates):
                    planned += self.cell(runs, start, task, self.shares[0], 0, lr)
        return planned

    def scoring(self, ground: Ground) -> list[list[str]]:
        """Every seed and share at the rate with the best score in tuning; at the first rate before any has a score."""
        runs, planned = ground.runs(), []
        best = tuned_rates([run for run in runs if run.stages], self.shares[0])
        first = {start.kind: start.name for start in reversed(self.tuned()) if start.base is not None}
        for seed, start, task, share in itertools.product(range(self.seeds), self.starts(), self.tasks, self.shares):
            asked = SCRATCH if start.base is None else first[start.kind]
            lr = best.get((start.kind, asked, task), self.rates(start)[0])
            planned += self.cell(runs, start, task, share, seed, lr)
        return planned

    def tuned(self) -> list[Start]:
        """The start points whose learning rates are tuned: random weights, and each kind on its first text."""
        starts = self.starts()
        first = {start.kind: start for start in reversed(starts) if start.base is not None}
        return [start for start in starts if start.base is None or start is first[start.kind]]

    def rates(self, start: Start) -> Sequence[float]:
        kind = self.chosen[start.kind]
        return kind.scratch if start.base is None else kind.lrs

    def cell(self, runs: Sequence[Run], start: Start, task: str, share: float, seed: int, lr: float) -> list[list[str]]:
        """The overrides of one fine-tune, or none where its pre-training run has not finished.

        Training from scratch uses the tokenizer of the kind's first text, so that only the start point differs.
        """
        origin = start if start.base is not None else next(o for o in self.tuned() if o.kind == start.kind and o.base)
        assert origin.base is not None
        run = trained(runs, [*origin.base, f"seed={seed}"], self.bases())
        if run is None:
            print(
                f"no finished base for {start.kind} {origin.name} seed {seed}: {task} from it is left out", flush=True
            )
            return []
        lines = [*self.finetune, *self.tasks[task], f"optimizer.lr={lr:g}", f"seed={seed}"]
        if start.base is None:
            tokenizer = [f"data.tokenizer={run.tokenizer}"] if run.tokenizer is not None else []
            lines = [*self.chosen[start.kind].model, *lines, *tokenizer]
        else:
            lines += ["init=checkpoint", f"init.path={run.folder}"]
        if share < 1:
            lines += [f"data.share={share:g}", f"data.seed={seed}"]
        labels = {"kind": start.kind, "start": start.name, "task": task, "share": f"{share:g}"}
        return [[*lines, *(f"study.{key}={value}" for key, value in labels.items())]]

    def needs(self) -> None:
        """Raises ValueError for data sets of the hub that have no local copy while the hub cannot be reached."""
        overrides = {**self.sources, **self.tasks}
        names = {name: hub_name(lines) for name, lines in overrides.items()}
        absent = {name: path for name, path in names.items() if path and hub.local_copy(path) is None}
        if absent and not hub.reachable():
            listed = ", ".join(f"{path} for {name}" for name, path in absent.items())
            raise ValueError(
                f"the design needs {listed}, but the hub cannot be reached: set KLEIBER_DATA=DIR with copies in "
                "DIR/owner/name or DIR/name, or plan other tasks alone with design.only=[...]"
            )


def wanted(choices: Row, only: Sequence[str]) -> Json:
    """The choices that `only` names; all where it names none. Raises ValueError where there are none."""
    if not choices:
        raise ValueError("design.kinds, design.sources and design.tasks need at least one of each")
    kept = {name: value for name, value in choices.items() if name in only}
    return kept or dict(choices)


def hub_name(lines: Lines) -> str | None:
    """The name of the data set of the hub that the overrides choose; None where they choose none."""
    values: dict[str, str] = dict(line.split("=", 1) for line in lines)  # type: ignore[misc]
    file = conf_dir() / "data" / f"{values.get('data', 'builtin')}.yaml"
    node: Any = OmegaConf.load(file) if file.is_file() else {}
    path = values.get("data.path") or str(node.get("path") or "")
    return path if path and hub.is_name(path) and not Path(path).exists() else None
