"""Start points: random weights, a stage of a run, a Hugging Face folder, or an upcycled dense run.

`kleiber.runs.inherit` copies the model and the tokenizer of a start point into the config. Weights are loaded as data
only: no pickle is opened, and no code that comes with a checkpoint is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from kleiber.config.instantiate import build
from kleiber.data.mixture import MixtureCorpus
from kleiber.models.transformer import Transformer
from kleiber.runs.inherit import locate_stage
from kleiber.runs.open import add_heads, head_sizes, load_objective, load_stage, prepare_corpus, recorded_configs
from kleiber.types import Config
from kleiber.types.contracts import Corpus, HeldOut, Objective, Task
from kleiber.types.model import Model

COMPARED = 100  # rows whose labels are compared to decide whether two tasks are the same


class StartPoint:
    """Base class of start points: the weights that a run begins with, and the tasks that they were trained for."""

    def load(self, model: Model) -> None:
        """Loads the weights into `model`, or does nothing when there are none. Raises ValueError for another model."""

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns the tasks that the weights were trained for, which a run can forget.

        config, corpus  of the first stage of the run that starts here
        """
        return []


@dataclass(frozen=True)
class Scratch(StartPoint):
    """Random weights: the run starts from nothing."""


@dataclass(frozen=True)
class Checkpoint(StartPoint):
    """The weights of a finished stage of a run: `path` is RUN or RUN/STAGE (without one, the last finished stage)."""

    path: str

    def load(self, model: Model) -> None:
        """Loads the final weights of the stage."""
        load_stage(model, *locate_stage(self.path))

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns the tasks of the stage and of the stages before it."""
        folder, stage = locate_stage(self.path)
        tasks: list[Task] = []
        for name, stage_config in recorded_configs(folder, stage).items():
            tasks += stage_tasks(stage_config, corpus, folder / "stages" / name)
        return tasks


@dataclass(frozen=True)
class HF(StartPoint):
    """A Hugging Face folder of a Llama, Qwen3, Mixtral or Qwen3-MoE model, whose weights the native model takes over.

    path      folder with config.json and safetensors
    upstream  texts on which forgetting is measured, because the weights predict them well; names as in data.parts
    """

    path: str
    upstream: Sequence[str] = field(default_factory=tuple)

    def load(self, model: Model) -> None:
        """Loads the weights of the folder."""
        from kleiber.models.hf_twin import load_hf

        assert isinstance(model, Transformer)
        load_hf(model, Path(self.path).expanduser())

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns a language-modeling task for each text of `upstream`."""
        if not self.upstream:
            return []
        parts = {name: 1 / len(self.upstream) for name in self.upstream}
        texts = MixtureCorpus(parts, tokenizer=config.data.tokenizer).prepare(config.model.context)
        check_same_tokenizer(corpus, texts, "init.upstream")
        objective = build(DictConfig({"_target_": "kleiber.objectives.CLM"}))
        return [Task(name, objective, held_out, texts.train) for name, held_out in texts.validation.items()]


@dataclass(frozen=True)
class Upcycle(Checkpoint):
    """A mixture of experts made from a dense run: every expert is a copy of its MLP.

    Method: Komatsuzaki et al. 2022, arXiv:2212.05055.

    noise  standard deviation of Gaussian noise on the copies, relative to the standard deviation of the weights
    seed   seed of the noise
    """

    noise: float = 0.0
    seed: int = 0

    def load(self, model: Model) -> None:
        """Copies the dense weights into the experts of `model`. Raises ValueError when settings or shapes differ."""
        from kleiber.models.upcycle import check_settings, upcycle

        folder, stage = locate_stage(self.path)
        with torch.random.fork_rng(devices=[]):
            dense = build(DictConfig(recorded_configs(folder, stage)[stage]["model"]), vocab_size=model.vocab_size)
            check_settings(dense, model)
            assert isinstance(model, Transformer)
            add_heads(dense, head_sizes(model))
            load_stage(dense, folder, stage)
            torch.manual_seed(self.seed)
            upcycle(dense.state_dict(), model, noise=self.noise)


def stage_tasks(config: Config, corpus: Corpus, folder: Path) -> list[Task]:
    """Returns the tasks of an earlier stage: a task for each of its validation domains, scored with its objective.

    config  config of the earlier stage
    corpus  data of the new run
    folder  folder of the earlier stage

    Raises ValueError when the earlier stage and the new run have different tokenizers.
    """
    stage_corpus = prepare_corpus(config)
    check_same_tokenizer(corpus, stage_corpus, "init.path")
    return corpus_tasks(stage_corpus, load_objective(DictConfig(config), stage_corpus, folder))


def corpus_tasks(corpus: Corpus, objective: Objective) -> list[Task]:
    """Returns a task for each validation domain."""
    return [Task(name, objective, held_out, corpus.train) for name, held_out in corpus.validation.items()]


def distinct_tasks(tasks: Sequence[Task], corpus: Corpus) -> list[Task]:
    """Renames the tasks of a start point that share a name with another text of the corpus to `<name>-before`.

    Scores are stored by name, so without this the old text would be mistaken for the one being learned.
    """
    validation = corpus.validation
    renamed = {t.name for t in tasks if t.name in validation and not same_text(t.held_out, validation[t.name])}
    return [replace(task, name=f"{task.name}-before") if task.name in renamed else task for task in tasks]


def same_text(held_out: HeldOut, other: HeldOut) -> bool:
    """Whether two sets of held-out samples begin with the same text and labels.

    Context length and number of samples may differ: only the common beginning is compared.
    """
    count = min(len(held_out), len(other), COMPARED)
    first, second = (samples.gather(np.arange(count)) for samples in (held_out, other))
    width = min(first.tokens.shape[1], second.tokens.shape[1])
    if not torch.equal(first.tokens[0, :width], second.tokens[0, :width]):
        return False
    if first.labels is None or second.labels is None:
        return first.labels is second.labels
    return torch.equal(first.labels, second.labels)


def check_same_tokenizer(corpus: Corpus, other: Corpus, key: str) -> None:
    """Raises ValueError naming the config key `key` when two corpora of one model have different vocabularies."""
    if vocabulary(corpus) != vocabulary(other):
        raise ValueError(
            f"{key}: data {other.name} has tokenizer {other.tokenizer.hash}, but data {corpus.name} has tokenizer "
            f"{corpus.tokenizer.hash}; all data of a model must have the same tokenizer: set the same data.tokenizer"
        )


def vocabulary(corpus: Corpus) -> tuple[int, int, bytes]:
    """Returns what makes two tokenizers equal for a model: size, end-of-text id and number of bytes of each token."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size, tokenizer.eos, tokenizer.token_bytes.tobytes()
