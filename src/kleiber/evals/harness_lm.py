"""The class through which lm-eval reads a model of ours; imported only where the optional package lm-eval is.

Requests are sorted by length and cut into batches of a fixed number, so a score does not depend on the other requests;
the softmax is in fp32. Conventions (context and continuation, empty contexts, rolling windows) are those of lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

from kleiber.models.generate import generate, left_padded
from kleiber.types.batch import Batch
from kleiber.types.contracts import Tokenizer
from kleiber.types.model import Model

Pair = tuple[list[int], list[int]]


class HarnessLM(TemplateLM):
    """loglikelihood, loglikelihood_rolling and generate_until of a causal model and its tokenizer.

    max_gen_toks  tokens generated where a task says nothing
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, batch_size: int = 16, max_gen_toks: int = 256) -> None:
        super().__init__()
        if not model.causal:
            raise ValueError("lm-eval scores what follows from what stands before: it needs a causal model")
        self.model, self.ours, self.batch_size, self.max_gen_toks = model, tokenizer, batch_size, max_gen_toks
        self.max_length: int = model.context
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self.ours.eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: the beginning of a text where the tokenizer has one, else its end."""
        return self.eot_token_id if self.ours.bos is None else self.ours.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids as the tokenizer gives them to a model: with the specials that its own files ask for."""
        return self.ours.encode(string) if add_special_tokens is False else self.ours.encode_for_model(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0] + pairs[i][1]), pairs[i]))
        scored: dict[int, tuple[float, bool]] = {}
        for at in range(0, len(order), self.batch_size):
            chosen = order[at : at + self.batch_size]
            scored |= dict(zip(chosen, self._score([pairs[i] for i in chosen]), strict=True))
        return [scored[i] for i in range(len(pairs))]

    @torch.inference_mode()
    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one; contexts lose their left end."""
        rows = [(context + continuation)[-(self.max_length + 1) :] for context, continuation in pairs]
        longest = max(len(row) for row in rows) - 1
        tokens = torch.tensor([row[:-1] + [0] * (longest - len(row) + 1) for row in rows], device=self._device)
        lengths = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        real = torch.arange(longest, device=self._device) < lengths[:, None]
        hidden = self.model(Batch(tokens, real=None if bool(real.all()) else real)).hidden
        told = []
        for row, state, (_, continuation) in zip(rows, hidden, pairs, strict=True):
            targets = torch.tensor(continuation[-self.max_length :], device=self._device)
            end = len(row) - 1
            logits = self.model.head(state[end - len(targets) : end]).float()
            chosen = logits.log_softmax(-1).gather(1, targets[:, None])
            told.append((float(chosen.sum()), bool((logits.argmax(-1) == targets).all())))
        return told

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            cut = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            own = [(None, *utils.make_disjoint_window(window)) for window in cut]
            windows, counts = windows + own, [*counts, len(own)]
        scored = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scored)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first of the stop strings, greedy unless the task asks for a temperature."""
        made: list[str] = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (str(requests[i].args[1]), -len(requests[i].args[0]), i))
        while order:
            options = requests[order[0]].args[1]
            batch = [i for i in order[: self.batch_size] if requests[i].args[1] == options]
            order = order[len(batch) :]
            for i, text in zip(batch, self._continue([requests[i].args[0] for i in batch], options), strict=True):
                made[i] = text
        return made

    def _continue(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        length = int(options.get("max_gen_toks") or options.get("max_new_tokens") or self.max_gen_toks)
        if length >= self.max_length:
            raise ValueError(f"max_gen_toks={length} leaves no room for a prompt in model.context={self.max_length}")
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
        prompts = [self.tok_encode(text)[-(self.max_length - length) :] or [self.prefix_token_id] for text in contexts]
        ids, real = (tensor.to(self._device) for tensor in left_padded(prompts))
        padded = None if bool(real.all()) else real
        rows = generate(
            self.model, ids, length, temperature, top_p=options.get("top_p"), real=padded, eos=self.eot_token_id
        )
        return [self._cut(row[ids.shape[1] :].tolist(), stops) for row in rows]

    def _cut(self, ids: list[int], stops: Sequence[str]) -> str:
        end = ids.index(self.eot_token_id) if self.eot_token_id in ids else len(ids)
        text = self.ours.decode(ids[:end])
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text
