"""Start points: random weights, a stage of a run, a Hugging Face folder, or an upcycled dense run.

`runs.inherit` takes over the model and the tokenizer of a start point into the config. Weights are read as data: no
pickle is opened and no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from kleiber.config.signatures import build
from kleiber.data.mixture import MixtureCorpus
from kleiber.runs.inherit import locate
from kleiber.runs.open import corpus_of, load_stage, objective_at, recorded_configs
from kleiber.types import Config
from kleiber.types.contracts import Corpus, HeldOut, Objective, Task

COMPARED = 100  # rows whose labels are compared, to tell whether two tasks are the same


class StartPoint:
    """Weights that a run begins with, and the tasks that they were trained for. The default leaves a model as it is."""

    def load(self, model: Any) -> None:
        """Loads the weights. Raises ValueError for another model."""

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """The tasks that can be forgotten, for a run with this config and data."""
        return []


@dataclass(frozen=True)
class Scratch(StartPoint):
    """Random weights."""


@dataclass(frozen=True)
class Checkpoint(StartPoint):
    """The weights of a finished stage of a run: `path` is RUN or RUN/STAGE (without one, the last finished stage)."""

    path: str

    def load(self, model: Any) -> None:
        load_stage(model, *locate(self.path))

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        folder, stage = locate(self.path)
        configs = recorded_configs(folder, stage).items()
        return [task for name, own in configs for task in tasks_of(own, corpus, folder / "stages" / name)]


@dataclass(frozen=True)
class HF(StartPoint):
    """A Hugging Face folder with safetensors, of a Llama, Qwen3, Mixtral or Qwen3-MoE, read into the native model.

    upstream  texts that the weights are known to predict well, to measure forgetting on: names as in data.parts
    """

    path: str
    upstream: Sequence[str] = field(default_factory=tuple)

    def load(self, model: Any) -> None:
        from kleiber.models.hf_twin import load_hf

        load_hf(model, Path(self.path).expanduser())

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        if not self.upstream:
            return []
        parts = {name: 1 / len(self.upstream) for name in self.upstream}
        texts = MixtureCorpus(parts, tokenizer=config.data.tokenizer).prepare(config.model.context)
        check_same_tokenizer(corpus, texts, "init.upstream")
        objective = build(DictConfig({"_target_": "kleiber.objectives.CLM"}))
        return [Task(name, objective, held_out, texts.train) for name, held_out in texts.validation.items()]


@dataclass(frozen=True)
class Upcycle(Checkpoint):
    """A dense run as a mixture of experts, each of them a copy of its MLP (Komatsuzaki et al. 2022, arXiv:2212.05055).

    noise  standard deviation of the noise on the copies, relative to that of the weights
    seed   of the noise
    """

    noise: float = 0.0
    seed: int = 0

    def load(self, model: Any) -> None:
        from kleiber.models.upcycle import check_settings, upcycle

        folder, stage = locate(self.path)
        with torch.random.fork_rng(devices=[]):
            dense = build(DictConfig(recorded_configs(folder, stage)[stage]["model"]), vocab_size=model.vocab_size)
            check_settings(dense, model)
            for name, head in model.heads.items():
                dense.add_head(name, len(head.weight))
            load_stage(dense, folder, stage)
            torch.manual_seed(self.seed)  # the same noise every time
            upcycle(dense.state_dict(), model, noise=self.noise)


def tasks_of(config: Config, corpus: Corpus, folder: Path) -> list[Task]:
    """The tasks of a stage trained with this config in `folder`: its validation domains under its objective."""
    own = corpus_of(config)
    check_same_tokenizer(corpus, own, "init.path")
    return corpus_tasks(own, objective_at(DictConfig(config), own, folder))


def corpus_tasks(corpus: Corpus, objective: Objective) -> list[Task]:
    """A task for each validation domain."""
    return [Task(name, objective, held_out, corpus.train) for name, held_out in corpus.validation.items()]


def distinct_tasks(tasks: Sequence[Task], corpus: Corpus) -> list[Task]:
    """The tasks of a start point; a task that has the name of another text of the corpus becomes `<name>-before`.

    Scores are kept by name, so it would be taken for the task that is learned now.
    """
    own = corpus.validation
    other = {t.name for t in tasks if t.name in own and not same_text(t.held_out, own[t.name])}
    return [replace(task, name=f"{task.name}-before") if task.name in other else task for task in tasks]


def same_text(held_out: HeldOut, other: HeldOut) -> bool:
    """Whether held-out samples are of the same text with the same labels, whatever their context and number: whether
    they begin alike."""
    count = min(len(held_out), len(other), COMPARED)
    first, second = (samples.gather(np.arange(count)) for samples in (held_out, other))
    width = min(first.tokens.shape[1], second.tokens.shape[1])
    if not torch.equal(first.tokens[0, :width], second.tokens[0, :width]):
        return False
    if first.labels is None or second.labels is None:
        return first.labels is second.labels
    return torch.equal(first.labels, second.labels)


def check_same_tokenizer(corpus: Corpus, other: Corpus, key: str) -> None:
    """Raises ValueError naming `key` where two corpora of a model have different vocabularies."""
    if vocabulary(corpus) != vocabulary(other):
        raise ValueError(
            f"{key}: {other.name} has tokenizer {other.tokenizer.hash} and {corpus.name} has {corpus.tokenizer.hash}, "
            "but a model has a single vocabulary: set the same data.tokenizer"
        )


def vocabulary(corpus: Corpus) -> tuple[int, int, bytes]:
    """The properties that make two tokenizers the same to a model."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size, tokenizer.eos, tokenizer.token_bytes.tobytes()
