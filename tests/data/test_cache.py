"""A cache folder is whole or it is built again; of several processes one builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kleiber.data import cache as module
from kleiber.data.cache import cache_root, cached_folder, chunks, limit_bytes
from kleiber.data.tokenizers import BPE

IDENTITY: dict[str, Any] = {"of": "a test"}

BUILDER = """
import sys, time
from pathlib import Path
from kleiber.data.cache import cached_folder
def build(folder):
    Path(sys.argv[2]).open("a").write("built\\n")
    (folder / "x.bin").write_bytes(b"x" * 1000)
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    return {}
print(cached_folder(Path(sys.argv[1]), "two", {"of": "two"}, build)[1]["files"]["x.bin"]["sha256"])
"""


def builder(log: list[str]) -> Callable[[Path], dict[str, Any]]:
    def build(folder: Path) -> dict[str, Any]:
        log.append("built")
        (folder / "x.bin").write_bytes(bytes(range(256)) * 4)
        return {"said": 1}

    return build


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    log: list[str] = []
    for _ in range(3):
        folder, manifest = cached_folder(tmp_path, "a name/with signs", IDENTITY, builder(log))
    assert log == ["built"] and manifest["said"] == 1 and manifest["identity"] == IDENTITY
    assert folder.name.startswith("a-name-with-signs-")
    assert cached_folder(tmp_path, "a name/with signs", {"of": "another"}, builder(log))[0] != folder


def damage(kind: str, folder: Path) -> None:
    file, manifest = folder / "x.bin", folder / "manifest.json"
    if kind == "flipped byte":
        raw = bytearray(file.read_bytes())
        raw[500] ^= 1
        file.write_bytes(bytes(raw))
    elif kind == "cut":
        os.truncate(file, 100)
    elif kind == "lost file":
        file.unlink()
    elif kind == "lost manifest":
        manifest.unlink()
    elif kind == "half manifest":
        manifest.write_text(manifest.read_text()[:100])
    else:
        manifest.write_text(json.dumps({"files": {}}))


@pytest.mark.parametrize(
    "kind", ["flipped byte", "cut", "lost file", "lost manifest", "half manifest", "another manifest"]
)
@pytest.mark.parametrize("whole", [0, 1 << 20])
def test_a_damaged_folder_is_built_again(
    kind: str, whole: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL_CHECK_BYTES", whole)
    log: list[str] = []
    folder, _ = cached_folder(tmp_path, "name", IDENTITY, builder(log))
    damage(kind, folder)
    folder, _ = cached_folder(tmp_path, "name", IDENTITY, builder(log))
    assert log == ["built"] * 2 and (folder / "x.bin").read_bytes() == bytes(range(256)) * 4
    assert str(folder) in caplog.text


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "x.bin").write_bytes(b"half")
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cached_folder(tmp_path, "name", IDENTITY, fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.process
def test_two_processes_build_once_and_a_killed_one_leaves_no_half(tmp_path: Path) -> None:
    log = tmp_path / "log"
    root = tmp_path / "cache"
    root.mkdir()

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILDER, str(root), str(log), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start(60)
    assert killed.stdout is not None and killed.stdout.readline() == "building\n"
    killed.kill()
    killed.communicate()
    assert not (root / "two").exists() and log.read_text() == "built\n"
    outputs = [process.communicate()[0].split()[-1] for process in (start(0.5), start(0.5))]
    assert outputs[0] == outputs[1] and log.read_text() == "built\nbuilt\n"


def test_the_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLEIBER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "kleiber"
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="KLEIBER_CACHE=DIR"):
        cache_root(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, ["abcd", "", "é!"]), (3, ["abc"]), (4, ["abcd"]), (5, ["abcd", "", ""]), (6, ["abcd", "", "é"])],
)
def test_documents_are_cut_at_a_number_of_bytes(limit: int | None, expected: list[str]) -> None:
    """A character of several bytes is left out where only a part of it fits."""
    documents = limit_bytes([["ab", "cd"], [""], ["é", "!"]], limit)
    assert ["".join(document) for document in documents] == expected


def test_chunks_join_to_the_text_and_have_the_ids_of_the_whole_text(bpe: BPE, tiny: str) -> None:
    text = Path(tiny).read_text()
    pieces = list(chunks([text[:7000], text[7000:]], size=1000))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1000
    assert np.concatenate(bpe.encode_many(pieces)).tolist() == bpe.encode(text)
    assert [len(piece) for piece in chunks(["x" * 2500], size=1000)] == [1000, 1000, 500]
