"""The design `pretraining` of the study `transfer`: pre-trains on several texts and fine-tunes on all tasks.

It has three rounds: the pre-training runs, which may have several learning rates; the fine-tuning runs that tune the
learning rate of each task, with the first seed and all labels; and the fine-tuning runs with every seed and label
fraction, at the learning rate with the best score. The same models are also trained on the tasks from scratch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Le, MinLen

from kleiber.config import Quantity, did_you_mean, is_name, local_copy, reachable, read_choice
from kleiber.records import Run
from kleiber.studies import SCRATCH
from kleiber.studies.designs import (
    LR,
    Cell,
    Level,
    RunSource,
    combine,
    finished_base,
    from_checkpoint,
    parse_lines,
    seed_levels,
)
from kleiber.types import Count, Json, Row
from kleiber_topics.transfer.transfer import best_base_rate, tuned_rates

Lines = Sequence[str]


@dataclass(frozen=True)
class Kind:
    """A model and how it is trained.

    model     overrides of the model, for pre-training and fine-tuning
    pretrain  overrides of pre-training: objective, masking, learning rate
    lrs       learning rates of fine-tuning; a single rate is used without tuning
    scratch   learning rates of training the tasks from scratch; if empty, the model is not trained from scratch
    pretrain_lrs  learning rates of pre-training; if empty, that of `pretrain` or of the config. Every seed is trained
              at every rate, and fine-tuning starts from the runs at the rate of lowest mean loss
    """

    model: Lines
    pretrain: Lines
    lrs: Sequence[float]
    scratch: Sequence[float] = ()
    pretrain_lrs: Sequence[float] = ()

    def rates(self) -> Level:
        """The factor of pre-training: every rate of `pretrain_lrs`."""
        return Level({LR: [f"{lr:g}" for lr in sorted(self.pretrain_lrs)]} if self.pretrain_lrs else {})


def read_kind(name: str, node: Row) -> Kind:
    """Returns the kind of a config node. Raises ValueError for an unknown or a missing key."""
    try:
        return Kind(**node)
    except TypeError:
        keys = "must have model, pretrain and lrs, and may have scratch and pretrain_lrs"
        raise ValueError(f"design.kinds.{name}: a kind {keys}; this one has {', '.join(node)}") from None


@dataclass(frozen=True)
class Start:
    """The start point of fine-tuning runs: random weights (name `SCRATCH`), or a pre-trained model.

    base      overrides of the pre-training run; for random weights, of the one whose tokenizer is used. Its learning
              rate is a list where pre-training is tuned
    tuned_on  name of the start point of the same kind whose learning rates are used
    """

    kind: str
    name: str
    base: Level
    tuned_on: str


@dataclass
class Pretraining:
    """Pre-trains every kind of model on every text at every text size, and fine-tunes each result on every task.

    kinds    models by name: {gpt: {model: [overrides], pretrain: [overrides], lrs: [..], scratch: [..]}}, see `Kind`
    sources  overrides of the pre-training texts, by name: {docs: [data=builtin]}
    sizes    sizes of the pre-training text in bytes: [2M, 8M]; the first size of the first text is the one whose models
             tune the rates
    tokenizer  name of a text such as docs/2M: its BPE tokenizer is that of all models, so that texts differ in nothing
             else; null: each text trains a tokenizer of its own
    pretrain, finetune  overrides of all pre-training runs, and of all fine-tuning runs
    tasks    overrides of the tasks, by name: {sst2: [data=glue/sst2, budget.steps=300]}
    only     names of kinds, sources and tasks to include; all kinds if it names no kind, and so for sources and tasks
    shares   fractions of the labels to fine-tune on, in (0, 1]
    share_sizes  sizes of the texts whose models are fine-tuned on fewer than the most labels; empty: all
    scratch_shares  further fractions of the labels for training from scratch, whose learning curve measures effective
             data
    control  overrides of the runs from scratch, such as evals=[reference]
    seeds    number of seeds; a fine-tuning run has the seed of its pre-training run
    """

    kinds: Mapping[str, Row]
    sources: Mapping[str, Lines]
    tasks: Mapping[str, Lines]
    sizes: Annotated[Sequence[Quantity], MinLen(1)] = ("8M",)
    pretrain: Lines = ()
    finetune: Lines = ()
    only: Sequence[str] = ()
    shares: Annotated[Sequence[Annotated[float, Gt(0), Le(1)]], MinLen(1)] = (1.0,)
    share_sizes: Sequence[Quantity] = ()
    scratch_shares: Sequence[Annotated[float, Gt(0), Le(1)]] = ()
    control: Lines = ()
    tokenizer: str | None = None
    seeds: Count = 3
    chosen: dict[str, Kind] = field(init=False)
    common_tokenizer: Path | None = field(init=False, default=None)  # folder, once its run has finished

    def __post_init__(self) -> None:
        there = {"kinds": self.kinds, "sources": self.sources, "tasks": self.tasks}
        for name in self.only:
            if not any(name in group for group in there.values()):
                choices = ", ".join(choice for group in there.values() for choice in group)
                raise ValueError(
                    f"design.only: {name} must be one of {choices}.{did_you_mean(name, choices.split(', '))}"
                )
        kinds, self.sources, self.tasks = (select_by_name(group, self.only) for group in there.values())
        self.chosen = {name: read_kind(name, kind) for name, kind in kinds.items()}
        if any(not kind.lrs for kind in self.chosen.values()):
            raise ValueError("design.kinds: every kind must set lrs, the learning rates of its fine-tuning runs")
        self.shares, self.scratch_shares = (  # as runs record them
            sorted({float(f"{share:g}") for share in shares}, reverse=True)
            for shares in (self.shares, self.scratch_shares)
        )
        texts = [f"{source}/{size}" for source, size in itertools.product(self.sources, self.sizes)]
        check_names("share_sizes", list(map(str, self.share_sizes)), list(map(str, self.sizes)))
        check_names("tokenizer", [self.tokenizer] if self.tokenizer else [], texts)

    def starts(self) -> list[Start]:
        """Returns the start points of all fine-tuning runs: random weights of each kind, then pre-trained ones."""
        scratch, pretrained = [], []
        for name, kind in self.chosen.items():
            bases = {}
            for (source, lines), size in itertools.product(self.sources.items(), self.sizes):
                text = f"{source}/{size}"  # recorded by the run, since the overrides of one text may contain another's
                base = [*kind.model, *kind.pretrain, *lines, f"data.max_bytes={size}", *self.pretrain]
                values = parse_lines(base)
                if self.common_tokenizer is not None and text != self.tokenizer:
                    values.pop("data.vocab_size", None)
                    values["data.tokenizer"] = str(self.common_tokenizer)
                labels = {"study.kind": name, "study.start": text}
                bases[text] = Level(values) | kind.rates() | Level(labels)
            first = next(iter(bases))
            scratch += [Start(name, SCRATCH, bases[first], SCRATCH)] if kind.scratch else []
            pretrained += [Start(name, text, base, first) for text, base in bases.items()]
        return scratch + pretrained

    def bases(self) -> list[Cell]:
        pretrained = [start.base for start in self.starts() if start.name != SCRATCH]
        return combine(pretrained, seed_levels(self.seeds))

    def rounds(self, context: RunSource) -> Iterator[list[Cell]]:
        """Yields the run that trains the common tokenizer, if there is one, and the three rounds of the design."""
        self.check_data_available()
        if self.tokenizer:
            trained = next(start.base for start in self.starts() if start.name == self.tokenizer)
            first = combine([trained], seed_levels(1))[:1]
            yield first
            run = finished_base(context.runs(), first[0], self.bases(), "all other models, which share its tokenizer")
            if run is None:
                return
            if run.tokenizer is None:
                raise ValueError(
                    f"design.tokenizer={self.tokenizer}: {run.name} has trained no tokenizer; set data.tokenizer=bpe "
                    "in design.pretrain, or design.tokenizer=null"
                )
            self.common_tokenizer = run.tokenizer
        yield self.bases()
        yield self.tuning(context)
        yield self.scoring(context)

    def tuning(self, context: RunSource) -> list[Cell]:
        """Returns the cells that tune the learning rate: every task at every rate, with the first seed and all labels.

        Only the first text of each kind is tuned; the other texts use its rates.
        """
        runs, planned = context.runs(), []
        for start in self.starts():
            rates = self.rates(start)
            if start.name == start.tuned_on and len(rates) > 1:
                for task, lr in itertools.product(self.tasks, rates):
                    planned += self.cell(runs, start, task, self.shares[0], 0, lr)
        return planned

    def scoring(self, context: RunSource) -> list[Cell]:
        """Returns the cells that are scored: every task with every seed and label fraction, at the tuned learning rate.

        The tuned rate is the one with the best score, or the first rate of the list before any run has a score.
        """
        runs, planned = context.runs(), []
        best = tuned_rates([run for run in runs if run.stages], self.shares[0])
        for seed, start, task in itertools.product(range(self.seeds), self.starts(), self.tasks):
            lr = best.get((start.kind, start.tuned_on, task), self.rates(start)[0])
            for share in self.shares_of(start):
                planned += self.cell(runs, start, task, share, seed, lr)
        return planned

    def shares_of(self, start: Start) -> Sequence[float]:
        """Returns the label fractions of the fine-tuning runs of a start point, the largest first."""
        if start.name == SCRATCH:
            return sorted({*self.shares, *self.scratch_shares}, reverse=True)
        size = start.name.rpartition("/")[2]
        return self.shares if size in map(str, self.share_sizes or [size]) else self.shares[:1]

    def rates(self, start: Start) -> Sequence[float]:
        kind = self.chosen[start.kind]
        return kind.scratch if start.name == SCRATCH else kind.lrs

    def best_pretraining(self, runs: Sequence[Run], start: Start) -> dict[str, str]:
        """Returns the learning rate of the pre-training runs from which `start` goes on, as an override.

        This is the rate with the lowest mean loss, or the first of the list before any run has ended; empty where
        pre-training has a single rate.
        """
        if not self.chosen[start.kind].pretrain_lrs:
            return {}
        best = best_base_rate(runs, (start.kind, start.base.values["study.start"]))
        return {LR: start.base.values[LR][0] if best is None else f"{best:g}"}

    def cell(self, runs: Sequence[Run], start: Start, task: str, share: float, seed: int, lr: float) -> list[Cell]:
        """Returns a list of one cell, a fine-tuning run; an empty list if its pre-training run has not finished.

        Training from scratch uses the common tokenizer, or that of the kind's first text, so that it differs from it in
        the start point only.
        """
        pretrained = start.base | Level(self.best_pretraining(runs, start))
        (base,) = combine([pretrained], [Level({"seed": seed})])
        later = f"fine-tuning of the model {start.kind} from {start.name} on the task {task}"
        run = finished_base(runs, base, self.bases(), later)
        if run is None:
            return []
        model: Lines = ()
        source = from_checkpoint(run)
        if start.name == SCRATCH:
            model = [*self.chosen[start.kind].model, *self.control]
            tokenizer = self.common_tokenizer or run.tokenizer
            source = Level({} if tokenizer is None else {"data.tokenizer": tokenizer})
        task_lines = parse_lines([*model, *self.finetune, *self.tasks[task]])
        labels = {"kind": start.kind, "start": start.name, "task": task, "share": f"{share:g}"}
        subset = {"data.share": f"{share:g}", "data.seed": seed} if share < 1 else {}
        trained = Level({**task_lines, LR: f"{lr:g}", "seed": seed}) | source | Level(subset)
        return (trained | Level({f"study.{key}": value for key, value in labels.items()})).cells()

    def check_data_available(self) -> None:
        """Raises ValueError if a hub data set has no local copy and the hub cannot be reached."""
        overrides = {**self.sources, **self.tasks}
        names = {name: hub_name(lines) for name, lines in overrides.items()}
        absent = {name: path for name, path in names.items() if path and local_copy(path) is None}
        if absent and not reachable():
            listed = ", ".join(f"{path} for {name}" for name, path in absent.items())
            raise ValueError(
                f"the design needs the data sets {listed}, but the hub cannot be reached: put copies into "
                "DIR/owner/name or DIR/name and set KLEIBER_DATA=DIR, or select other sources and tasks with "
                "design.only=[...]"
            )


def check_names(key: str, names: Sequence[str], choices: Sequence[str]) -> None:
    """Raises ValueError for a name in `design.<key>` that is not among the choices."""
    for name in names:
        if name not in choices:
            raise ValueError(f"design.{key}: {name} must be one of {', '.join(choices)}")


def select_by_name(choices: Row, only: Sequence[str]) -> Json:
    """Returns the choices that `only` names, or all of them if it names none.

    Raises ValueError if `choices` is empty.
    """
    if not choices:
        raise ValueError("design.kinds, design.sources and design.tasks must each have at least one entry")
    kept = {name: value for name, value in choices.items() if name in only}
    return kept or dict(choices)


def hub_name(lines: Lines) -> str | None:
    """Returns the hub name of the data set that the overrides select, or None if it is not a hub data set."""
    values = parse_lines(lines)
    path = values.get("data.path") or str(read_choice("data", values.get("data", "builtin")).get("path") or "")
    return path if path and is_name(path) and not Path(path).exists() else None
