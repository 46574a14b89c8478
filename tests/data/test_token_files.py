"""Windows: which target stands where, how often, and how many bytes it stands for."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from kleiber.data.batches import evaluation_batches
from kleiber.data.sources import SourceText
from kleiber.data.token_files import (
    AT_ONCE,
    CachedSource,
    TokenFile,
    TrainWindows,
    ValidationWindows,
    id_dtype,
    read_rows,
    token_files,
    write_rows,
)
from kleiber.data.tokenizers import Bytes

TEXT = "Ångström weighed 3 elephants, 你好 and a mouse. " * 7


def token_file(text: str = TEXT) -> TokenFile:
    raw = text.encode()
    ids = np.array([256, *raw], np.uint16)
    return TokenFile(ids, len(raw), len(raw), "x")


@pytest.mark.parametrize("context", [1, 7, 16, 64, 1000])
def test_validation_holds_every_target_once(context: int) -> None:
    samples = ValidationWindows(token_file(), context, Bytes())
    targets: list[int] = []
    for batch in evaluation_batches(samples, rows=3):
        assert batch.tokens.shape[1] == context + 1
        real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.weights is None else batch.weights > 0
        targets += batch.tokens[:, 1:][real[:, 1:]].tolist()
    assert bytes(targets).decode() == TEXT
    assert samples.num_tokens == samples.num_bytes == len(TEXT.encode())


def test_the_first_targets_are_a_prefix_with_their_own_bytes() -> None:
    samples = ValidationWindows(token_file(), 16, Bytes())
    few = samples.first(40)
    assert (few.num_tokens, few.num_bytes, len(few)) == (32, 32, 2)
    everything = torch.cat([batch.tokens for batch in evaluation_batches(samples, 100)])
    assert torch.equal(torch.cat([b.tokens for b in evaluation_batches(samples, 100, tokens=40)]), everything[:2])
    assert samples.first(None) is samples
    assert len(samples.first(1)) == 1


def test_the_bytes_of_many_tokens_are_counted_in_pieces() -> None:
    size = 3 * AT_ONCE + 7
    file = TokenFile(np.full(size, 97, np.uint16), size, size, "x")
    tokenizer = Bytes().with_separator("none")
    tracemalloc.start()
    samples = ValidationWindows(file, 64, tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples.num_bytes == size - 1 and samples.first(2 * AT_ONCE).num_bytes == 2 * AT_ONCE
    assert peak < 2 * 8 * AT_ONCE


def test_padding_is_neither_real_nor_a_target() -> None:
    samples = ValidationWindows(token_file("abc"), 5, Bytes())
    batch = samples.gather(np.array([0]))
    assert batch.tokens.tolist() == [[256, 97, 98, 99, 256, 256]]
    assert batch.weights is not None and batch.weights.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert batch.real is not None and batch.real.tolist() == [[True] * 4 + [False] * 2]


def test_training_windows_move_between_epochs_and_stay_inside() -> None:
    file = TokenFile(np.arange(100, dtype=np.uint16), 99, 99, "x")
    samples = TrainWindows(file, 8)
    assert len(samples) == 12
    index = np.arange(12)
    first = samples.gather(index, 0).tokens
    assert first[:, 0].tolist() == list(range(0, 96, 8))
    starts = {samples.gather(index, epoch).tokens[0, 0].item() for epoch in range(8)}
    assert len(starts) >= 5
    for epoch in range(50):
        tokens = samples.gather(index, epoch).tokens
        assert (tokens[:, 1:] - tokens[:, :-1] == 1).all()
    assert samples.gather(index, 2).samples.tolist() == list(range(24, 36))  # pyright: ignore[reportOptionalMemberAccess]


def test_a_text_shorter_than_a_window_is_refused_with_the_largest_context() -> None:
    with pytest.raises(ValueError, match=r"4 tokens.*model\.context=512.*model\.context=3"):
        TrainWindows(token_file("abc"), 512)
    assert len(TrainWindows(token_file("abc"), 3)) == 1


class Letters:
    """A source of two splits that counts how often it is read."""

    name, read = "letters", 0

    def identity(self) -> dict[str, str]:
        return {"letters": "abc"}

    @contextmanager
    def open_text(self, root: Path) -> Iterator[SourceText]:
        self.read += 1
        yield SourceText({"train": [["ab", "c"], ["é"]], "validation": [["d"]]}, {"config": "small"})


def test_a_token_file_holds_an_end_of_text_before_every_document_and_is_written_once(tmp_path: Path) -> None:
    source = Letters()
    for _ in range(2):
        files, manifest = token_files(source, Bytes(), tmp_path)
        assert files["train"].ids.tolist() == [256, *b"abc", 256, *"é".encode()]
        assert (files["train"].num_bytes, files["validation"].num_bytes, len(files["test"].ids)) == (5, 1, 0)
        assert manifest["config"] == "small" and manifest["splits"]["train"]["documents"] == 2
    assert source.read == 1


def test_a_cached_source_is_read_from_its_token_file_of_bytes(tmp_path: Path) -> None:
    source = Letters()
    for _ in range(2):
        with CachedSource(source).open_text(tmp_path) as text:
            assert [["".join(document) for document in text.documents[name]] for name in ("train", "validation")] == [
                ["abc", "é"],
                ["d"],
            ]
            assert text.notes == {"config": "small"}
    assert source.read == 1 and CachedSource(source).identity() == source.identity()


def test_ids_outside_a_vocabulary_are_refused(tmp_path: Path) -> None:
    small = Bytes()
    small.vocab_size = 100
    with pytest.raises(ValueError, match="99"):
        token_files(Letters(), small, tmp_path)


@pytest.mark.parametrize(("size", "bits"), [(272, 16), (1 << 16, 16), ((1 << 16) + 1, 32)])
def test_the_narrowest_type_that_holds_every_id(size: int, bits: int) -> None:
    assert id_dtype(size).itemsize * 8 == bits
    with pytest.raises(ValueError, match="vocab_size=4294967297"):
        id_dtype((1 << 32) + 1)


@pytest.mark.parametrize("rows", [[[1, 2, 3], [], [70000], [5]], [[]], []])
def test_rows_of_unequal_length_are_read_as_they_were_written(tmp_path: Path, rows: list[list[int]]) -> None:
    write_rows(tmp_path / "rows", (np.array(row, np.int64) for row in rows), np.dtype(np.uint32))
    stored = read_rows(tmp_path / "rows", np.dtype(np.uint32))
    assert [stored[i].tolist() for i in range(len(stored))] == rows
    assert stored.lengths.tolist() == [len(row) for row in rows]
