"""Predictions that are explained: a token of each text, or its class, and their log-probability under changed inputs.

Inputs are changed in two ways: tokens are replaced by other tokens, or the vectors of the embedding by other vectors.
The latter is a hook on the embedding, so it works for every model with an embedding of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from kleiber.evals import Subject
from kleiber.nn import log_probs
from kleiber.types import Batch, Model, Objective, Tokenizer


@dataclass(frozen=True)
class ExplainedPredictions:
    """One prediction of each row.

    batch        inputs: `tokens`, and `real` where rows are padded
    at           position whose hidden state predicts; not read for classes
    targets      id of the token, or of the class
    candidates   True for the tokens that the prediction may rest on, and that are ranked
    replacement  tokens of other texts that take the place of removed ones
    causes       True for tokens that are known to decide the prediction; None where nothing is known
    classify     the objective whose class is predicted; None where a token is
    """

    batch: Batch
    at: Int[Tensor, "rows"]
    targets: Int[Tensor, "rows"]
    candidates: Bool[Tensor, "rows time"]
    replacement: Int[Tensor, "rows time"]
    causes: Bool[Tensor, "rows time"] | None = None
    classify: Objective | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def select(self, rows: Int[Tensor, "_"]) -> ExplainedPredictions:
        """The predictions of these rows, some of which may repeat."""
        return replace(
            self,
            batch=self.batch.map(lambda tensor: tensor[rows]),
            at=self.at[rows],
            targets=self.targets[rows],
            candidates=self.candidates[rows],
            replacement=self.replacement[rows],
            causes=None if self.causes is None else self.causes[rows],
        )

    def with_tokens(self, tokens: Int[Tensor, "rows time"]) -> ExplainedPredictions:
        """The same predictions from other input tokens."""
        return replace(self, batch=replace(self.batch, tokens=tokens))

    def log_probs(
        self, model: Model, embeddings: Float[Tensor, "rows time dim"] | None = None
    ) -> Float[Tensor, "rows"]:
        """The log-probability of each target in nats, in fp32.

        embeddings  take the place of those of the tokens
        """
        with nullcontext() if embeddings is None else replaced_embeddings(model, embeddings):
            if self.classify is not None:
                predicted = self.classify.predictions(model, self.batch)
                logits = predicted.head(predicted.hidden).float()
                return logits.log_softmax(-1).gather(1, self.targets[:, None])[:, 0]
            hidden = model(self.batch).hidden
        states = hidden[torch.arange(len(self), device=hidden.device), self.at]
        return log_probs(states, model.head, self.targets).float()


def replaced_embeddings(model: Model, embeddings: Float[Tensor, "rows time dim"]) -> RemovableHandle:
    """A context in which the embedding of the model returns `embeddings`, whatever the tokens are."""
    return model.embedding.register_forward_hook(lambda *_: embeddings)


def baseline_embedding(model: Model, tokenizer: Tokenizer, baseline: str) -> Float[Tensor, "_"]:
    """The vector that stands for no information: zero, or the mean over the tokens of the vocabulary that have text."""
    weight = model.embedding.weight.detach()
    if baseline == "zero":
        return torch.zeros_like(weight[0])
    used = torch.from_numpy(np.flatnonzero(tokenizer.token_bytes > 0)).to(weight.device)
    return weight[used[used < len(weight)]].mean(0)


def choose_predictions(
    subject: Subject, domain: str, texts: int, length: int, position: int | None, seed: int
) -> ExplainedPredictions:
    """One prediction of each of the first texts of a data set.

    texts     number of texts
    length    tokens of a text that are read
    position  number of the predicted token in its text, from 1; None: the last one, or the one that is planted

    The class that the model predicts is explained where the objective has classes; the next token of a causal model;
    and a masked token of another model, which reads the tokens on both sides of it. Rows whose cause is planted are
    read whole. Raises ValueError for fewer than two texts with such a token.
    """
    objective, model = subject.objective_of(domain), subject.model
    samples = subject.samples(domain)
    index = np.arange(min(texts, len(samples)))
    raw = samples.gather(index)
    planted = samples.planted(index) if position is None else None
    if objective.class_names:
        return class_predictions(subject, objective, raw, min(length, model.context), seed)
    if planted is not None:
        targets = torch.from_numpy(planted.targets)
        causes = torch.from_numpy(planted.causes)
    else:
        raw = raw.columns(min(length, model.context) + 1)
        usable = target_places(raw, model)
        if position is not None:
            usable &= torch.arange(usable.shape[1]) == position
        kept = usable.any(1).nonzero()[:, 0]
        raw, usable = raw.map(lambda tensor: tensor[kept]), usable[kept]
        targets, causes = usable.shape[1] - 1 - usable.flip(1).int().argmax(1), None
    if len(raw) < 2:
        where = "" if position is None else f" with a token number {position}"
        raise ValueError(
            f"evals.attribution needs >= 2 texts{where} among the first {texts} of {domain}, and got {len(raw)}: "
            "choose other data, evals.attribution.texts, length or position"
        )
    chosen = token_predictions(model, subject.tokenizer, raw, targets, causes, seed)
    return to_device(chosen, subject.device)


def target_places(batch: Batch, model: Model) -> Bool[Tensor, "rows time"]:
    """The tokens that may be predicted: real ones with a weight, after the first; those that a masked model reads."""
    usable = batch.is_real.clone()
    if batch.weights is not None:
        usable &= batch.weights > 0
    usable[:, 0] = False
    if not model.causal:
        usable[:, model.context :] = False
    return usable


def token_predictions(
    model: Model,
    tokenizer: Tokenizer,
    raw: Batch,
    targets: Int[Tensor, "rows"],
    causes: Bool[Tensor, "rows time"] | None = None,
    seed: int = 0,
) -> ExplainedPredictions:
    """The predictions of the tokens at positions `targets` of raw rows, from what precedes or what surrounds them."""
    rows = torch.arange(len(raw))
    ids = raw.tokens[rows, targets]
    real = raw.is_real
    places = torch.arange(raw.tokens.shape[1])
    end = min(model.context, raw.tokens.shape[1] - 1 if model.causal else raw.tokens.shape[1])
    inputs, at = raw.tokens, targets - 1
    candidates = real & (places < targets[:, None])
    if not model.causal:
        if tokenizer.mask < 0:
            raise ValueError(f"evals.attribution masks a token, and the tokenizer {tokenizer.name} has no mask token")
        inputs, at = inputs.clone(), targets
        inputs[rows, targets] = tokenizer.mask
        candidates = real & (places != targets[:, None])
    batch = Batch(
        inputs[:, :end],
        real=None if raw.real is None or bool(raw.real[:, :end].all()) else raw.real[:, :end],
        segments=None if raw.segments is None else raw.segments[:, :end],
    )
    replacement = tokens_of_others(raw.tokens[:, :end], real[:, :end], seed)
    causes = None if causes is None else causes[:, :end]
    return ExplainedPredictions(batch, at, ids, candidates[:, :end], replacement, causes)


def class_predictions(
    subject: Subject, objective: Objective, raw: Batch, length: int, seed: int
) -> ExplainedPredictions:
    """The predictions of the most probable class of each text."""
    batch = raw.columns(length).to(subject.device)
    with torch.no_grad():
        predicted = objective.predictions(subject.model, batch)
        classes = predicted.head(predicted.hidden).argmax(-1)
    real = batch.is_real
    replacement = tokens_of_others(batch.tokens.cpu(), real.cpu(), seed)
    return ExplainedPredictions(
        Batch(batch.tokens, real=batch.real, segments=batch.segments),
        torch.zeros_like(classes),
        classes,
        real,
        replacement.to(subject.device),
        classify=objective,
    )


def tokens_of_others(
    tokens: Int[Tensor, "rows time"], real: Bool[Tensor, "rows time"], seed: int
) -> Int[Tensor, "rows time"]:
    """For each row, the tokens of another row at the same places; a shorter one is repeated."""
    random = np.random.default_rng(seed % 2**32)
    shift = torch.from_numpy(random.integers(1, max(2, len(tokens)), len(tokens)))
    others = (torch.arange(len(tokens)) + shift) % len(tokens)
    ends = (real * torch.arange(1, tokens.shape[1] + 1)).amax(1)[others]  # padding is on the right
    places = torch.arange(tokens.shape[1]) % ends[:, None]
    return tokens[others].gather(1, places)


def to_device(predictions: ExplainedPredictions, device: torch.device | str) -> ExplainedPredictions:
    """The predictions on a device."""
    return replace(
        predictions,
        batch=predictions.batch.to(device),
        at=predictions.at.to(device),
        targets=predictions.targets.to(device),
        candidates=predictions.candidates.to(device),
        replacement=predictions.replacement.to(device),
        causes=None if predictions.causes is None else predictions.causes.to(device),
    )


def chunks(count: int, size: int) -> Sequence[slice]:
    """Slices of at most `size` rows that cover `count` rows in order."""
    return [slice(start, min(start + size, count)) for start in range(0, count, max(1, size))]
