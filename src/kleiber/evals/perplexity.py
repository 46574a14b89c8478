"""Held-out loss in nats per token, and in bits per byte where the objective is a likelihood of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from kleiber.evals.subject import Subject
from kleiber.sums import Sums
from kleiber.types import Batch, Loss


@torch.compiler.set_stance("force_eager")  # only training is compiled: a graph for each odd batch would cost more
@torch.no_grad()
def held_out_loss(
    model: Any, objective: Callable[[Any, Batch], Loss], batches: Iterable[Batch], device: torch.device | str
) -> Sums:
    """Sums of the objective over `batches` on this rank, without dropout; the caller reduces over ranks."""
    training = model.training
    model.eval()
    sums = Sums()
    try:
        for batch in batches:
            sums.add(objective(model, batch.to(device)))
    finally:
        model.train(training)
    return sums


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """nats / token over (ln 2 bytes / token): comparable across tokenizers."""
    return nats_per_token / (math.log(2) * bytes_per_token)


def bytes_per_target(objective: Any, chosen: Any) -> float | None:
    """Bytes of text behind each target of held-out samples; None where loss over bytes has no meaning: for what is no
    likelihood of text, and for padded rows, of which begin tokens or prompts are no targets."""
    if not objective.likelihood or getattr(chosen, "padded", False):
        return None
    return chosen.num_bytes / chosen.num_tokens


def evaluate(subject: Subject) -> dict[str, Any]:
    """For each domain: tokens, loss in nats per token and, for likelihoods of text, bits per byte."""
    found: dict[str, Any] = {}
    for domain in subject.domains:
        chosen = subject.corpus.validation[domain].first(subject.tokens)
        batches = subject.batches(domain, subject.tokens)
        sums = held_out_loss(subject.model, subject.objective, batches, subject.device)
        nats = sums.means()["ce"].item()
        found[domain] = {"tokens": chosen.num_tokens, "loss": nats}
        size = bytes_per_target(subject.objective, chosen)
        if size is not None:
            found[domain]["bits_per_byte"] = bits_per_byte(nats, size)
    return found
