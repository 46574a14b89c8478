"""Code that several retention methods share: remembered weights, text of earlier tasks, and reference samples.

The reference samples of a batch are a function of (seed, step, sample), so they are the same in every micro-batch, on
every rank and after every resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt64
from torch import Tensor, nn

from kleiber.config.stages import quantity
from kleiber.data.mixture import Mixture, SpreadSamples, fractions_of
from kleiber.data.order import splitmix64
from kleiber.models.generation import generate
from kleiber.nn.sharding import full_parameters, inner_product
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Objective, Samples, Task
from kleiber.types.model import Model, device_of
from kleiber.types.tokenizer import Tokenizer


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, by name; a tied parameter once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: Model) -> dict[str, Tensor]:
    """A copy of the trainable parameters, without those of new output layers."""
    new = new_heads(model)
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items() if name not in new}


def new_heads(model: Model) -> set[str]:
    """Names of the parameters of the task heads that no stage has trained: all of them are still 0."""
    names = set()
    for head, layer in model.heads.items():
        parameters = dict(layer.named_parameters())
        values = [parameter.detach() for parameter in parameters.values()]
        if not inner_product(values, values):
            names |= {f"heads.{head}.{name}" for name in parameters}
    return names


def remembered(model: nn.Module, memory: dict[str, Tensor]) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Name, parameter and remembered value of the trainable parameters that are in the memory."""
    for name, parameter in trainable(model).items():
        if name in memory:
            yield name, parameter, memory[name]


Source = Literal["real", "generated"]


