"""Text that is read, encoded and cut into windows while a model trains on it: no token file of it is written.

The files are read one after another, epoch after epoch, each epoch in an order that follows from the seed. A worker
process encodes their blocks, whose tokens follow one another without a gap, as in token files. Window i has the tokens
i * context to (i + 1) * context. The windows of a buffer are permuted, then those of the next one. So the windows of a
batch follow from the seed and the step alone, for any number of ranks, and what is in memory does not grow with the
text. Every rank encodes the whole text, because the tokens of a window are counted from its beginning.

A checkpoint keeps the place in the text of a block from which a resumed run reads on, and how many tokens precede it.
Without one that fits, the text is read again from its beginning, and gives the same windows.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int, Integer

from kleiber.config.model_size import available_cores
from kleiber.data.batches import sample_numbers
from kleiber.data.blocks import Rows, cut_file
from kleiber.data.order import Order, Permutation
from kleiber.data.parallel import map_in_workers
from kleiber.data.splits import HashSplit
from kleiber.data.token_files import Shards, id_dtype
from kleiber.data.token_writer import Encoder
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples
from kleiber.types.tokenizer import Tokenizer

Item = TypeVar("Item")

AHEAD = 4  # encoded blocks that wait for the training process
NO_TEXT = "the training split has no text: choose data with text in that split"
UNCOUNTED = 1 << 50  # stands for the tokens of a text whose end was not reached


@dataclass(frozen=True)
class Place:
    """A block of the text: the number of its file in the order of an epoch, and its number in the file."""

    epoch: int = 0
    file: int = 0
    block: int = 0


@dataclass(frozen=True)
class Point:
    """A block, and what precedes it in the stream.

    tokens       of the stream in front of the block
    epoch_start  those in front of its epoch
    left         bytes of text that the epoch may still have; None: all
    """

    place: Place
    tokens: int = 0
    epoch_start: int = 0
    left: int | None = None


@dataclass(frozen=True)
class Encode:
    """Encodes the training documents of a block; the others are held out."""

    encoder: Encoder

    def __call__(self, item: tuple[Place, Rows]) -> tuple[Place, bytes]:
        place, rows = item
        encoded = self.encoder(rows)
        return place, encoded["train"][0] if "train" in encoded else b""


@dataclass(frozen=True)
class StreamedText:
    """The training text of a stream.

    paths      files or URLs of JSON lines, Parquet or text
    split      says which documents are `train`
    key        changes with the text, the tokenizer and `max_bytes`
    max_bytes  at most that much text in an epoch, that of the first files; None: all files, in each epoch in another
               order
    """

    paths: Sequence[str]
    columns: tuple[str, ...]
    split: HashSplit
    tokenizer: Tokenizer
    key: str
    max_bytes: int | None = None

    def order(self, seed: int, epoch: int) -> list[int]:
        """Returns the numbers of the files in the order of an epoch."""
        numbers = np.arange(len(self.paths))
        return numbers.tolist() if self.max_bytes else Permutation(len(numbers), seed, epoch)(numbers).tolist()

    def blocks(self, seed: int, start: Place, ended: set[int]) -> Iterator[tuple[Place, Rows]]:
        """Yields the blocks of all epochs from a place on; an epoch in `ended` is left at once.

        Raises ValueError for files without any block.
        """
        for epoch in itertools.count(start.epoch):
            begin = start if epoch == start.epoch else Place(epoch)
            place = None
            for place, rows in self._epoch_blocks(seed, begin):
                yield place, replace(rows, split=self.split)
                if epoch in ended:
                    break  # before a further file is opened
            if place is None and begin == Place(epoch):
                raise ValueError(NO_TEXT)

    def _epoch_blocks(self, seed: int, start: Place) -> Iterator[tuple[Place, Rows]]:
        """Yields the blocks of an epoch from a place on."""
        for number, file in enumerate(self.order(seed, start.epoch)):
            if number < start.file:
                continue
            first = start.block if number == start.file else 0
            blocks = enumerate(cut_file(self.paths[file], self.columns))
            for block, rows in itertools.islice(blocks, first, None):
                yield Place(start.epoch, number, block), rows


class TokenStream:
    """The latest tokens of an endless stream of text.

    seed     of the order of files
    start    the point at which it begins
    workers  processes that encode
    """

    def __init__(self, text: StreamedText, seed: int, start: Point, workers: int) -> None:
        self.text, self.dtype = text, id_dtype(text.tokenizer.vocab_size)
        self.ended: set[int] = set()
        self.epoch_tokens: int | None = None
        function, blocks = Encode(Encoder(text.tokenizer, self.dtype)), text.blocks(seed, start.place, self.ended)
        self.encoded = read_ahead(map_in_workers(function, blocks, workers), AHEAD)
        self.next, self.points, self.parts = start, deque[Point](), deque[Integer[np.ndarray, "_"]]()
        self.in_front = 0 if text.tokenizer.separator.after is None else 1  # ids before the first document

    def extend(self, end: int) -> None:
        """Reads until the stream has `end` tokens. Raises ValueError for a text without documents."""
        while self.next.tokens < end:
            place, raw = next(self.encoded)
            point = replace(self.next, place=place)
            if place.epoch > self.next.place.epoch:
                self.epoch_tokens = point.tokens - point.epoch_start
                if not self.epoch_tokens:
                    raise ValueError(NO_TEXT)
                point = Point(place, point.tokens, point.tokens, self.text.max_bytes)
            ids, left = self._limit(np.frombuffer(raw, self.dtype), point)
            ids = ids if point.tokens else ids[self.in_front :]
            self.points.append(point)
            self.parts.append(ids)
            self.next = replace(point, tokens=point.tokens + len(ids), left=left)

    def _limit(self, ids: Integer[np.ndarray, "_"], point: Point) -> tuple[Integer[np.ndarray, "_"], int | None]:
        """Returns the ids of a block as far as its epoch may have them, and the bytes of text that are left then."""
        if point.left is None:
            return ids, None
        total = np.cumsum(self.text.tokenizer.token_bytes[ids])
        size = int(total[-1]) if len(total) else 0
        if size < point.left:
            return ids, point.left - size
        self.ended.add(point.place.epoch)
        return ids[: int(np.searchsorted(total, point.left, "right")) if point.left else 0], 0

    def drop(self, begin: int) -> None:
        """Forgets the blocks in front of that with the token `begin`."""
        while len(self.points) > 1 and self.points[1].tokens <= begin:
            self.points.popleft()
            self.parts.popleft()

    def windows(self, starts: Int[np.ndarray, "batch"], length: int) -> Integer[np.ndarray, "batch length"]:
        """Returns `length` tokens from each of these places of the stream on."""
        ids = Shards(list(self.parts))
        offsets = (starts - self.points[0].tokens).tolist()
        return np.stack([ids[offset : offset + length] for offset in offsets])


class StreamedWindows(Samples):
    """Windows of context + 1 ids of an endless stream, of which `buffer` tokens at a time are permuted.

    num_tokens is that of an epoch once its end was read, and before that a number above all that can be read.
    """

    random_access = False

    def __init__(self, text: StreamedText, context: int, buffer: int) -> None:
        self.text, self.context, self.group = text, context, max(1, buffer // context)
        self.num_tokens, self.num_bytes = UNCOUNTED // context * context, UNCOUNTED
        self.saved: Json = {}  # the state with which a stage was resumed
        self._stream: TokenStream | None = None
        self._seed = 0

    def __len__(self) -> int:
        return self.num_tokens // self.context

    def restore(self, state: Json) -> None:
        self.saved = state

    def batches(
        self, seed: int, start_step: int, batch_samples: int, rank: int, world: int
    ) -> Generator[Batch, None, None]:
        """Yields this rank's rows of the batch of each step, infinitely, starting at `start_step`.

        Once the iterator is closed, `state` returns the point that it had reached, and its tokens and workers are gone.
        """
        order = Order(self.group, seed)
        first, last = rank * batch_samples // world, (rank + 1) * batch_samples // world
        begin = (start_step * batch_samples + first) // self.group
        workers = max(1, available_cores() // (2 * world))
        self._seed = seed
        self._stream = stream = TokenStream(self.text, seed, self._start(begin), workers)
        try:
            for step in itertools.count(start_step):
                positions = np.arange(step * batch_samples + first, step * batch_samples + last)
                places, groups = order.samples_at(positions)
                # One group more than needed stays, since the training process may be a batch behind this iterator.
                stream.drop((int(groups[0]) - 1) * self.group * self.context)
                # The following group is read little by little, so that no step waits for all of it.
                stream.extend((int(positions[-1]) + 1 + self.group) * self.context + 1)
                self._count(stream.epoch_tokens)
                numbers = groups * self.group + places
                windows = stream.windows(numbers * self.context, self.context + 1)
                tokens = torch.from_numpy(windows.astype(np.int64))
                yield Batch(tokens=tokens, samples=sample_numbers(numbers, 0, 0))
        finally:
            if self._stream is stream:
                self.saved, self._stream = self.state(), None
            stream.encoded.close()

    def state(self) -> Json:
        """Returns the point from which a resumed run reads on."""
        if self._stream is None or not self._stream.points:
            return self.saved
        point = {**asdict(self._stream.points[0]), "seed": self._seed, "key": self.text.key}
        return {**point, "num_tokens": self.num_tokens}

    def _start(self, group: int) -> Point:
        """Returns the saved point if it is one of this stream in front of the tokens of `group`, else the beginning."""
        saved = self.saved
        if saved.get("key") != self.text.key:
            return Point(Place(), left=self.text.max_bytes)
        self._count(saved["num_tokens"])
        if saved["seed"] != self._seed or saved["tokens"] > group * self.group * self.context:
            return Point(Place(), left=self.text.max_bytes)
        return Point(Place(**saved["place"]), saved["tokens"], saved["epoch_start"], saved["left"])

    def _count(self, epoch_tokens: int | None) -> None:
        """Sets the number of tokens of an epoch where it is known."""
        if epoch_tokens is not None and epoch_tokens < UNCOUNTED // 2:
            self.num_tokens = max(1, epoch_tokens // self.context) * self.context


def read_ahead(items: Generator[Item, None, None], depth: int) -> Generator[Item, None, None]:
    """Yields the items, which a thread reads before they are asked for, `depth` at most. Raises their error."""
    ready: queue.Queue[Callable[[], Item]] = queue.Queue(depth)
    stopped = threading.Event()

    def read() -> None:
        """Puts the items, or the error that reading them raised, where the caller waits for them."""
        try:
            for item in items:
                ready.put(lambda item=item: item)
                if stopped.is_set():
                    return
            raise EOFError
        except BaseException as error:
            failure = error

            def fail() -> Item:
                raise failure

            ready.put(fail)
        finally:
            items.close()

    thread = threading.Thread(target=read, name="reads text", daemon=True)
    thread.start()
    try:
        while True:
            yield ready.get()()
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                ready.get(timeout=0.05)
