"""Synthetic associative recall: many keys at once (Arora et al. 2023, arXiv:2312.04927), or a needle in a haystack.

A row contains pairs of a key and a value, and later keys again, each followed by its value. Only these second values
are targets. A model can predict them only from earlier tokens of the row, so the loss measures what its sequence layers
can carry over distances of up to a row. Rows are computed from seed, sample number and epoch: there is no file, and
training never repeats a row.

Without `distractors` the pairs fill the first half of the row, and the second half asks for each of them once. With
`distractors` a haystack of meaningless tokens hides one needle and that many other pairs, and the rest of the row asks
for one of them again and again, independently, so that no place of the answer is more likely than another.
`RecallRows.needles` are rows with one question, for a needle at a chosen depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Int, UInt64

from kleiber.config import Quantity
from kleiber.data import Bytes, TextCorpus, digest, parse_bytes, splitmix64
from kleiber.types import Batch, Context, Count, HeldOut, Natural, Planted, Seed

FIRST_VALUE = 128  # ids 0 to 127 are keys, 128 to 255 values
FIRST_FILLER = 258  # the ids from here on, which no text has, fill haystacks
FIRST_HELD_OUT = 1 << 40  # the first sample number of validation
FIRST_NEEDLE = 1 << 41  # of rows with one question


@dataclass(frozen=True)
class Recall:
    """Settings of associative recall, with rows of context + 1 tokens.

    pairs        of a row without a haystack; null: as many as fit twice, at most `keys`
    distractors  pairs in a haystack besides the needle; null: no haystack
    lengths      of haystacks, in tokens; each row has one of them, drawn at random. null: an eighth, a quarter, a half
                 and three quarters of the context
    keys         number of different keys, at most 128; a row contains a key once
    values       number of different values, at most 128; guessing has a loss of ln(values) nats per target
    shared_values  whether all keys have the same values. If not, each key has `values` values of its own, so a value
                 tells its key, and one layer of attention finds it; shared values need two layers that work together
                 (induction: Olsson et al. 2022, arXiv:2209.11895), which small models learn late
    rows         training rows of one epoch; another epoch has other rows
    max_bytes    of the training rows of one epoch, where each token is a byte; null: no limit
    """

    pairs: Count | None = None
    distractors: Natural | None = None
    lengths: Sequence[Context] | None = None
    keys: Annotated[int, Ge(2), Le(FIRST_VALUE)] = 64
    values: Annotated[int, Ge(2), Le(FIRST_VALUE)] = 64
    shared_values: bool = True
    rows: Count = 100_000
    seed: Seed = 0
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Computes the samples.

        Raises ValueError for more pairs than fit a row, or than there are keys, and for keys that do not fit together.
        """
        lengths = self._lengths(context)
        if self.distractors is not None:
            pairs = self.distractors + 1
        else:
            pairs = min((context + 1) // 4, self.keys) if self.pairs is None else self.pairs
        self._check(context, pairs, lengths)
        limit = parse_bytes(self.max_bytes)
        rows = self.rows if limit is None else max(1, min(self.rows, limit // (context + 1)))
        train = RecallRows(self, context, pairs, lengths, rows, 0)
        held_out = RecallRows(self, context, pairs, lengths, max(1, rows // 10), FIRST_HELD_OUT)
        further = [*([lengths] if lengths else []), *([] if self.shared_values else ["values of each key"])]
        name = digest(["recall", 1, context, pairs, self.keys, self.values, rows, self.seed, *further])
        config = f"{pairs} pairs" + (f" in up to {max(lengths)} tokens" if lengths else "")
        return TextCorpus("recall", config, name, Bytes(), train, {"recall": held_out})

    def _lengths(self, context: int) -> list[int]:
        """The lengths of haystacks, even numbers of tokens; [] without haystacks."""
        if self.distractors is None:
            return []
        shares = [context // 8, context // 4, context // 2, 3 * context // 4]
        return sorted({2 * (length // 2) for length in (shares if self.lengths is None else self.lengths)})

    def _check(self, context: int, pairs: int, lengths: list[int]) -> None:
        if not self.shared_values and self.keys * self.values > FIRST_VALUE:
            raise ValueError(
                f"data.keys={self.keys} x data.values={self.values} must be <= {FIRST_VALUE}, or set "
                "data.shared_values=true"
            )
        if self.distractors is None:
            if self.lengths is not None:
                raise ValueError(f"data.lengths={list(self.lengths)} are of haystacks: set data.distractors too")
            if not 1 <= pairs <= self.keys or 4 * pairs > context + 1:
                raise ValueError(
                    f"data.pairs={pairs} must be >= 1, <= data.keys={self.keys}, and <= {(context + 1) // 4}, since 4 "
                    f"tokens per pair must fit into model.context={context}: change one of these keys"
                )
            return
        if self.pairs is not None:
            raise ValueError(f"data.pairs={self.pairs} is for rows without a haystack: set data.distractors alone")
        if pairs > self.keys:
            raise ValueError(f"data.distractors={self.distractors} must be < data.keys={self.keys}")
        if not lengths or lengths[0] < 2 * pairs or lengths[-1] + 2 > context:
            raise ValueError(
                f"data.lengths={lengths} must be >= {2 * pairs}, so that {pairs} pairs fit, and <= {context - 2}, so "
                f"that a question fits into model.context={context} too"
            )


class RecallRows(HeldOut):
    """Samples of one split. num_tokens and num_bytes count `context` tokens a row, and each token is a byte.

    lengths  of haystacks, in tokens; [] without
    """

    def __init__(self, source: Recall, context: int, pairs: int, lengths: list[int], count: int, start: int) -> None:
        self.source, self.context, self.pairs, self.lengths = source, context, pairs, lengths
        self.count, self.start = count, start
        self.num_tokens = self.num_bytes = count * context

    def __len__(self) -> int:
        return self.count

    def first(self, tokens: int | None) -> RecallRows:
        rows = self.count if tokens is None else min(self.count, max(1, tokens // self.context))
        return RecallRows(self.source, self.context, self.pairs, self.lengths, rows, self.start)

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns rows of pairs and questions; weights are 1 on the values that follow a question's key."""
        samples = np.asarray(index, np.int64) + self.start + epoch * self.count
        tokens = np.full((len(samples), self.context + 1), Bytes.eos, np.int64)
        weights = np.zeros(tokens.shape, np.float32)
        pairs = self._pairs(samples)
        if not self.lengths:
            shown = pairs.reshape(len(samples), -1)
            self._ask(pairs, self._permutations(samples, 2, self.pairs), shown, tokens, weights)
        drawn = self._random(samples, 5, 1)[:, 0] % np.uint64(max(1, len(self.lengths)))
        for number, length in enumerate(self.lengths):
            at = drawn == number
            part_tokens, part_weights = tokens[at], weights[at]
            shown = self._haystack(samples[at], pairs[at], length)
            order = self._random(samples[at], 2, (self.context + 1 - length) // 2) % np.uint64(self.pairs)
            self._ask(pairs[at], order.astype(np.int64), shown, part_tokens, part_weights)
            tokens[at], weights[at] = part_tokens, part_weights
        return Batch(torch.from_numpy(tokens), weights=torch.from_numpy(weights), samples=torch.from_numpy(samples))

    def planted(self, index: Int[np.ndarray, "batch"]) -> Planted:
        """The last value that is asked for, and the earlier occurrences of its key and value."""
        batch = self.gather(index)
        assert batch.weights is not None
        tokens, weights = batch.tokens.numpy(), batch.weights.numpy()
        targets = tokens.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
        keys = np.take_along_axis(tokens, targets[:, None] - 1, 1)
        shown = (tokens == keys) & (np.arange(tokens.shape[1]) < targets[:, None] - 1)
        return Planted(targets, shown | np.roll(shown, 1, axis=1))

    def needles(self, length: int, depth: float, index: Int[np.ndarray, "batch"]) -> Batch:
        """Returns rows of a haystack and one question, whose value is the only target and the last token.

        length  of the haystack, in tokens
        depth   place of the needle in it, from 0 (its first two tokens) to 1 (its last two)

        Raises ValueError for rows that have no haystack.
        """
        if not self.lengths:
            raise ValueError("rows without a haystack have no needle: set data.distractors")
        samples = np.asarray(index, np.int64) + FIRST_NEEDLE
        pairs = self._pairs(samples)
        tokens = np.concatenate([self._haystack(samples, pairs, length, depth), pairs[:, 0]], 1)
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, -1] = 1.0
        return Batch(torch.from_numpy(tokens), weights=torch.from_numpy(weights), samples=torch.from_numpy(samples))

    def _pairs(self, samples: Int[np.ndarray, "batch"]) -> Int[np.ndarray, "batch pairs 2"]:
        """The pairs of each row; the first one is the needle."""
        keys = self._permutations(samples, 0, self.source.keys)[:, : self.pairs]
        values = FIRST_VALUE + (self._random(samples, 1, self.pairs) % np.uint64(self.source.values)).astype(np.int64)
        if not self.source.shared_values:
            values += self.source.values * keys
        return np.stack([keys, values], 2)

    def _haystack(
        self,
        samples: Int[np.ndarray, "batch"],
        pairs: Int[np.ndarray, "batch pairs 2"],
        length: int,
        depth: float | None = None,
    ) -> Int[np.ndarray, "batch length"]:
        """Filling tokens, with the pairs at random even positions; the needle at `depth`, if there is one."""
        slots = length // 2
        places = self._permutations(samples, 3, slots)
        if depth is not None:
            away = places != round(depth * (slots - 1))
            places = np.take_along_axis(places, np.argsort(away, axis=1, kind="stable"), 1)
        fillers = np.uint64(Bytes.vocab_size - FIRST_FILLER)
        tokens = (FIRST_FILLER + self._random(samples, 4, length) % fillers).astype(np.int64)
        tokens = tokens.reshape(len(samples), slots, 2)
        np.put_along_axis(tokens, places[:, : self.pairs, None], pairs, 1)
        return tokens.reshape(len(samples), length)

    def _ask(
        self,
        pairs: Int[np.ndarray, "batch pairs 2"],
        order: Int[np.ndarray, "batch questions"],
        shown: Int[np.ndarray, "batch length"],
        tokens: Int[np.ndarray, "batch time"],
        weights: np.ndarray,
    ) -> None:
        """Writes what is shown and then the pairs in an order into the rows; values of the latter have weight 1."""
        start, end = shown.shape[1], shown.shape[1] + 2 * order.shape[1]
        asked = np.take_along_axis(pairs, order[:, :, None], 1)
        tokens[:, :end] = np.concatenate([shown, asked.reshape(len(pairs), end - start)], 1)
        weights[:, start + 1 : end : 2] = 1.0

    def _random(self, samples: Int[np.ndarray, "batch"], stream: int, count: int) -> UInt64[np.ndarray, "batch count"]:
        """Returns random 64-bit numbers of shape (samples, count), which depend on seed, stream and sample number."""
        key = splitmix64(np.array([self.source.seed * 8 + stream], np.uint64))
        rows = splitmix64(samples.astype(np.uint64) ^ key)
        return splitmix64(rows[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))

    def _permutations(self, samples: Int[np.ndarray, "batch"], stream: int, count: int) -> np.ndarray:
        """Returns a permutation of 0 to count - 1 for each sample."""
        return np.argsort(self._random(samples, stream, count), axis=1, kind="stable").astype(np.int64)