class GeneratedSamples(HeldOut):
    """Samples of equal length in memory, such as text that a model generated."""

    def __init__(self, tokens: Int[Tensor, "samples time"], token_bytes: Int[np.ndarray, "vocab"]) -> None:
        self.tokens, self._token_bytes = tokens.cpu().long(), token_bytes
        self.num_tokens = self.tokens[:, 1:].numel()
        self.num_bytes = int(token_bytes[self.tokens[:, 1:].numpy()].sum())

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        return Batch(self.tokens[torch.from_numpy(index)], samples=torch.from_numpy(index + epoch * len(self)))

    def first(self, tokens: int | None) -> GeneratedSamples:
        rows = len(self) if tokens is None else max(1, tokens // (self.tokens.shape[1] - 1))
        return GeneratedSamples(self.tokens[:rows], self._token_bytes)


def generate_samples(
    model: Model, begin: int, num_tokens: int, seed: int, temperature: float = 1.0
) -> Int[Tensor, "samples time"]:
    """About `num_tokens` tokens of text that the model generates, as samples of context + 1 tokens.

    Each sample begins at the beginning of a document, with the token `begin`. The text depends on the model and
    the arguments alone. Raises ValueError for a bidirectional model.
    """
    device = device_of(model)
    count = max(1, round(num_tokens / model.context))
    generator = torch.Generator(device).manual_seed(seed)
    samples = []
    for start in range(0, count, 64):
        prompt = torch.full((min(64, count - start), 1), begin, device=device)
        samples.append(generate(model, prompt, model.context, temperature, generator=generator))
    return torch.cat(samples).int()


def tasks_with_samples(tasks: Sequence[Task], name: str, memory: float | None = None) -> list[Task]:
    """The earlier tasks whose training samples can be read again; tasks that were trained on the same samples once.

    name    of the retention method
    memory  number of tokens to keep of each task, spread evenly over its training text and always the same; None
            keeps all

    Raises ValueError where there are no such tasks.
    """
    # Domains of one corpus are scored separately and were trained on together.
    readable = list({id(task.train): task for task in reversed(tasks) if task.train is not None}.values())[::-1]
    if not readable:
        names = ", ".join(task.name for task in tasks) or "none"
        raise ValueError(
            f"retention.{name} needs training samples of earlier tasks, which are not available (earlier tasks: "
            f"{names}): start from a run whose config names its data, or use a method that needs no samples (l2sp, "
            "wise, or generated text)"
        )
    if memory is None:
        return readable
    return [replace(task, train=_spread_subset(task.train, memory)) for task in readable]


def _spread_subset(train: Samples | None, tokens: float) -> Samples:
    """About `tokens` tokens of the samples, spread evenly over them; of a mixture, in its fractions."""
    assert train is not None
    if isinstance(train, Mixture):
        parts, fractions = zip(*fractions_of(train), strict=True)
        subsets = [_spread_subset(part, tokens * fraction) for part, fraction in zip(parts, fractions, strict=True)]
        return Mixture(subsets, fractions)
    count = max(1, round(tokens * len(train) / train.num_tokens))
    return train if count >= len(train) else SpreadSamples(train, count)


def generated_task(tasks: Sequence[Task], text: Tensor | None, vocabulary: Tokenizer | None, name: str) -> Task:
    """The text that the start model generated, with the objective of the first earlier task that is a likelihood.

    Raises ValueError where no earlier task is one.
    """
    assert text is not None and vocabulary is not None, f"retention.{name}: begin_stage generates the text"
    objective = next((task.objective for task in tasks if task.objective.likelihood), None)
    if objective is None:
        raise ValueError(
            f"retention.{name}.source=generated needs an earlier task with a likelihood of text, such as clm, and "
            f"there is none: set retention.{name}.source=real"
        )
    samples = GeneratedSamples(text, vocabulary.token_bytes)
    return Task("generated", objective, samples, samples)


def same_loss(first: Objective, second: Objective) -> bool:
    """Whether two objectives are of the same class and use the same output layers."""
    return type(first) is type(second) and first.outputs == second.outputs


def random_bits(samples: Int[np.ndarray, "batch"], *key: int) -> UInt64[np.ndarray, "batch"]:
    """64 random bits per sample, from its number and the key alone."""
    state = samples.astype(np.uint64)
    for part in key:
        state = splitmix64(state ^ np.uint64(part % (1 << 64)))
    return state


def reference_samples(task: Task, batch: Batch, seed: int, step: int, stream: int, rate: float = 1.0) -> Batch | None:
    """Samples of an earlier task, on average `rate` for each sample of the batch; None when none is drawn.

    stream  number of the task, so that tasks get different random numbers
    """
    assert batch.samples is not None and task.train is not None, "reference samples are drawn by sample numbers"
    numbers = batch.samples.cpu().numpy()
    uniform = random_bits(numbers, seed, step, 2 * stream) / 2.0**64
    repeated = np.repeat(numbers, np.floor(rate + uniform).astype(int))
    if not len(repeated):
        return None
    copies = np.concatenate([np.arange(count) for count in np.unique(repeated, return_counts=True)[1]])
    bits = random_bits(np.sort(repeated), seed, step, 2 * stream + 1)
    bits = splitmix64(bits ^ copies.astype(np.uint64))
    index = (bits % np.uint64(len(task.train))).astype(np.int64)
    return task.train.gather(index).to(batch.tokens.device)


@dataclass(frozen=True)
class EarlierText:
    """Settings of replay and lwf: which text of earlier tasks is read.

    name              of the retention method
    source            "real": training samples of earlier tasks; "generated": text that the start model generates;
                      "new": the batch itself
    generated_tokens  number of tokens that the start model generates
    temperature       at which it generates
    """

    name: str
    source: str
    generated_tokens: int | float | str
    temperature: float
    vocabulary: Tokenizer | None

    def generate(self, model: Model, seed: int) -> dict[str, Tensor]:
        """Entries of the method's memory for the text: {"text": token ids}, or {} where none is generated."""
        if self.source != "generated":
            return {}
        assert self.vocabulary is not None, "the run supplies the vocabulary"
        tokens = round(quantity(self.generated_tokens))
        with full_parameters(model):
            return {"text": generate_samples(model, self.vocabulary.begin, tokens, seed, self.temperature)}

    def objectives(self, tasks: Sequence[Task]) -> list[Objective]:
        """The objectives of the earlier tasks whose text is read, or under which generated text is read."""
        if self.source == "generated":
            return [task.objective for task in tasks if task.objective.likelihood][:1]
        return [task.objective for task in tasks if task.train is not None]

    def tasks(self, tasks: Sequence[Task], memory: Json, tokens: float | None = None) -> list[Task]:
        """Tasks with the samples to read.

        memory  of the retention method
        tokens  number of tokens of real text to keep of each earlier task; None keeps all
        """
        if self.source == "generated":
            return [generated_task(tasks, memory.get("text"), self.vocabulary, self.name)]
        return tasks_with_samples(tasks, self.name, tokens)
