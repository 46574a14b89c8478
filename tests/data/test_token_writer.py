"""Token files whose writer was killed are continued, and become those of an unbroken call."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleiber.config.errors import ConfigError
from kleiber.data import token_writer as module
from kleiber.data.cache import cached_folder, journal_of
from kleiber.data.text import Text
from kleiber.data.token_writer import write_tokens
from kleiber.data.tokenizers import BPE, Bytes
from kleiber.types.tokenizer import Separator, Tokenizer

DTYPE = np.dtype(np.uint16)
KILLED = """
import sys, time
from kleiber.data.text import Text
from kleiber.data.tokenizers import Bytes
encode, calls = Bytes.encode_many, []
def slow(self, texts):
    calls.append(1)
    print("batch", flush=True)
    time.sleep(60 if len(calls) == int(sys.argv[2]) else 0)
    return encode(self, texts)
Bytes.encode_many = slow
Text(sys.argv[1]).prepare(16)
"""


def documents() -> list[list[str]]:
    pick = random.Random(0)
    return [["word and é " * pick.randint(0, 30), "more\n" * pick.randint(0, 30)] for _ in range(200)]


class Interrupted(Bytes):
    """Bytes with a token after every document, whose process is interrupted at the batch `stop`."""

    _separator = Separator(Bytes.eos, Bytes.mask)

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.batches = stop, 0

    def encode_many(self, texts: list[str]) -> list[Any]:
        self.batches += 1
        if self.batches == self.stop:
            raise KeyboardInterrupt
        return super().encode_many(texts)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 2000)


@pytest.mark.parametrize("stops", [[1], [2], [7], [3, 3, 3], [100]])
def test_an_interrupted_file_is_continued_and_equal(small_batches: None, tmp_path: Path, stops: list[int]) -> None:
    whole = Interrupted()
    counts = write_tokens(tmp_path / "whole.bin", documents(), whole, DTYPE)
    path = tmp_path / "train.bin"
    for stop in stops:
        if stop < whole.batches:
            with pytest.raises(KeyboardInterrupt):
                write_tokens(path, documents(), Interrupted(stop), DTYPE)
    last = Interrupted()
    assert write_tokens(path, documents(), last, DTYPE) == counts
    assert path.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    done = sum(stop - 1 for stop in stops if stop < whole.batches)
    assert last.batches == whole.batches - done


def cut_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [cut_file, flip_byte, lambda path: journal_of(path).write_text("{}[\0\n")])
def test_a_file_that_does_not_match_its_journal_begins_anew(small_batches: None, tmp_path: Path, damage: Any) -> None:
    write_tokens(tmp_path / "whole.bin", documents(), Bytes(), DTYPE)
    path = tmp_path / "train.bin"
    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, documents(), Interrupted(5), DTYPE)
    damage(path)
    whole = Interrupted()
    write_tokens(path, documents(), whole, DTYPE)
    write_tokens(tmp_path / "again.bin", documents(), Interrupted(), DTYPE)
    assert path.read_bytes() == (tmp_path / "again.bin").read_bytes()


def test_a_last_line_of_the_journal_that_is_cut_is_not_read(small_batches: None, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, documents(), Interrupted(5), DTYPE)
    journal = journal_of(path)
    whole = journal.read_text()
    journal.write_text(whole + whole.splitlines()[-1][:40])
    path.write_bytes(path.read_bytes() + b"of a batch that was not recorded")
    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, documents(), Interrupted(2), DTYPE)
    assert [json.loads(line)["batches"] for line in journal.read_text().splitlines()] == [4, 5]
    write_tokens(path, documents(), Interrupted(), DTYPE)
    write_tokens(tmp_path / "whole.bin", documents(), Interrupted(), DTYPE)
    assert path.read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_other_documents_than_before_are_refused(small_batches: None, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "train.bin", documents(), Interrupted(5), DTYPE)
    with pytest.raises(ConfigError, match=r"train\.bin"):
        write_tokens(tmp_path / "train.bin", [["other"], *documents()], Bytes(), DTYPE)


def test_an_id_outside_of_the_vocabulary_is_named(tmp_path: Path, bpe: BPE) -> None:
    class Wrong(Bytes):
        def encode_many(self, texts: list[str]) -> list[Any]:
            return [np.array([400])] * len(texts)

    with pytest.raises(ValueError, match=r"id 400.*271"):
        write_tokens(tmp_path / "train.bin", [["a"]], Wrong(), DTYPE)


def test_an_interrupted_folder_of_the_cache_is_continued(small_batches: None, tmp_path: Path) -> None:
    def folder(tokenizer: Tokenizer, root: str) -> tuple[Path, dict[str, Any]]:
        def build(part: Path) -> dict[str, Any]:
            write_tokens(part / "train.bin", documents(), tokenizer, DTYPE)
            return {}

        (tmp_path / root).mkdir(exist_ok=True)
        return cached_folder(tmp_path / root, "name", {"of": "a test"}, build)

    def files(folder: Path) -> Iterator[tuple[str, bytes]]:
        return ((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))

    with pytest.raises(KeyboardInterrupt):
        folder(Interrupted(5), "killed")
    (part,) = (tmp_path / "killed").glob(".*.part")
    (part / "stale").mkdir()
    (part / "manifest.json").write_text("{}")
    last, whole = Interrupted(), Interrupted()
    assert list(files(folder(last, "killed")[0])) == list(files(folder(whole, "unbroken")[0]))
    assert last.batches == whole.batches - 4 and not list((tmp_path / "killed").glob(".*.part"))


@pytest.mark.process
@pytest.mark.slow
def test_sigkill_while_tokenizing_loses_one_batch(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word and text\n" * 500_000)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(text), "5"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == "batch\n"
    process.kill()
    process.communicate()
    batches: list[int] = []
    encode = Bytes.encode_many
    monkeypatch.setattr(Bytes, "encode_many", lambda self, texts: batches.append(1) or encode(self, texts))
    continued = Text(str(text)).prepare(16)
    count = len(batches)
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "another"))
    assert Text(str(text)).prepare(16).hash == continued.hash
    assert len(batches) - count == count + 4
    assert not [path for path in cache.iterdir() if path.suffix == ".part" or path.name.startswith(".datasets")]
