"""Where a stage's weights come from: nowhere, a stage of a kleiber run, a Hugging Face folder, or a dense run upcycled.

What a start point decides of the config (model, tokenizer) is settled before, in `chain.adopt`. Weights are read as
data: no pickle is opened and no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import DictConfig

from kleiber.config.signatures import build
from kleiber.config.stages import is_chain, stage_configs
from kleiber.data.mixture import MixtureCorpus
from kleiber.records.folder import read_config
from kleiber.runs.inherit import locate
from kleiber.runs.open import load_trained, objective_at
from kleiber.types.contracts import Corpus, HeldOut, Task

COMPARED = 100  # rows whose labels tell whether two tasks are one


class Origin(Protocol):
    """A start point: puts weights into a model, and names the tasks that the weights were trained for."""

    def load(self, model: Any) -> None: ...
    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]: ...


@dataclass(frozen=True)
class Scratch:
    """Random weights."""

    def load(self, model: Any) -> None:
        return None

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        return []


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a finished stage of a run: `path` is RUN or RUN/STAGE (without one, the last finished stage)."""

    path: str

    def load(self, model: Any) -> None:
        begin_with(model, *locate(self.path))

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        folder, stage = locate(self.path)
        led = lineage(folder, stage).items()
        return [task for name, one in led for task in tasks_of(DictConfig(one), corpus, folder / "stages" / name)]


@dataclass(frozen=True)
class HF:
    """A Hugging Face folder with safetensors, of a Llama, Qwen3, Mixtral or Qwen3-MoE, read into the native model.

    upstream  what the weights are known to be good at, as texts to be watched: names as in data.parts
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
        same_tokenizer(corpus, texts, "init.upstream")
        objective = build(DictConfig({"_target_": "kleiber.objectives.CLM"}))
        return [Task(name, objective, held_out, texts.train) for name, held_out in texts.validation.items()]


@dataclass(frozen=True)
class Upcycle(Checkpoint):
    """A dense run as a mixture of experts, each a copy of its MLP (Komatsuzaki et al. 2022, arXiv:2212.05055).

    noise  relative standard deviation of what is added to the copies
    seed   of the noise
    """

    noise: float = 0.0
    seed: int = 0

    def load(self, model: Any) -> None:
        from kleiber.models.upcycle import check_settings, upcycle

        folder, stage = locate(self.path)
        with torch.random.fork_rng(devices=[]):
            dense = build(DictConfig(read_config(folder)["model"]), vocab_size=model.vocab_size)
            check_settings(dense, model)
            for name, head in model.heads.items():
                dense.add_head(name, len(head.weight))
            begin_with(dense, folder, stage)
            torch.manual_seed(self.seed)  # the same noise however often the start is asked for
            upcycle(dense.state_dict(), model, noise=self.noise)


def lineage(folder: Path, stage: str) -> dict[str, dict[str, Any]]:
    """The configs of the stages that led to `stage` of a run, itself last; a branch has that of the run."""
    config = read_config(folder)
    if not is_chain(config):
        return {stage: config}
    configs = stage_configs(config)
    return {name: configs[name] for name in list(configs)[: list(configs).index(stage) + 1]}


def begin_with(model: Any, folder: Path, stage: str) -> None:
    """The final weights of a stage, into a model that may have heads which the stage did not have, or lack some.

    Raises ValueError for another model, and Damaged where no checkpoint verifies.
    """
    own = set(model.heads)
    load_trained(model, folder, stage)
    for name in set(model.heads) - own:
        del model.heads[name]


def tasks_of(config: DictConfig, corpus: Corpus, place: Path) -> list[Task]:
    """The tasks that a stage with this config trained on in `place`: its validation domains under its objective."""
    own: Corpus = build(config.data).prepare(config.model.context)
    same_tokenizer(corpus, own, "init.path")
    return domains(own, objective_at(config, own, place))


def domains(corpus: Corpus, objective: Any) -> list[Task]:
    return [Task(name, objective, held_out, corpus.train) for name, held_out in corpus.validation.items()]


def apart(known: Sequence[Task], corpus: Corpus) -> list[Task]:
    """The tasks of a start point, one that only shares its name with a text of the corpus as `<name>-before`: scores
    are kept by name, and it would pass for what is learned now."""
    own = corpus.validation
    other = {t.name for t in known if t.name in own and not same_text(t.held_out, own[t.name])}
    return [replace(task, name=f"{task.name}-before") if task.name in other else task for task in known]


def same_text(one: HeldOut, other: HeldOut) -> bool:
    """Whether held-out samples are of one text with the same labels, whatever the context and however much is held out:
    they begin alike."""
    first, second = (samples.gather(np.arange(min(len(one), len(other), COMPARED))) for samples in (one, other))
    width = min(first.tokens.shape[1], second.tokens.shape[1])
    if not torch.equal(first.tokens[0, :width], second.tokens[0, :width]):
        return False
    if first.labels is None or second.labels is None:
        return first.labels is second.labels
    return torch.equal(first.labels, second.labels)


def same_tokenizer(one: Corpus, other: Corpus, key: str) -> None:
    if vocabulary(one) != vocabulary(other):
        raise ValueError(
            f"{key}: {other.name} is in tokens of {other.tokenizer.hash} and {one.name} in those of "
            f"{one.tokenizer.hash}: one model reads one vocabulary, so set data.tokenizer alike"
        )


def vocabulary(corpus: Corpus) -> tuple[int, int, bytes]:
    """What makes two tokenizers the same to a model, whatever they are called."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size, tokenizer.eos, tokenizer.token_bytes.tobytes()
