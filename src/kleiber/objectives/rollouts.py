"""Rollouts: groups of answers that a policy writes to prompts, as rows of a batch that it can learn from.

The draws of an answer depend on the seed of the run, the number of its prompt and its place in the group alone, so
answers are the same for every number of ranks and micro-batches, and after a resume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from kleiber.data.batches import pad
from kleiber.data.order import random_bits
from kleiber.models.generation import continuations
from kleiber.nn.loss import log_probs
from kleiber.objectives.answer_rewards import Answer
from kleiber.objectives.clm import next_token_inputs
from kleiber.types import Json, Row
from kleiber.types.batch import Batch, Output
from kleiber.types.contracts import Samples
from kleiber.types.model import Model, evaluation_mode
from kleiber.types.ranks import world_size
from kleiber.types.tokenizer import Tokenizer

KEY = 0x60112  # part of the key of draws, which differs from those of the order of samples
ROWS = 256  # answers that are written together
MEASURED = 4096  # samples whose lengths decide how long answers may be
ADVANTAGE, REWARD, CUT, EQUAL = range(4)  # columns of `labels`
OLD, START = range(2)  # of `reference`: log-probabilities of each target under the policy that wrote it and the start


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and its right answer, as token ids, and other columns of the data."""

    prompt: list[int]
    right: list[int]
    row: Row

    def columns(self, tokenizer: Tokenizer) -> Row:
        """What a reward reads, with the right answer as `answer`."""
        return {"answer": tokenizer.decode(self.right).strip(), **self.row}


def prompts_of(batches: Sequence[Batch], samples: Samples) -> dict[int, Question]:
    """The question of each sample of the batches, by its number and in the order of numbers."""
    questions: dict[int, Question] = {}
    for batch in batches:
        assert batch.samples is not None and batch.weights is not None
        columns = (tensor.cpu().numpy() for tensor in (batch.samples, batch.tokens, batch.is_real, batch.weights > 0))
        for number, ids, real, marks in zip(*columns, strict=True):
            ids, begin, number = ids[real], int(marks[real].argmax()), int(number)
            row = samples.columns(number % len(samples))
            questions[number] = Question(ids[:begin].tolist(), ids[begin:].tolist(), row)
    return dict(sorted(questions.items()))


