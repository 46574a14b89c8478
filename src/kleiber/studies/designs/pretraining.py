"""The design of the study `transfer`: models pre-trained on several texts, then every task from each and from nothing.

It plans in three rounds: the pre-trained runs; at the first seed and all labels every task at every learning rate;
then every seed and share of the labels at the rate that scored best. It refuses data sets that are out of reach.
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

Lines = Sequence[str]


@dataclass(frozen=True)
class Kind:
    """A model and how it is trained.

    model     its overrides, in both phases
    pretrain  of the pre-training: objective, masks, learning rate
    lrs       learning rates of fine-tuning; of one nothing is tuned
    scratch   the same for the model that starts from nothing; none of them leaves it out
    """

    model: Lines
    pretrain: Lines
    lrs: Sequence[float]
    scratch: Sequence[float] = ()


@dataclass(frozen=True)
class Start:
    """A kind with its weights: `base` are the overrides of the run that made them, None for new ones."""

    kind: str
    name: str
    base: Lines | None


@dataclass
class Pretraining:
    """Every kind on every text of every size, and every task from each.

    kinds    by name: {model: [overrides], pretrain: [overrides], lrs: [..], scratch: [..]}
    sources  texts by name, overrides each: {docs: [data=builtin]}
    sizes    bytes of each text that are read: [2M, 8M]
    pretrain, finetune  overrides of all runs of a phase
    tasks    by name, overrides each: {sst2: [data=glue/sst2, budget.steps=300]}
    only     names of kinds, sources and tasks: those that are planned, of what has none named all
    shares   of the labels
    seeds    of base and task alike: those of one seed are compared
    """

    kinds: Mapping[str, Mapping[str, Any]]
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
            if not any(name in given for given in there.values()):
                told = ", ".join(one for given in there.values() for one in given)
                raise ValueError(f"design.only has {name}, and there are {told}.{did_you_mean(name, told.split(', '))}")
        kinds, self.sources, self.tasks = (wanted(given, self.only) for given in there.values())
        self.chosen = {name: Kind(**kind) for name, kind in kinds.items()}
        if not self.sizes or not self.shares or not all(0 < share <= 1 for share in self.shares) or self.seeds < 1:
            raise ValueError(
                f"design.sizes={list(self.sizes)}, design.shares={list(self.shares)}, design.seeds={self.seeds}: give "
                "a size, shares in (0, 1] and a seed at least"
            )
        if any(not kind.lrs for kind in self.chosen.values()):
            raise ValueError("design.kinds: every kind needs lrs, the learning rates of fine-tuning")
        self.shares = sorted(self.shares, reverse=True)

    def starts(self) -> list[Start]:
        """New weights of each kind first, then what each text gives."""
        new = [Start(name, SCRATCH, None) for name, kind in self.chosen.items() if kind.scratch]
        texts = itertools.product(self.chosen.items(), self.sources.items(), self.sizes)
        for (name, kind), (source, lines), size in texts:
            base = [*kind.model, *kind.pretrain, *lines, f"data.max_bytes={size}", *self.pretrain]
            start = f"{source}/{size}"  # told to the run, since one text's overrides can be a part of another's
            new.append(Start(name, start, [*base, f"study.kind={name}", f"study.start={start}"]))
        return new

    def bases(self) -> list[list[str]]:
        told = [start.base for start in self.starts() if start.base is not None]
        return [[*base, f"seed={seed}"] for base in told for seed in range(self.seeds)]

    def rounds(self, ground: Ground) -> Iterator[list[list[str]]]:
        self.needs()
        yield self.bases()
        yield self.tuning(ground)
        yield self.scoring(ground)

    def tuning(self, ground: Ground) -> list[list[str]]:
        """At the first seed and the most labels, every rate of every task; kinds on other texts take the first's."""
        runs, found = ground.runs(), []
        for start in self.tuned():
            rates = self.rates(start)
            if len(rates) > 1:
                for task, lr in itertools.product(self.tasks, rates):
                    found += self.cell(runs, start, task, self.shares[0], 0, lr)
        return found

    def scoring(self, ground: Ground) -> list[list[str]]:
        """Every seed and share at the rate that scored best in tuning, at the first rate while nothing has scored."""
        runs, found = ground.runs(), []
        best = tuned_rates([run for run in runs if run.stages], self.shares[0])
        first = {start.kind: start.name for start in reversed(self.tuned()) if start.base is not None}
        for seed, start, task, share in itertools.product(range(self.seeds), self.starts(), self.tasks, self.shares):
            asked = SCRATCH if start.base is None else first[start.kind]
            lr = best.get((start.kind, asked, task), self.rates(start)[0])
            found += self.cell(runs, start, task, share, seed, lr)
        return found

    def tuned(self) -> list[Start]:
        """New weights, and each kind's first text."""
        starts = self.starts()
        first = {start.kind: start for start in reversed(starts) if start.base is not None}
        return [start for start in starts if start.base is None or start is first[start.kind]]

    def rates(self, start: Start) -> Sequence[float]:
        kind = self.chosen[start.kind]
        return kind.scratch if start.base is None else kind.lrs

    def cell(self, runs: Sequence[Run], start: Start, task: str, share: float, seed: int, lr: float) -> list[list[str]]:
        """The overrides of one fine-tune, or none where its base has not finished.

        One that starts from nothing reads the tokens of its kind's first text, so that the start alone differs.
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
        """Raises ValueError for data sets of the hub that have no copy here while the hub cannot be reached."""
        told = {**self.sources, **self.tasks}
        names = {name: path for name, lines in told.items() if (path := hub_name(lines))}
        absent = {name: path for name, path in names.items() if hub.local_copy(path) is None}
        if absent and not hub.reachable():
            listed = ", ".join(f"{path} for {name}" for name, path in absent.items())
            raise ValueError(
                f"the design needs {listed}, which the hub does not give now: set KLEIBER_DATA=DIR with copies in "
                "DIR/owner/name or DIR/name, or name the others alone with design.only=[...]"
            )


def wanted(given: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
    """What `only` names of it; all where it names none."""
    if not given:
        raise ValueError("design: give kinds, sources and tasks, one of each at least")
    kept = {name: value for name, value in given.items() if name in only}
    return kept or dict(given)


def hub_name(lines: Lines) -> str | None:
    """The data set on the hub that overrides read, None where they read none."""
    told: dict[str, str] = dict(line.split("=", 1) for line in lines)  # type: ignore[misc]
    file = conf_dir() / "data" / f"{told.get('data', 'builtin')}.yaml"
    node: Any = OmegaConf.load(file) if file.is_file() else {}
    path = told.get("data.path") or str(node.get("path") or "")
    return path if path and hub.is_name(path) and not Path(path).exists() else None
