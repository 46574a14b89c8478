"""Corpora of other corpora: a mixture by fractions of tokens, and a repeated part of a data set.

A mixture keeps its fractions exactly in every block of samples. Every sample has the same number of tokens, so
fractions of tokens are fractions of samples. Which sample stands where is a function of (seed, position): nothing is
drawn or remembered, and a resumed run needs only its step.

The part of a repeated data set is spread evenly over all of it, so it is as varied: the beginning of a text is narrower
and would cost loss without being read twice. Validation stays that of the whole set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Int

from kleiber.config.stages import quantity
from kleiber.data.cache import Source, digest
from kleiber.data.corpus import TextCorpus, prepare
from kleiber.data.sampler import Joined, Order, permutation
from kleiber.data.sources.builtin import Builtin, Domain
from kleiber.data.sources.text import Text
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples

SMALLEST_BLOCK, LARGEST_BLOCK = 20, 1000


def shares(fractions: Sequence[float]) -> list[int]:
    """Samples of each part in a block: of 20 to 1000 samples, the shortest in which all fractions are whole numbers.

    Where there is none, the block is 1000 and the largest remainders are rounded up: off by less than 0.001.
    """
    for block in range(SMALLEST_BLOCK, LARGEST_BLOCK + 1):
        if all(abs(block * fraction - round(block * fraction)) < 1e-9 * block for fraction in fractions):
            return [round(block * fraction) for fraction in fractions]
    exact = [LARGEST_BLOCK * Fraction(fraction) for fraction in fractions]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: LARGEST_BLOCK - sum(counts)]:
        counts[i] += 1
    return counts


class Mixture(Joined):
    """Samples of several parts, each by its fraction: a small part repeats while a large one is in its first epoch.

    Raises ValueError for fractions that do not sum to 1 or that no block can hold.
    """

    def __init__(self, parts: Sequence[Samples], fractions: Sequence[float]) -> None:
        assert len(parts) == len(fractions)
        if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
            raise ValueError(
                f"data.parts: the fractions {list(fractions)} sum to {sum(fractions):g}: they must sum to 1"
            )
        self.shares = shares(fractions)
        for fraction, share in zip(fractions, self.shares, strict=True):
            if fraction > 0 and share == 0:
                raise ValueError(f"data.parts: a fraction of {fraction:g} is less than one sample in {LARGEST_BLOCK}")
        super().__init__(parts)

    def order(self, seed: int) -> MixedOrder:
        return MixedOrder([len(part) for part in self.parts], self.shares, seed)


def fractions_of(samples: Samples) -> list[tuple[Samples, float]]:
    """The parts of a mixture that have a share, each with its fraction; other samples are one part."""
    if not isinstance(samples, Mixture):
        return [(samples, 1.0)]
    parts = zip(samples.parts, samples.shares, strict=True)
    return [(part, share / sum(samples.shares)) for part, share in parts if share]


class MixedOrder(Order):
    """Position p lies in block b = p // block, whose slots a permutation of (seed, b) deals to the parts.

    The j-th slot of a part in block b takes place b * share + j of that part's own order.
    """

    def __init__(self, sizes: list[int], shares: list[int], seed: int) -> None:
        super().__init__(sum(sizes), seed)
        self.block = sum(shares)
        self._shares = np.array(shares)
        self._starts = np.cumsum([0, *sizes])
        self._orders = [Order(size, 1_000_003 * seed + part) for part, size in enumerate(sizes)]
        self._owner = np.repeat(np.arange(len(shares)), shares)  # which part a dealt number belongs to
        self._first = np.cumsum([0, *shares])

    def positions(
        self, positions: Int[np.ndarray, "batch"]
    ) -> tuple[Int[np.ndarray, "batch"], Int[np.ndarray, "batch"]]:
        """Sample numbers and epochs at positions of the endless sequence."""
        blocks, slots = np.divmod(positions, self.block)
        dealt = np.empty_like(positions)
        for block in np.unique(blocks):
            here = blocks == block
            dealt[here] = permutation(self.block, self.seed, int(block))[slots[here]]
        owner = self._owner[dealt]
        places = blocks * self._shares[owner] + dealt - self._first[owner]
        ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for part, order in enumerate(self._orders):
            here = owner == part
            ids[here], epochs[here] = order.positions(places[here])
            ids[here] += self._starts[part]
        return ids, epochs


@dataclass(frozen=True)
class MixtureCorpus:
    """`parts`: fractions of tokens by name: builtin/docs, builtin/code, wikitext, tinystories, or any data.path.

    None stands for 0.9 of builtin/docs and 0.1 of builtin/code (a mapping in YAML would be merged with that of the
    command line). The tokenizer is one for all parts; bpe is trained on all of them. `max_bytes` is of each part.
    """

    parts: Mapping[str, float] | None = None
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    max_bytes: int | float | str | None = None

    def fractions(self) -> dict[str, float]:
        return {"builtin/docs": 0.9, "builtin/code": 0.1} if self.parts is None else dict(self.parts)

    def sources(self) -> list[Source]:
        """The source of each part. Raises ValueError for two parts of one name."""
        sources = [self._source(name) for name in self.fractions()]
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise ValueError(f"data.parts: two parts are called alike: {', '.join(names)}")
        return sources

    def _source(self, part: str) -> Source:
        if part in (f"builtin/{domain}" for domain in get_args(Domain) if domain != "all"):
            domain: Domain = "docs" if part == "builtin/docs" else "code"
            return Builtin(domain, self.tokenizer, None, self.max_bytes).sources()[0]
        if part == "builtin" or part.startswith("builtin/"):
            raise ValueError(f"data.parts: {part} is not one of builtin/docs, builtin/code")
        if part == "wikitext":
            return Text("Salesforce/wikitext", "wikitext-2-v1", rows="stream", max_bytes=self.max_bytes).source()
        path = "roneneldan/TinyStories" if part == "tinystories" else part
        return Text(path, max_bytes=self.max_bytes).source()

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Raises ValueError for an unknown part, and for fractions that do not sum to 1."""
        fractions = self.fractions()
        if not fractions:
            raise ValueError("data.parts is empty: write data.parts={builtin/docs:0.9,builtin/code:0.1}")
        config = "+".join(f"{name}:{fraction:g}" for name, fraction in fractions.items())

        def blend(windows: list[Samples]) -> Samples:
            return Mixture(windows, list(fractions.values()))

        sources = self.sources()
        return prepare("mixture", config, sources, self.tokenizer, self.vocab_size, context, cache, blend)


