"""Token files whose writer was killed are continued, and become those of an unbroken call."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleiber.config.errors import ConfigError
from kleiber.data import sources
from kleiber.data import token_writer as module
from kleiber.data.cache import JOURNAL, cached_folder
from kleiber.data.sources import text_blocks
from kleiber.data.text import Text
from kleiber.data.token_files import Shards
from kleiber.data.token_writer import write_tokens
from kleiber.data.tokenizers import Bytes
from kleiber.types.tokenizer import Separator, Tokenizer

DTYPE = np.dtype(np.uint16)
KILLED = """
import sys, time
from kleiber.data import token_writer
token_writer.available_cores = lambda: 1
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
    """Bytes with a token after every document, which raise an error at the batch `stop`."""

    _separator = Separator(Bytes.eos, Bytes.mask)

    def __init__(self, stop: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.stop, self.error, self.batches = stop, error, 0

    def encode_many(self, texts: list[str]) -> list[Any]:
        self.batches += 1
        if self.batches == self.stop:
            raise self.error
        return super().encode_many(texts)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BATCH_CHARACTERS", 2000)
    monkeypatch.setattr(module, "available_cores", lambda: 1)  # `Interrupted` is in no module that a worker can import


def write(folder: Path, tokenizer: Tokenizer, texts: list[list[str]] | None = None) -> dict[str, int]:
    folder.mkdir(exist_ok=True)
    blocks = text_blocks({"train": documents() if texts is None else texts, "test": [["a"], ["b"]]})
    return write_tokens(folder, blocks, tokenizer, DTYPE)["train"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != JOURNAL}


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1 << 27, 3000])
@pytest.mark.parametrize("stops", [[1], [2], [7], [3, 3, 3], [100]])
def test_an_interrupted_file_is_continued_and_equal(
    small_batches: None, tmp_path: Path, stops: list[int], shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", shard)
    whole = Interrupted()
    counts = write(tmp_path / "whole", whole)
    for stop in stops:
        if stop < whole.batches:
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "killed", Interrupted(stop))
    last = Interrupted()
    assert write(tmp_path / "killed", last) == counts
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    done = sum(stop - 1 for stop in stops if stop < whole.batches)
    assert last.batches == whole.batches - done


def test_files_have_a_fixed_size_and_join_to_that_of_one(
    small_batches: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = write(tmp_path / "one", Interrupted())
    ids = np.fromfile(tmp_path / "one" / "train-00000.bin", DTYPE)
    monkeypatch.setattr(module, "SHARD_TOKENS", 1000)
    assert write(tmp_path / "many", Interrupted()) == counts and counts["tokens"] == len(ids) > 10_000
    paths = sorted((tmp_path / "many").glob("train-*.bin"))
    parts = [np.fromfile(path, DTYPE) for path in paths]
    assert {len(part) for part in parts[:-1]} == {1000} and len(parts) == -(-len(ids) // 1000)
    manifest = json.loads(paths[3].with_suffix(".json").read_text())
    assert manifest["tokens"] == 1000 and manifest["sha256"] == hashlib.sha256(paths[3].read_bytes()).hexdigest()
    shards = Shards(parts)
    assert (np.asarray(shards) == ids).all() and (shards[995:3007] == ids[995:3007]).all() and not len(shards[5:5])
    places = np.random.default_rng(0).integers(0, len(ids), (7, 50))
    assert (shards[places] == ids[places]).all()


def cut_file(folder: Path) -> None:
    os.truncate(folder / "train-00001.bin", 100)


def flip_byte(folder: Path) -> None:
    path = folder / "train-00000.bin"
    raw = bytearray(path.read_bytes())
    raw[10] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [cut_file, flip_byte, lambda folder: (folder / JOURNAL).write_text("{}[\0\n")])
def test_a_folder_that_does_not_match_its_journal_begins_anew(
    small_batches: None, tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 3000)
    whole, last = Interrupted(), Interrupted()
    write(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", Interrupted(5))
    damage(tmp_path / "killed")
    write(tmp_path / "killed", last)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and last.batches == whole.batches


def test_other_documents_than_before_are_refused(small_batches: None, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", Interrupted(5))
    with pytest.raises(ConfigError, match=r"text of killed"):
        write(tmp_path / "killed", Bytes(), [["other"], *documents()])


def test_an_id_outside_of_the_vocabulary_is_named(tmp_path: Path) -> None:
    class Wrong(Bytes):
        def encode_many(self, texts: list[str]) -> list[Any]:
            return [np.array([400])] * len(texts)

    with pytest.raises(ValueError, match=r"id 400.*271"):
        write(tmp_path / "wrong", Wrong(), [["a"]])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_folder_of_the_cache_is_continued(
    error: type[BaseException], small_batches: None, tmp_path: Path
) -> None:
    """RuntimeError is that of a worker that was killed."""

    def folder(tokenizer: Tokenizer, root: str, texts: list[list[str]] | None = None) -> tuple[Path, dict[str, Any]]:
        def build(part: Path) -> dict[str, Any]:
            return write(part, tokenizer, texts)

        (tmp_path / root).mkdir(exist_ok=True)
        return cached_folder(tmp_path / root, "name", {"of": "a test"}, build)

    with pytest.raises(error):
        folder(Interrupted(5, error), "killed")
    (part,) = (tmp_path / "killed").glob(".*.part")
    (part / "stale").mkdir()
    (part / "manifest.json").write_text("{}")
    last, whole = Interrupted(), Interrupted()
    assert contents(folder(last, "killed")[0]) == contents(folder(whole, "unbroken")[0])
    assert last.batches == whole.batches - 4 and not list((tmp_path / "killed").glob(".*.part"))
    with pytest.raises(error):
        folder(Interrupted(5, error), "changed")
    others = [["other"], *documents()]
    with pytest.raises(ConfigError, match="run the command again"):
        folder(Bytes(), "changed", others)
    folder(Bytes(), "changed", others)


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
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    batches: list[int] = []
    encode = Bytes.encode_many
    monkeypatch.setattr(Bytes, "encode_many", lambda self, texts: batches.append(1) or encode(self, texts))
    continued = Text(str(text)).prepare(16)
    count = len(batches)
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "another"))
    assert Text(str(text)).prepare(16).hash == continued.hash
    assert len(batches) - count == count + 4
    assert not [path for path in cache.iterdir() if path.suffix == ".part"]


IN_WORKERS = """
import sys
from kleiber.data import blocks, parallel, texts, token_writer
from kleiber.data.text import Text
blocks.BLOCK_BYTES, parallel.HERE = 20_000, 2
texts.available_cores = token_writer.available_cores = lambda: 2
append = token_writer.Journal.append
def told(self, encoded, key):
    append(self, encoded, key)
    print("block", flush=True)
token_writer.Journal.append = told
print(Text(sys.argv[1], tokenizer="bytes").prepare(16).hash)
"""


@pytest.mark.process
@pytest.mark.slow
def test_three_kills_of_workers_repeat_few_blocks(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"document {n} " + "of text " * (n % 200)}) + "\n" for n in range(4000))
    )
    command = [sys.executable, "-c", IN_WORKERS, str(path)]
    blocks = 0
    for kill in (20, 40, 60):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while blocks < kill and process.stdout.readline() == "block\n":
            blocks += 1
        process.kill()
        blocks += process.communicate()[0].count("block\n")
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    blocks += last.count("block")
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "another"))
    assert Text(str(path)).prepare(16).hash == last[-1]
    written = -(-path.stat().st_size // 20_000)
    assert written - 3 <= blocks <= written  # a kill may come between a block and its line, and none is written twice
