"""Start points: random weights, a stage of a run, or a Hugging Face folder.

`kleiber.runs.inherit` copies model and tokenizer into the config. No pickle and no code of a checkpoint is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from omegaconf import DictConfig

from kleiber.config.stages import text_settings
from kleiber.config.targets import build
from kleiber.models.transformer import Transformer
from kleiber.runs.inherit import locate_stage
from kleiber.runs.open import load_objective, load_stage, recorded_corpus
from kleiber.runs.recorded_config import recorded_configs
from kleiber.types import Config
from kleiber.types.access import DataPath
from kleiber.types.contracts import Corpus, HeldOut, Objective, Task
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer

COMPARED = 100  # rows whose labels are compared to decide whether two tasks are the same


class StartPoint:
    """Base class of start points: the weights that a run begins with, and the tasks that they were trained for.

    is_random  whether the weights are drawn, so that the run continues no other one
    """

    is_random: ClassVar[bool] = False

    def load(self, model: Model) -> None:
        """Loads the weights into `model`, or does nothing when there are none. Raises ValueError for another model."""

    def source(self) -> str | None:
        """Returns RUN, RUN/STAGE or a Hugging Face folder whose weights these are; None where there are none."""
        return None

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns the tasks that the weights were trained for, which a run can forget.

        config, corpus  config and data of the first stage of the run that starts from these weights
        """
        return []


@dataclass(frozen=True)
class Scratch(StartPoint):
    """Random weights: the run starts from nothing."""

    is_random: ClassVar[bool] = True


@dataclass(frozen=True)
class Checkpoint(StartPoint):
    """The weights of a finished stage of a run: `path` is RUN or RUN/STAGE (without one, the last finished stage)."""

    path: str

    def load(self, model: Model) -> None:
        load_stage(model, *locate_stage(self.path))

    def source(self) -> str:
        return self.path

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns the tasks of the stage and of the stages before it."""
        folder, stage = locate_stage(self.path)
        configs = recorded_configs(folder, stage).items()
        return [task for name, node in configs for task in stage_tasks(node, corpus, folder / "stages" / name)]


@dataclass(frozen=True)
class HF(StartPoint):
    """A Hugging Face folder. The native model takes over the weights of a Llama, Qwen3, Mixtral or Qwen3-MoE.

    path             folder with config.json and safetensors
    upstream         texts on which forgetting is measured, because the weights predict them well; as in data.parts
    allow_nonfinite  whether weights may be NaN or infinite
    """

    path: str
    upstream: Sequence[DataPath] = ()
    allow_nonfinite: bool = False

    def load(self, model: Model) -> None:
        """Loads all weights."""
        from kleiber.models.hf_twin import load_hf

        assert isinstance(model, Transformer)
        from kleiber.nn.sharded_model import whole_model

        with whole_model(model) as whole:
            load_hf(whole, Path(self.path).expanduser(), self.allow_nonfinite)

    def source(self) -> str:
        return self.path

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns a language-modeling task for each text of `upstream`.

        Raises ValueError where the data has another tokenizer than the folder, whose embeddings are of its tokens.
        """
        check_tokenizer_of(Path(self.path).expanduser(), corpus, f"init.path={self.path}")
        if not self.upstream:
            return []
        from kleiber.data.mixture_corpus import MixtureCorpus

        parts = {name: 1 / len(self.upstream) for name in self.upstream}
        text = text_settings(config.data)
        mixture = MixtureCorpus(parts, text.get("tokenizer", "bytes"), separator=text.get("separator"))
        texts = mixture.prepare(config.model.context)
        check_same_tokenizer(corpus, texts, "init.upstream")
        return corpus_tasks(texts, build(DictConfig({"_target_": "kleiber.objectives.CLM"})))


def stage_tasks(config: Config, corpus: Corpus, folder: Path) -> list[Task]:
    """Returns the tasks of an earlier stage: a task for each of its validation domains, scored with its objective.

    config, folder  of the earlier stage
    corpus          data of the new run

    Raises ValueError when the earlier stage and the new run have different tokenizers.
    """
    stage_corpus = recorded_corpus(config, folder.parents[1])
    check_same_tokenizer(corpus, stage_corpus, "init.path")
    return corpus_tasks(stage_corpus, load_objective(DictConfig(config), stage_corpus, folder))


def corpus_tasks(corpus: Corpus, objective: Objective) -> list[Task]:
    """Returns a task for each validation domain."""
    train = corpus.train if corpus.train.random_access else None
    return [Task(name, objective, text, train, corpus.hash) for name, text in corpus.validation.items()]


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
    if vocabulary(corpus.tokenizer) != vocabulary(other.tokenizer):
        raise ValueError(
            f"{key}: data {other.name} has tokenizer {other.tokenizer.hash}, but data {corpus.name} has tokenizer "
            f"{corpus.tokenizer.hash}; a model must have one tokenizer: set data.tokenizer, or data.data.tokenizer "
            "where data is made of other data. data.tokenizer=bpe trains one on each text; "
            "data.tokenizer=RUN/tokenizer takes that of a run"
        )


def check_tokenizer_of(folder: Path, corpus: Corpus, name: str) -> None:
    """Raises ValueError where data has another tokenizer than a Hugging Face folder, whose weights are of its tokens.

    name  of the folder, as the config has it
    """
    if not (folder / "tokenizer.json").is_file():
        return
    from kleiber.data.pretrained_tokenizer import load_pretrained

    tokenizer = load_pretrained(str(folder))
    if vocabulary(tokenizer) != vocabulary(corpus.tokenizer):
        raise ValueError(
            f"data.tokenizer: data {corpus.name} has tokenizer {corpus.tokenizer.hash}, but {name} has "
            f"{tokenizer.hash}, and its weights are of those tokens: leave the key out"
        )


def vocabulary(tokenizer: Tokenizer) -> tuple[int, int, bytes]:
    """Returns what makes two tokenizers equal for a model: size, end-of-text id and number of bytes of each token."""
    return tokenizer.vocab_size, tokenizer.eos, tokenizer.token_bytes.tobytes()
