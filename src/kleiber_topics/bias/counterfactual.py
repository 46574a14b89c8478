"""Counterfactual text: training text in which the words of two groups are swapped, and pairs of texts with and without.

The words, and how a text is swapped, are those of `word_swap`. Held-out text stays as it is, so losses can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from kleiber.config import Quantity
from kleiber.data import (
    Builtin,
    Document,
    MixtureCorpus,
    Source,
    SourceText,
    Text,
    TextCorpus,
    TextData,
    TokenRows,
    cache_root,
    cached_folder,
    concatenate,
    digest,
    id_dtype,
    pad,
    prepare,
    read_rows,
    sample_numbers,
    splitmix64,
    write_rows,
)
from kleiber.types import Batch, DataPath, Json, Samples, Seed, Share, Tokenizer, VocabSize
from kleiber_topics.bias.occupations import Occupations
from kleiber_topics.bias.word_lists import read_pairs
from kleiber_topics.bias.word_swap import WordSwap

FORMAT = 1  # of the swapped text: raise it when the rules of `word_swap` change
MOST_PAIRS = 20_000
CHARACTERS = 8  # of a document that are encoded for each token of a pair
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
ReadableText = Text | Builtin | MixtureCorpus | Occupations


@dataclass(frozen=True)
class Counterfactual:
    """The text of `data`, with counterfactuals among its training documents.

    data        text of documents: data=text, builtin, mixture or occupations
    method      "augment": a share of the documents that have words of the lists are added once more, swapped (Lu et al.
                2018, arXiv:1807.11714); "substitute": they are swapped in place, so that the text does not grow (Hall
                Maudslay et al. 2019, arXiv:1909.00871)
    share       of these documents; null: all of them are added, or half of them substituted, after which the groups
                have the same contexts. 0 leaves the text as it is, for its pairs alone (objective=equalized)
    words       pairs of words: `gender`, or a file with a pair a line. The pronouns are part of `gender`
    names       whether given names are swapped as well, each with one that is about as frequent (Hall Maudslay et al.)
    seed        of the choice of documents
    tokenizer, vocab_size, separator, max_bytes  replace those of `data`; null: leave them as they are. max_bytes is of
                the text before swapped documents are added
    """

    data: TextData
    method: Literal["augment", "substitute"] = "augment"
    share: Share | None = None
    words: DataPath = "gender"
    names: bool = True
    seed: Seed = 0
    tokenizer: str | None = None
    vocab_size: VocabSize | None = None
    separator: str | list[str] | None = None
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> CounterfactualCorpus:
        """Encodes the text that is not in the cache.

        Raises ValueError for `data` of another kind, one text without documents, and text without a word of the lists.
        """
        if self.method not in ("augment", "substitute"):
            raise ValueError(f"data.method={self.method} must be augment or substitute")
        text = with_settings(self.data, self.tokenizer, self.vocab_size, self.separator, self.max_bytes)
        default = 1.0 if self.method == "augment" else 0.5
        share = default if self.share is None else self.share
        swap, sources = word_swap(self.words, self.names), text_sources(text)
        words = digest([FORMAT, swap.words, swap.names, [*swap.ambiguous]])
        changed: list[Source] = [
            CounterfactualText(source, swap, words, self.method, share, self.seed) for source in sources
        ]
        combine = text.combine if isinstance(text, MixtureCorpus) else concatenate
        name = sources[0].name if len(sources) == 1 else "counterfactual"
        settings = (text.tokenizer, text.vocab_size, context, cache, combine, text.separator)
        corpus = prepare(name, f"{self.method} {share:g}", changed, *settings)
        if share and not any(manifest["swapped"] for manifest in corpus.manifest.values()):
            raise ValueError(f"data.words={self.words}: no document of {name} has a word of the list to swap")

        def pairs() -> TextPairs:
            return encode_pairs(sources, swap, words, corpus.tokenizer, context, cache_root(cache))

        corpus.hash = digest([corpus.hash, words])
        return CounterfactualCorpus(**vars(corpus), read_pairs=pairs)


@dataclass
class CounterfactualCorpus(TextCorpus):
    """Text with counterfactuals. `read_pairs` reads, or encodes, its pairs of texts with and without swapped words."""

    read_pairs: Callable[[], TextPairs] = field(kw_only=True)


def word_swap(words: str, names: bool) -> WordSwap:
    """The swap of a list of pairs; the list `gender` has the pronouns too. Raises ValueError, naming data.words."""
    return WordSwap(
        read_pairs(words, "data.words"), read_pairs("names", "data.names") if names else (), words == "gender"
    )


def with_settings(
    data: TextData,
    tokenizer: str | None,
    vocab_size: int | None,
    separator: str | list[str] | None,
    max_bytes: Quantity | None,
) -> ReadableText:
    """The settings of a text with those that are not None in place of its own. Raises ValueError for other data."""
    if not isinstance(data, ReadableText):
        raise ValueError(
            f"data.data is {type(data).__name__}, and must be text whose documents can be read: data=text, builtin, "
            "mixture or occupations"
        )
    if tokenizer is not None:
        data = replace(data, tokenizer=tokenizer, vocab_size=vocab_size)
    elif vocab_size is not None:
        data = replace(data, vocab_size=vocab_size)
    if separator is not None:
        data = replace(data, separator=separator)
    return data if max_bytes is None else replace(data, max_bytes=max_bytes)


def text_sources(text: ReadableText) -> list[Source]:
    """The sources of a text."""
    return [text.source()] if isinstance(text, Text) else text.sources()


@dataclass(frozen=True)
class CounterfactualText:
    """A source whose training documents are swapped, or added once more with swapped words.

    words  a hash of the lists of `swap`
    """

    source: Source
    swap: WordSwap
    words: str
    method: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        return self.source.name

    def identity(self) -> Json:
        settings = {"words": self.words, "method": self.method, "share": self.share, "seed": self.seed}
        return {"counterfactual": self.source.identity(), **settings}

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        """Opens the documents; the notes get the number of swapped ones while they are read."""
        with self.source.open_text(root) as text:
            notes: Json = {**text.notes, "swapped": 0}
            documents = {**text.documents, "train": self._changed(text.documents.get("train", ()), notes)}
            yield SourceText(documents, notes)

    def _changed(self, documents: Iterable[Document], notes: Json) -> Iterator[Document]:
        """Yields the documents; swapped ones that are added come last, far from those that they repeat."""
        key, added, number = np.uint64(self.seed % (1 << 64)), [], -1
        for number, document in enumerate(documents):
            text = "".join(document)
            swapped = self.swap.swap(text)
            drawn = float(splitmix64(np.array([number], np.uint64) ^ splitmix64(np.array([key])))[0]) / 2.0**64
            chosen = swapped != text and drawn < self.share
            notes["swapped"] += chosen
            if chosen and self.method == "augment":
                added.append(swapped)
            yield [swapped if chosen and self.method == "substitute" else text]
        if number == 0 and self.share:
            raise ValueError(
                f"{self.name} is one text without documents, which can only be swapped as a whole: set "
                "data.data.rows=documents, or use a table with a document a row"
            )
        yield from ([text] for text in added)


class TextPairs(Samples):
    """Beginnings of documents (even rows) with their counterfactuals (odd rows), each behind the begin token.

    Both sides end with the same sentence, if a sentence ends within a row.
    """

    sides, padded = 2, True

    def __init__(self, rows: TokenRows, context: int, tokenizer: Tokenizer) -> None:
        self.rows, self.context, self.tokenizer = rows, context, tokenizer
        self.num_tokens = int(rows.lengths.sum()) - len(rows)
        self.num_bytes = int(tokenizer.token_bytes[rows.flat].sum())

    def __len__(self) -> int:
        return len(self.rows) // 2

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """The pairs of these numbers; the counterfactuals are the counterparts."""
        batch = self._side(2 * index)
        batch.counterpart = self._side(2 * index + 1)
        batch.samples = sample_numbers(index, epoch, len(self))
        return batch

    def _side(self, numbers: Int[np.ndarray, "batch"]) -> Batch:
        rows = [self.rows[int(number)].astype(np.int64) for number in numbers]
        tokens, real = pad(rows, self.context + 1, self.tokenizer.eos, ahead=1)
        return Batch(tokens, real=real, weights=real.float())


def encode_pairs(
    sources: list[Source], swap: WordSwap, words: str, tokenizer: Tokenizer, context: int, root: Path
) -> TextPairs:
    """The pairs of the training documents of sources, from the cache or newly encoded.

    words  a hash of the lists of `swap`
    """
    dtype = id_dtype(tokenizer.vocab_size)
    identity = {
        "format": FORMAT, "pairs": [source.identity() for source in sources], "words": words, "context": context,
        "tokenizer": tokenizer.data_hash,
    }  # fmt: skip

    def build(folder: Path) -> Json:
        """Writes the rows; returns their number."""
        rows: list[Integer[np.ndarray, "_"]] = []
        for source in sources:
            with source.open_text(root) as text:
                for document in text.documents.get("train", ()):
                    rows += encode_pair("".join(document), swap, tokenizer, context)
                    if len(rows) >= 2 * MOST_PAIRS:
                        break
        write_rows(folder / "pairs", rows, dtype)
        return {"pairs": len(rows) // 2}

    folder, _ = cached_folder(root, "counterfactual-pairs", identity, build)
    return TextPairs(read_rows(folder / "pairs", dtype), context, tokenizer)


def encode_pair(text: str, swap: WordSwap, tokenizer: Tokenizer, context: int) -> list[Integer[np.ndarray, "_"]]:
    """The beginning of a text and its counterfactual as ids; none where no word of it is swapped."""
    start = text[: CHARACTERS * context]
    ids = tokenizer.encode(start)
    if len(ids) > context or len(start) < len(text):
        start = tokenizer.decode(ids[:context])
        ends = [match.end() for match in SENTENCE_END.finditer(start)]
        start = start[: ends[-1]] if ends else start
    swapped = swap.swap(start)
    if swapped == start:
        return []
    return [np.array([tokenizer.begin, *tokenizer.encode(side)[:context]]) for side in (start, swapped)]
