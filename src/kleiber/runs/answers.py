"""Answers of a trained model to prompts, many at a time, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kleiber.data.chat import Conversation, encode_conversations, encode_prompt
from kleiber.evals.likelihood import log_likelihoods, pass_tokens
from kleiber.models.generation import continuations
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer

ROWS = 64  # scored at once


@dataclass(frozen=True)
class Answers:
    """Answers of a model to prompts.

    name  of the model, for the progress line
    """

    model: Model
    tokenizer: Tokenizer
    name: str

    def write(
        self, prompts: Sequence[Conversation], each: int = 1, tokens: int = 64, temperature: float = 1.0,
        top_p: float = 1.0, seed: int = 0, first: int = 0,
    ) -> list[list[str]]:  # fmt: skip
        """Answers to each prompt. They do not depend on the other prompts.

        prompts  conversations that end before an answer; or a single turn of the role `text`, which is continued
        each     answers to a prompt
        tokens   most tokens of an answer
        first    number of the first prompt, from which the random numbers of its answers follow

        Raises ValueError for a model that is not causal.
        """
        ids = [encode_prompt(p, self.tokenizer)[-self.model.context :] for p in prompts for _ in range(each)]
        seeds = [[abs(seed), first * each + i] for i in range(len(ids))]
        draws = np.array([np.random.default_rng(values).random(tokens) for values in seeds]).reshape(-1, tokens)
        written = continuations(
            self.model, ids, tokens, self.tokenizer.eos, temperature, top_p, draws, label=f"{self.name} answers"
        )
        texts = []
        for prompt, row in zip(ids, written, strict=True):
            before = self.tokenizer.decode(prompt)  # with it, since a tokenizer may leave out the first space
            texts.append(self.tokenizer.decode([*prompt, *row])[len(before) :])
        return [texts[i : i + each] for i in range(0, len(texts), each)]

    def log_probs(self, dialogs: Sequence[Conversation]) -> Float[np.ndarray, "_ values"]:
        """Log-probability in nats, and number of tokens, of the last answer of each conversation."""
        items = []
        for dialog in encode_conversations(dialogs, self.tokenizer, last_only=True):
            start = int(dialog.answers.argmax()) if dialog.answers.any() else len(dialog.ids)
            items.append([(dialog.ids[:start].tolist(), dialog.ids[start:].tolist())])
        tokens = pass_tokens(self.model, ROWS)
        log_probs = log_likelihoods(self.model, items, tokens, "scoring answers").log_probs
        return np.stack([log_probs, [float(len(item[0][1])) for item in items]], 1)