def questions_of(samples: Samples, limit: int | None = None) -> list[Question]:
    """The questions of the first samples, at most `limit`. Raises ValueError for samples without prompts."""
    index = np.arange(len(samples) if limit is None else min(limit, len(samples)))
    questions: list[Question] = []
    for part in np.array_split(index, -(-len(index) // ROWS)):
        batch = samples.gather(part)
        if batch.weights is None or batch.segments is not None:
            raise ValueError("--evals reward needs one prompt with its right answer in a row: set data.pack=false")
        batch = dataclasses.replace(batch, samples=torch.from_numpy(part))
        questions += prompts_of([batch], samples).values()
    return questions


def answer_limit(samples: Samples, context: int, tokens: int | None, key: str) -> int:
    """The most tokens of an answer to the prompts of these samples.

    tokens  what `key` sets; None: twice the tokens of the longest right answer, if the context has room for them

    Raises ValueError where a prompt and so many tokens exceed the context.
    """
    index = np.unique(np.linspace(0, len(samples) - 1, MEASURED).astype(int))
    parts = np.array_split(index, -(-len(index) // ROWS))
    questions = prompts_of([samples.gather(part) for part in parts], samples).values()
    longest = max(len(question.prompt) for question in questions)
    room = context + 1 - longest
    if tokens is None:
        return min(room, 2 * max(len(question.right) for question in questions))
    if tokens > room:
        raise ValueError(
            f"{key}={tokens} and a prompt of {longest} tokens must fit model.context={context}: set {key}={room} or "
            "less, or a larger model.context"
        )
    return tokens


def draws(seed: int, number: int, group: int, tokens: int) -> Float[np.ndarray, "group tokens"]:
    """Numbers in [0, 1) that decide the answers to a prompt."""
    bits = random_bits(group * tokens, seed, KEY, number)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(group, tokens)


def write_answers(
    model: Model, prompts: Mapping[int, Sequence[int]], group: int, tokens: int, eos: int, seed: int
) -> list[Answer]:
    """`group` answers to each prompt, sampled at temperature 1, those to one prompt after those to another."""
    texts = [prompt for prompt in prompts.values() for _ in range(group)]
    numbers = np.concatenate([draws(seed, number, group, tokens) for number in prompts])
    written = continuations(model, texts, tokens, eos, 1.0, draws=numbers, rows=ROWS, label="writing answers")
    return [Answer(prompt, ids, len(ids) < tokens) for prompt, ids in zip(texts, written, strict=True)]


def to_batch(answers: Sequence[Answer], numbers: Sequence[int], eos: int, limit: int) -> Batch:
    """Rows of prompts and answers, with weights of 1 on the tokens of answers and on the end-of-text token."""
    rows = [np.array([*a.prompt, *a.ids, *([eos] if a.ended else [])], np.int64) for a in answers]
    marks = [np.repeat([0, 1], [len(a.prompt), len(row) - len(a.prompt)]) for a, row in zip(answers, rows, strict=True)]
    tokens, real = pad(rows, limit, eos, ahead=1)
    weights, _ = pad(marks, limit, 0, ahead=1)
    return Batch(tokens, real, weights.float(), samples=torch.tensor(numbers))


def token_log_probs(model: Model, batch: Batch) -> tuple[Tensor, Tensor, Output, Batch]:
    """Log-probabilities in nats of all tokens of answers, in one vector, and the number of the row of each.

    Also returns the model's output and the rows that it read.
    """
    assert batch.weights is not None
    rows = next_token_inputs(batch, model.prefix)
    output, targets = model(rows), batch.weights[:, 1:] > 0
    values = log_probs(output.hidden[targets], model.head, batch.tokens[:, 1:][targets])
    return values, targets.nonzero()[:, 0], output, rows


@torch.no_grad()
def frozen_log_probs(model: Model, batch: Batch, rows: int) -> Float[Tensor, "batch time"]:
    """Log-probabilities in nats of each target, without dropout and `rows` at a time; 0 elsewhere."""
    assert batch.weights is not None
    targets = batch.weights[:, 1:] > 0
    with evaluation_mode(model):
        parts = [token_log_probs(model, part)[0] for part in batch.split(rows)]
    values = torch.cat(parts)
    return values.new_zeros(targets.shape).masked_scatter(targets, values)


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """The rows of these numbers, as wide as the longest of them."""
    chosen = batch.map(lambda tensor: tensor[rows])
    assert chosen.real is not None and chosen.weights is not None and chosen.reference is not None
    width = max(2, int(chosen.real.sum(1).max()))
    return dataclasses.replace(
        chosen,
        tokens=chosen.tokens[:, :width],
        real=chosen.real[:, :width],
        weights=chosen.weights[:, :width],
        reference=chosen.reference[..., : width - 1],
    )


def of_all_ranks(batch: Batch) -> Batch:
    """The rows of all ranks, on the CPU and as wide as the widest."""
    batch = batch.to("cpu")
    if world_size() == 1:
        return batch
    gathered: list[Json] = [{}] * world_size()
    dist.all_gather_object(gathered, tensors_of(batch))
    width = max(part["tokens"].shape[1] for part in gathered)

    def joined(name: str) -> Tensor:
        """The rows of all ranks of one of the tensors."""
        values = [part[name] for part in gathered]
        if values[0].dim() > 1 and name != "labels":
            target = width - (name == "reference")
            values = [torch.nn.functional.pad(value, (0, target - value.shape[-1])) for value in values]
        return torch.cat(values)

    tensors = {name: joined(name) for name in gathered[0]}
    return Batch(tensors.pop("tokens"), **tensors)  # type: ignore[arg-type]


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
