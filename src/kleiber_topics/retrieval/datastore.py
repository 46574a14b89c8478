"""The text of a datastore: which windows of it are read, in nested sizes, without those of the evaluated text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt64

from kleiber.config import quantity
from kleiber.data import ConcatSamples, open_training_text
from kleiber.evals import Subject
from kleiber.nn import target_weights
from kleiber.records import activity
from kleiber.types import Batch, Samples, Tokenizer
from kleiber_topics.retrieval.scoring import ScoredRow

READ = 256  # windows at once
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash of token ids

Hashes = UInt64[np.ndarray, "_"]
Ids = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Window:
    """Consecutive token ids of a text, of which each but the first may be predicted from those before it.

    number  of the sample that it comes from
    """

    ids: Ids
    number: int


@dataclass(frozen=True)
class StoreText:
    """Windows of a datastore, in nested sizes: a store of size i has the first ends[i] windows.

    windows   in the order of the text within each size
    sizes     tokens that were asked for, which a short text does not have
    ends      number of windows of each size
    left_out  number of windows that were left out because they overlap with the evaluated text
    shared    the n-grams of the evaluated text that the store text has too, as sorted hashes
    """

    windows: Sequence[Window]
    sizes: Sequence[int]
    ends: Sequence[int]
    left_out: int
    shared: Hashes

    def tokens(self, size: int) -> int:
        """Number of entries (predicted tokens) of the store of this place in `sizes`."""
        return sum(len(window.ids) - 1 for window in self.windows[: self.ends[size]])


def store_samples(subject: Subject, names: Sequence[str] | None, context: int) -> Samples:
    """The text of a datastore: names or paths, or the training samples of the run for None.

    Raises ValueError for a model without training samples where there is no name, and for text that cannot be read.
    """
    if names is None:
        if subject.train is None or not len(subject.train):
            raise ValueError(
                "evals.retrieval.store=null is the training text of the run, and this model has none: name text, such "
                "as evals.retrieval.store=[builtin/docs]"
            )
        return subject.train
    parts: list[Samples] = []
    for name in names:
        try:
            parts += open_training_text(name, subject.tokenizer, context)
        except ValueError as error:
            raise ValueError(str(error).replace("data.path=", "evals.retrieval.store ", 1)) from error
    return parts[0] if len(parts) == 1 else ConcatSamples(parts)


def cut_windows(batch: Batch, numbers: Sequence[int]) -> Iterator[tuple[Window, Bool[np.ndarray, "_"]]]:
    """The windows of a batch without padding, one for each segment of a row, and which of their tokens are targets.

    numbers  of the samples
    """
    weights = target_weights(batch)
    tokens = batch.tokens.numpy()
    targets = np.ones_like(tokens[:, 1:], dtype=bool) if weights is None else weights.numpy() > 0
    real = np.ones_like(tokens, dtype=bool) if batch.real is None else batch.real.numpy()
    for row, number in enumerate(numbers):
        segments = np.zeros(tokens.shape[1], np.int64) if batch.segments is None else batch.segments[row].numpy()
        for segment in np.unique(segments[real[row]]):
            place = np.flatnonzero(real[row] & (segments == segment))
            if len(place) > 1:
                scored = np.concatenate([[False], targets[row, place[1:] - 1]])
                yield Window(tokens[row, place], number), scored


def choose_windows(
    samples: Samples, sizes: Sequence[int], length: int | None, evaluated: Hashes, exclude: bool, seed: int = 0
) -> StoreText:
    """Draws samples in random order until they have as many targets as the largest size; the same for the same seed.

    length     number of consecutive tokens that count as an overlap; None looks for none
    evaluated  sorted hashes of the n-grams of that length in the evaluated text (see `n_gram_hashes`)
    exclude    whether windows that overlap are left out

    Raises ValueError where nothing is left.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    kept: list[list[Window]] = [[]]
    tokens, left_out, shared = 0, 0, [np.empty(0, np.uint64)]
    with activity("reading the text of the datastore", min(sizes[-1], samples.num_tokens), "tokens") as work:
        for start in range(0, len(order), READ):
            numbers = order[start : start + READ]
            for window, _ in cut_windows(samples.gather(numbers), numbers.tolist()):
                common = evaluated[:0] if length is None else overlap(n_gram_hashes(window.ids, length), evaluated)
                shared.append(common)
                if exclude and len(common):
                    left_out += 1
                    continue
                if tokens >= sizes[len(kept) - 1]:
                    if len(kept) == len(sizes):
                        break
                    kept.append([])
                kept[-1].append(window)
                tokens += len(window.ids) - 1
            work.done = tokens
            if tokens >= sizes[-1]:
                break
    ordered = [sorted(part, key=lambda window: window.number) for part in kept]
    windows = [window for part in ordered for window in part]
    if not windows:
        raise ValueError(
            "evals.retrieval.store has no text but that of the evaluated data: name other text, or set "
            "evals.retrieval.exclude_overlap=null"
        )
    ends = np.cumsum([len(part) for part in ordered]).tolist()
    return StoreText(windows, list(sizes[: len(ends)]), ends, left_out, np.unique(np.concatenate(shared)))


