"""A stream has the windows of prepared text, goes on where it was left, and holds a bounded part of the text."""

from __future__ import annotations

import gzip
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import wait_for
from streamed_text import DOCUMENTS, folder, lines, shards, small, tokens, windows

from kleiber.data.batches import stream
from kleiber.data.blocks import cut_file
from kleiber.data.streaming import Place, read_ahead
from kleiber.data.text import Text

pytestmark = pytest.mark.usefixtures("small")
__all__ = ["folder", "shards", "small"]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.slow
def test_an_epoch_has_the_batches_of_prepared_text(folder: Path, cache: Path) -> None:
    options = {"separator": ["<|endoftext|>", "<|endoftext|>"], "splits": "files"}
    prepared = Text(str(folder), **options).prepare(64)  # type: ignore[arg-type]
    count = len(prepared.train)
    streamed = Text(str(folder), streaming=True, shuffle_buffer=64 * count, **options).prepare(64)  # type: ignore[arg-type]
    steps = count // 8
    assert same(tokens(stream(prepared.train, 3, 0, 8), steps), tokens(stream(streamed.train, 3, 0, 8), steps))
    (in_order,) = tokens(stream(windows(folder, shuffle_buffer=1, **options), 3, 0, count), 1)
    assert torch.equal(in_order, prepared.train.gather(np.arange(count)).tokens)
    (a,), (b,) = prepared.validation.values(), streamed.validation.values()
    assert (np.asarray(a.file.ids) == np.asarray(b.file.ids)).all()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_bytes": 5000}])
def test_a_stream_goes_on_anywhere_and_on_any_number_of_ranks(
    shards: Path, cache: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"shuffle_buffer": 1500}
    train = windows(shards, **options)
    states, whole = [], []
    for batch in itertools.islice(stream(train, 3, 0, 12), 75):  # more than two epochs
        states.append(train.state())
        whole.append(batch.tokens)
    assert states[-1]["place"]["epoch"] >= 2 and states[-1]["num_tokens"] == train.num_tokens < 30_000
    for rank, rows in ((0, slice(0, 6)), (1, slice(6, 12))):
        parts = tokens(stream(windows(shards, **options), 3, 0, 12, rank, 2), 75)
        assert same([batch[rows] for batch in whole], parts)
    begun = []
    first = windows(shards, **options)
    blocks = type(first.text).blocks
    monkeypatch.setattr(
        "kleiber.data.streaming.StreamedText.blocks", lambda *args: begun.append(args[2]) or blocks(*args)
    )
    for step in (1, 30, 60):
        for state in (states[step - 1], {}, states[-1], {**states[step - 1], "seed": 4}):
            resumed = windows(shards, **options)
            resumed.saved = state
            assert same(whole[step : step + 9], tokens(stream(resumed, 3, step, 12), 9)), (step, state)
    read_on = [place != Place() for place in begun]
    assert read_on[4::4] == [True, True], "a state that fits saves reading the text again"
    assert not any(read_on[1::4]) and not any(read_on[3::4])


@pytest.mark.slow
def test_every_epoch_reads_every_document_once_in_an_order_of_its_own(shards: Path, cache: Path) -> None:
    train = windows(shards, context=32, shuffle_buffer=1)
    text = train.text
    orders = {tuple(text.order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4 and all(sorted(order) == list(range(7)) for order in orders)
    list(itertools.islice(stream(train, 0, 0, 25), 50))
    epoch = train.num_tokens // 32
    (rows,) = tokens(stream(windows(shards, 32, shuffle_buffer=1), 0, 0, epoch), 1)
    read = Counter(
        text.tokenizer.decode(rows[:, :-1].flatten().tolist()).replace("document", "\ndocument").split("\n")[1:-1]
    )
    assert not read - Counter(DOCUMENTS) and sum(read.values()) >= len(DOCUMENTS) - 1


def test_limited_text_is_that_of_prepared_text(shards: Path, cache: Path) -> None:
    train = windows(shards, max_bytes=5000, shuffle_buffer=1)
    prepared = Text(str(shards), max_bytes=5000, splits="files").prepare(64)
    count = len(prepared.train)
    assert same(tokens(stream(train, 0, 0, count), 1), [prepared.train.gather(np.arange(count)).tokens])


def test_an_epoch_that_has_ended_opens_no_further_file(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "kleiber.data.streaming.cut_file", lambda path, columns: opened.append(path) or cut_file(path, columns)
    )
    text, ended = windows(shards, max_bytes=5000).text, set[int]()
    blocks = text.blocks(0, Place(), ended)
    assert next(blocks)[0] == Place() and len(opened) == 1
    ended.add(0)
    assert next(blocks)[0] == Place(1) and opened == [text.paths[0]] * 2


def test_training_files_without_any_block_are_refused(tmp_path: Path, cache: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines(DOCUMENTS[:20])))
    train = windows(tmp_path)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ValueError, match="the training split has no text"):
        next(train.text.blocks(0, Place(), set()))
    with pytest.raises(ValueError, match="the training split has no text"):
        next(stream(train, 0, 0, 8))


def test_what_is_in_memory_does_not_grow_with_the_text(tmp_path: Path, cache: Path) -> None:
    """A file of 4 MB in blocks of 1 kB, of which a stream holds three buffers and what it reads ahead."""
    line = lines(["x" * 400])
    (tmp_path / "train.jsonl").write_bytes(line * 10_000)
    (tmp_path / "validation.jsonl").write_bytes(line)
    train = windows(tmp_path, context=50, shuffle_buffer=10_000)
    held = []
    for _ in itertools.islice(stream(train, 0, 0, 16), 100):
        assert train._stream is not None
        held.append(sum(map(len, train._stream.parts)))
    assert max(held) < 3 * 10_000 + 16 * 50 + 2 * 2000


def test_items_are_read_ahead_and_the_reader_ends() -> None:
    taken: list[int] = []

    def numbers(limit: int) -> Iterator[int]:
        for i in range(limit):
            taken.append(i)
            yield i
        raise OSError("the disk is gone")

    some = read_ahead(numbers(10**9), 3)  # type: ignore[arg-type]
    assert [next(some), next(some)] == [0, 1]
    wait_for(lambda: len(taken) >= 6)
    time.sleep(0.01)
    assert len(taken) == 6, "two that were asked for, three that wait, and one in hand"
    some.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "reads text" for thread in threading.enumerate())
    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(numbers(5), 3))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_closed_iterator_leaves_its_place_and_nothing_that_reads(shards: Path, cache: Path) -> None:
    train, resumed = (windows(shards, shuffle_buffer=1500) for _ in range(2))
    batches = train.batches(3, 0, 12, 0, 1)
    whole = tokens(batches, 30)
    resumed.saved = state = train.state()
    batches.close()
    assert train._stream is None and not any(thread.name == "reads text" for thread in threading.enumerate())
    assert train.state() == state and state["place"] != asdict(Place())
    assert same(tokens(train.batches(3, 30, 12, 0, 1), 9), tokens(resumed.batches(3, 30, 12, 0, 1), 9))
    first, later = (train.batches(3, 0, 12, 0, 1) for _ in range(2))
    assert same(tokens(first, 30), whole) and same(tokens(later, 1), whole[:1])
    first.close()
    assert train._stream is not None, "that of the later iterator"
    later.close()
