"""Two languages that a tiny model can learn in seconds, and the step that kleiber makes, without Lightning."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

import numpy as np
import torch

from kleiber.data.batches import stream
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.training.step import accumulate, normalize_gradients
from kleiber.types.batch import Batch, Loss, Penalty
from kleiber.types.contracts import HeldOut, Objective, Task
from kleiber.types.retention import Retention
from kleiber.types.tokenizer import Tokenizer

VOCAB, CONTEXT = 12, 16


class Language(HeldOut):
    """Rows of a Markov chain of its own seed: sharp transitions, so that a wrong model pays for it."""

    def __init__(self, seed: int, rows: int = 200) -> None:
        rng = np.random.default_rng(seed)
        chain = rng.dirichlet(np.full(VOCAB, 0.15), size=VOCAB)
        tokens = np.zeros((rows, CONTEXT + 1), np.int64)
        tokens[:, 0] = rng.integers(VOCAB, size=rows)
        for t in range(CONTEXT):
            tokens[:, t + 1] = [rng.choice(VOCAB, p=chain[last]) for last in tokens[:, t]]
        self.tokens = torch.from_numpy(tokens)
        self.num_tokens, self.num_bytes = rows * CONTEXT, rows * CONTEXT

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, index, epoch: int = 0) -> Batch:
        return Batch(self.tokens[torch.from_numpy(index)], samples=torch.from_numpy(index + epoch * len(self)))

    def first(self, tokens):
        return self


class Letters(Tokenizer):
    """A tokenizer as a retention method sees it."""

    name, vocab_size, eos, mask, hash = "letters", VOCAB, 0, 0, ""
    token_bytes = np.ones(VOCAB, np.int64)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCAB for letter in text]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def model(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(VOCAB, depth=1, width=16, context=CONTEXT, num_heads=2)


OLD, NEW = Language(1), Language(2)
TASKS = [Task("old", CLM(), OLD, OLD)]


def adam(net) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0)


def train(net, samples, steps, methods=(), start=0, optimizer=None, rows=8):
    """Optimizer steps `start` to `steps`, as LitLM makes them; returns the logged values of the last."""
    optimizer = optimizer or adam(net)
    batches, told = stream(samples, 0, start, rows), {}
    for step in range(start, steps):
        batch = next(batches)
        sums = accumulate(net, CLM(), batch.split(4), torch.Tensor.backward, retention=methods, step=step)

        def change(step=step, told=told) -> None:
            for one in methods:
                told.update(one.gradients(net, step))

        normalize_gradients(list(net.parameters()), sums.values["tokens"].item(), 1, 1.0, change if methods else None)
        optimizer.step()
        for one in methods:
            one.after_step(net, step, 0.01)
        optimizer.zero_grad()
        told |= sums.means()
    return told


def penalty_of(method, net, batch, step=0) -> Penalty:
    """The penalty of a step whose only micro-batch is `batch`."""
    counts = torch.tensor([float(count) for count in method.penalty_counts(net, batch, step)])
    return method.penalty(net, batch, step, counts)


class Labels(Objective):
    """An objective with an output layer of its own: a sum over the hidden states, with one target a row."""

    outputs = MappingProxyType({"labels": 2})

    def __call__(self, model, batch):
        total = model(Batch(batch.tokens[:, :-1])).hidden.square().sum()
        return Loss(total, torch.tensor(float(len(batch))), {"ce": total.detach()})


def padded_batch() -> Batch:
    """Eight rows of the lengths 17 and 4, so that parts of it differ in tokens per row."""
    batch, lengths = NEW.gather(np.arange(8)), torch.tensor([17, 17, 4, 4, 4, 4, 4, 4])
    return dataclasses.replace(batch, real=torch.arange(CONTEXT + 1) < lengths[:, None])


def step_gradient(net, objective, batch, rows, methods):
    """Gradient of the mean loss of a step in micro-batches of `rows` rows, and the logged means."""
    net.zero_grad()
    sums = accumulate(net, objective, batch.split(rows), torch.Tensor.backward, retention=methods, step=3)
    gradients = [parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None]
    return torch.cat(gradients) / sums.values["tokens"], sums.means()


def loss(net, samples) -> float:
    with torch.no_grad():
        found = CLM()(net, samples.gather(np.arange(len(samples))))
    return (found.total / found.tokens).item()


_LEARNED: dict[int, dict] = {}


def learned(seed: int = 0) -> Transformer:
    """A model that has learned the old language."""
    net = model(seed)
    if seed not in _LEARNED:
        train(net, OLD, 150)
        _LEARNED[seed] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(_LEARNED[seed])
    return net


def with_heads(method: Retention) -> Transformer:
    """A model whose head `old` was trained before `method` began its stage and whose head `new` was not; both move."""
    model = learned()
    for head in ("new", "old"):
        model.add_head(head, 2)
    with torch.no_grad():
        model.heads["old"].weight += 2.0
        method.begin_stage(model, [], 0)
        for head in model.heads.values():
            head.weight += 1.0
    return model
