"""Beam search: the most probable continuations that are found by keeping several of each prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.models.cache import next_logits
from kleiber.types.batch import Batch
from kleiber.types.model import Model, Stop, evaluation_mode

Continued = tuple[float, list[int]]  # the score of a continuation, and its token ids


@dataclass
class _Search:
    """The search of one prompt.

    running   continuations that have not ended, with their log-probabilities, the most probable one first
    finished  continuations that have ended, without the end-of-text token, with their scores
    sources   the place among the `running` of the step before of each that is running now
    """

    beams: int
    length_penalty: float
    running: list[Continued] = field(default_factory=lambda: [(0.0, [])])
    finished: list[Continued] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def advance(self, candidates: Sequence[tuple[float, int, int]], eos: int, stop: Stop | None) -> None:
        """Takes the next tokens: the best `beams` of the continuations that go on, and those before them that end.

        candidates  log-probability, place among `running` and new token of continuations, the most probable one first
        """
        running: list[Continued] = []
        self.sources = []
        for rank, (log_prob, source, token) in enumerate(candidates):
            ids = [*self.running[source][1], token]
            if token == eos or (stop is not None and stop(ids)):
                if rank < self.beams:
                    self.finish(log_prob, ids, ids[:-1] if token == eos else ids)
            elif len(running) < self.beams:
                running.append((log_prob, ids))
                self.sources.append(source)
        lacking = self.beams - len(running)  # of a tiny vocabulary
        self.running = running + [(-math.inf, [*self.running[0][1], eos])] * lacking
        self.sources += [0] * lacking

    def finish(self, log_prob: float, counted: list[int], ids: list[int]) -> None:
        """Adds a continuation that has ended; `counted` are its tokens with the one that ends the text."""
        self.finished.append((log_prob / max(1, len(counted)) ** self.length_penalty, ids))

    def best(self) -> list[int]:
        """The ids of the continuation with the highest score; those that are running end with their last token."""
        if len(self.finished) < self.beams:
            for log_prob, ids in self.running:
                self.finish(log_prob, ids, ids)
        return max(self.finished, key=lambda continued: continued[0])[1]


@torch.inference_mode()
def beam_search(
    model: Model,
    prompt_ids: Int[Tensor, "batch time"],
    real: Bool[Tensor, "batch time"] | None,
    max_new_tokens: int,
    eos: int,
    beams: int,
    length_penalty: float = 1.0,
    stop: Stop | None = None,
) -> list[list[int]]:
    """The token ids of the best continuation of each prompt, without the end-of-text token `eos`.

    At each step the `beams` most probable continuations are kept. The search of a prompt ends when that many have ended
    or have `max_new_tokens` tokens. The best has the highest sum of log-probabilities / tokens^length_penalty, as with
    `early_stopping=True` of transformers. With one beam it is the greedy continuation.

    real  False on padding, which is on the left of shorter prompts; None without padding
    stop  ends continuations in addition to `eos`

    Raises ValueError where a prompt and the new tokens exceed the context of the model, and for a bidirectional model.
    """
    longest = prompt_ids.shape[1]
    if not model.causal:
        raise ValueError("this model is not causal, so it cannot generate: use model=gpt or model=moe")
    if longest + max_new_tokens > model.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones must fit model.context={model.context} for "
            f"beams={beams}: generate fewer tokens, or set beams=1"
        )
    device, total = prompt_ids.device, longest + max_new_tokens
    searches = [_Search(beams, length_penalty) for _ in prompt_ids]
    active, caches, batch = searches, model.new_caches(total), Batch(prompt_ids, real=real)
    batch.prefix = batch.is_real if model.prefix else None
    with evaluation_mode(model):
        for step in range(max_new_tokens):
            log_probs = next_logits(model, batch, caches).log_softmax(-1)
            before = torch.tensor([[log_prob for log_prob, _ in search.running] for search in active], device=device)
            for search, candidates in zip(active, _candidates(before, log_probs, 2 * beams), strict=True):
                search.advance(candidates, eos, stop)
            going = [place for place, search in enumerate(active) if len(search.finished) < beams]
            if not going or step == max_new_tokens - 1:
                break
            rows = [place * before.shape[1] + source for place in going for source in active[place].sources]
            order, in_place = torch.tensor(rows, device=device), before.shape == (len(going), beams)
            caches = caches.reorder(order, total, longest) if in_place else caches.select(order, total)
            active = [active[place] for place in going]
            tokens = [[ids[-1]] for search in active for _, ids in search.running]
            batch = Batch(torch.tensor(tokens, device=device))
    return [search.best() for search in searches]


def _candidates(
    before: Float[Tensor, "prompts beams"], log_probs: Float[Tensor, "rows vocab"], count: int
) -> list[list[tuple[float, int, int]]]:
    """For each prompt the `count` most probable continuations: log-probability, place of the beam and next token."""
    vocab = log_probs.shape[1]
    sums = (before.flatten()[:, None] + log_probs).view(len(before), -1)
    values, places = sums.topk(min(count, sums.shape[1]))
    return [
        [(value, place // vocab, place % vocab) for value, place in zip(*row, strict=True)]
        for row in zip(values.tolist(), places.tolist(), strict=True)
    ]