def read_sizes(sizes: Sequence[int | float | str]) -> list[int]:
    """Sizes in tokens, from quantities such as 64K. Raises ValueError where they do not ascend."""
    numbers = [round(quantity(size)) for size in sizes]
    if not numbers or sorted(set(numbers)) != numbers:
        raise ValueError(
            f"evals.retrieval.sizes={list(sizes)} must be at least one number of tokens, in ascending order"
        )
    return numbers


def n_gram_hashes(ids: Ids, length: int) -> Hashes:
    """A hash of each `length` consecutive token ids; empty for a text of fewer."""
    tokens = ids.astype(np.uint64) + np.uint64(1)
    if len(tokens) < length:
        return tokens[:0]
    hashes = np.zeros(len(tokens) - length + 1, np.uint64)
    for i in range(length):
        hashes = hashes * FACTOR + tokens[i : i + len(hashes)]
    return hashes


def overlap(hashes: Hashes, evaluated: Hashes) -> Hashes:
    """The hashes that stand among those of the evaluated text, which are sorted."""
    if not len(evaluated):
        return hashes[:0]
    place = np.minimum(np.searchsorted(evaluated, hashes), len(evaluated) - 1)
    return hashes[evaluated[place] == hashes]


def evaluated_hashes(rows: Sequence[ScoredRow], length: int) -> Hashes:
    """Sorted hashes of the n-grams of evaluated rows."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(n_gram_hashes(row.ids, length) for row in rows)]))


@dataclass(frozen=True)
class Chunks:
    """Pieces of the documents of a datastore, in nested sizes as those of its windows.

    ids   token ids of each chunk
    ends  number of chunks of each size
    """

    ids: Sequence[Ids]
    ends: Sequence[int]


def cut_chunks(store: StoreText, tokenizer: Tokenizer, length: int) -> Chunks:
    """Cuts the documents of a store, which separator tokens stand between, into chunks of at most `length` tokens.

    Windows that follow one another in the text are joined first.
    """
    separators = [tokenizer.eos, *tokenizer.separator.ids]
    chunks: list[Ids] = []
    ends, start = [], 0
    for end in store.ends:
        for text in _joined(store.windows[start:end]):
            breaks = np.flatnonzero(np.isin(text, separators))
            for document in np.split(text, breaks):
                content = document[~np.isin(document, separators)]
                chunks += [content[at : at + length] for at in range(0, len(content), length)]
        ends.append(len(chunks))
        start = end
    return Chunks(chunks, ends)


def _joined(windows: Sequence[Window]) -> Iterator[Ids]:
    """The texts of windows: those that begin with the last token of the sample before them continue its text."""
    text: list[Ids] = []
    last: Window | None = None
    for window in windows:
        follows = last is not None and window.number == last.number + 1 and window.ids[0] == last.ids[-1]
        if not follows and text:
            yield np.concatenate(text)
            text = []
        text.append(window.ids[1:] if follows else window.ids)
        last = window
    if text:
        yield np.concatenate(text)
