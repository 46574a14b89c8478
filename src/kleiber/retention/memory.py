"""What several retention methods share: remembered weights, earlier tasks' text, and reference samples of a batch.

Which reference sample belongs to which sample of a batch is a function of (seed, step, sample), so it is the same in
every micro-batch, on every rank and after every resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int, UInt64
from torch import Tensor, nn

from kleiber.config.stages import quantity
from kleiber.data.batches import splitmix64
from kleiber.data.mixture import Mixture, SpreadSamples, fractions_of
from kleiber.models.generate import generate
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut, Objective, Samples, Task, Tokenizer
from kleiber.types.model import Model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trainable parameters."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def beside(model: nn.Module, memory: dict[str, Tensor]) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Name, parameter and remembered value of what was there when it was remembered; a new head was not."""
    for name, parameter in trainable(model).items():
        if name in memory:
            yield name, parameter, memory[name]


def ranks() -> tuple[int, int]:
    """This rank, and how many there are."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def summed(values: list[Tensor]) -> list[Tensor]:
    """The sums over all ranks, in one collective."""
    if ranks()[1] == 1:
        return values
    flat = torch.cat([value.reshape(-1) for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]


def device_of(model: Model) -> torch.device:
    return next(model.parameters()).device


Source = Literal["real", "generated"]


class Written(HeldOut):
    """Rows of one length held in memory, as samples; `num_bytes` is the text that they decode to."""

    def __init__(self, tokens: Int[Tensor, "samples time"], token_bytes: Int[np.ndarray, "vocab"]) -> None:
        self.tokens, self._token_bytes = tokens.cpu().long(), token_bytes
        self.num_tokens = self.tokens[:, 1:].numel()
        self.num_bytes = int(token_bytes[self.tokens[:, 1:].numpy()].sum())

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        return Batch(self.tokens[torch.from_numpy(index)], samples=torch.from_numpy(index + epoch * len(self)))

    def first(self, tokens: int | None) -> Written:
        rows = len(self) if tokens is None else max(1, tokens // (self.tokens.shape[1] - 1))
        return Written(self.tokens[:rows], self._token_bytes)


def write(model: Model, eos: int, num_tokens: int, seed: int, temperature: float = 1.0) -> Int[Tensor, "samples time"]:
    """Samples of the model's own text, each from a document's beginning and context + 1 tokens long.

    A function of the model, the seed and nothing else. Raises ValueError for a model that predicts no next token.
    """
    device = device_of(model)
    rows = max(1, round(num_tokens / model.context))
    generator = torch.Generator(device).manual_seed(seed)
    memories = []
    for at in range(0, rows, 64):
        prompt = torch.full((min(64, rows - at), 1), eos, device=device)
        memories.append(generate(model, prompt, model.context, temperature, generator=generator))
    return torch.cat(memories).int()


def memory_tokens(name: str, memory: int | float | str | None) -> float | None:
    """The setting `retention.<name>.memory` as a number of tokens; ValueError for what is none."""
    try:
        return None if memory is None else quantity(memory)
    except ValueError as error:
        raise ValueError(f"retention.{name}.memory: {error}") from None


def real(tasks: Sequence[Task], name: str, memory: float | None = None) -> list[Task]:
    """The earlier tasks whose training samples can be read again; ValueError where there are none.

    memory  at most that many tokens of each, spread evenly over its training text and always the same; None: all of it
    """
    # Domains of one corpus are scored apart and were trained on together.
    text_samples = list({id(task.train): task for task in reversed(tasks) if task.train is not None}.values())[::-1]
    if not text_samples:
        told = f"the earlier tasks ({', '.join(t.name for t in tasks)})" if tasks else "there is no earlier task, which"
        raise ValueError(
            f"retention.{name} needs training samples of earlier tasks, and {told} left none: start from a run that "
            "names its data, or take a method that needs none (l2sp, wise, or text that the model generates)"
        )
    return text_samples if memory is None else [replace(task, train=_few(task.train, memory)) for task in text_samples]


def _few(train: Samples | None, tokens: float) -> Samples:
    assert train is not None
    if isinstance(train, Mixture):
        parts, fractions = zip(*fractions_of(train), strict=True)
        return Mixture(
            [_few(part, tokens * fraction) for part, fraction in zip(parts, fractions, strict=True)], fractions
        )
    count = max(1, round(tokens * len(train) / train.num_tokens))
    return train if count >= len(train) else SpreadSamples(train, count)


def generated(tasks: Sequence[Task], text: Tensor | None, vocabulary: Tokenizer | None, name: str) -> list[Task]:
    """The text that the start model wrote, as a task under the earlier tasks' likelihood of text."""
    assert text is not None and vocabulary is not None, f"retention.{name}: begin_stage writes the text"
    objective = next((task.objective for task in tasks if task.objective.likelihood), None)
    if objective is None:
        raise ValueError(f"retention.{name}.source=generated: no earlier task was one of text; write source=real")
    written = Written(text, vocabulary.token_bytes)
    return [Task("generated", objective, written, written)]