@dataclass(frozen=True)
class Repeated:
    """`data` with `unique` of its training tokens alone (null: all of them); a longer budget reads them again.

    Every epoch has the same windows, so nothing else is ever read. `max_bytes` is handed to `data`, where set.
    """

    data: Any
    unique: int | float | str | None = None
    max_bytes: int | float | str | None = None

    def prepare(self, context: int, cache: Path | None = None) -> Any:
        """Raises ValueError when the data set has fewer tokens."""
        data = self.data if self.max_bytes is None else replace(self.data, max_bytes=self.max_bytes)
        corpus = data.prepare(context, cache)
        if self.unique is None:
            return corpus
        count = max(1, round(quantity(self.unique)) // context)
        if count > len(corpus.train):
            raise ValueError(
                f"data.unique={self.unique} is more than {corpus.name} has: {corpus.train.num_tokens:,} training tokens"
            )
        name = digest([corpus.hash, "spread", count * context])
        return replace(corpus, train=Spread(corpus.train, count), config=f"{corpus.config}, {count} spread", hash=name)


class Spread(Samples):
    """`count` samples of others, at equal distances; the same in every epoch."""

    def __init__(self, samples: Samples, count: int) -> None:
        self.samples, self.count = samples, count
        self.num_tokens = samples.num_tokens * count // len(samples)
        self.num_bytes = samples.num_bytes * count // len(samples)

    def __len__(self) -> int:
        return self.count

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        batch = self.samples.gather(np.asarray(index, np.int64) * len(self.samples) // self.count)
        if batch.samples is None:
            return batch
        return replace(batch, samples=batch.samples + epoch * len(self.samples))  # read again, but masked anew