def alike(one: Objective, other: Objective) -> bool:
    """Whether two objectives ask the same of the same output layer."""
    return type(one) is type(other) and one.outputs == other.outputs


def draws(samples: Int[np.ndarray, "batch"], *key: int) -> UInt64[np.ndarray, "batch"]:
    """64 random bits a sample, from its number and the key alone."""
    state = samples.astype(np.uint64)
    for part in key:
        state = splitmix64(state ^ np.uint64(part % (1 << 64)))
    return state


def partners(task: Task, batch: Batch, seed: int, step: int, stream: int, rate: float = 1.0) -> Batch | None:
    """Reference samples of a task: on average `rate` for each sample of the batch, or None when none is drawn."""
    assert batch.samples is not None and task.train is not None, "reference samples are drawn by sample numbers"
    numbers = batch.samples.cpu().numpy()
    share = draws(numbers, seed, step, 2 * stream) / 2.0**64
    again = np.repeat(numbers, np.floor(rate + share).astype(int))
    if not len(again):
        return None
    copies = np.concatenate([np.arange(n) for n in np.unique(again, return_counts=True)[1]])
    where = draws(np.sort(again), seed, step, 2 * stream + 1)
    where = splitmix64(where ^ copies.astype(np.uint64))
    index = (where % np.uint64(len(task.train))).astype(np.int64)
    return task.train.gather(index).to(batch.tokens.device)


@dataclass(frozen=True)
class Text:
    """Which text, and how much of it the model writes: what replay and lwf have in common of their settings."""

    name: str
    source: str
    generated_tokens: int | float | str
    temperature: float
    vocabulary: Tokenizer | None

    def __post_init__(self) -> None:
        try:
            quantity(self.generated_tokens)
        except ValueError as error:
            raise ValueError(f"retention.{self.name}.generated_tokens: {error}") from None
        if self.temperature <= 0:
            raise ValueError(
                f"retention.{self.name}.temperature={self.temperature} must be positive: 1 writes as the model "
                "predicts, and without chance all samples would be the same"
            )

    def written(self, model: Model, seed: int) -> dict[str, Tensor]:
        """What `begin_stage` remembers of the text: nothing where it is not generated."""
        if self.source != "generated":
            return {}
        assert self.vocabulary is not None, "the run supplies the vocabulary"
        tokens = round(quantity(self.generated_tokens))
        return {"text": write(model, self.vocabulary.eos, tokens, seed, self.temperature)}

    def tasks(self, tasks: Sequence[Task], memory: dict[str, Any], kept: float | None = None) -> list[Task]:
        """`kept`: at most that many tokens of each earlier task, where its own text is read."""
        if self.source == "generated":
            return generated(tasks, memory.get("text"), self.vocabulary, self.name)
        return real(tasks, self.name, kept)
