"""A cache folder is whole or it is built again; of several processes one builds."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from kleiber.config.errors import ConfigError
from kleiber.data import cache as module
from kleiber.data.cache import cache_root, cached_folder, file_hash

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


def flip_byte(file: Path, place: int) -> None:
    """Changes one byte of a file, and neither its size nor its time stamp."""
    before = file.stat()
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(bytes(raw))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


def replace_by_link(folder: Path, target: str) -> None:
    shutil.move(folder, folder.with_name("moved"))
    folder.symlink_to(folder.with_name(target))


def manifest_text(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda folder: flip_byte(folder / "x.bin", 500),
    "cut": lambda folder: os.truncate(folder / "x.bin", 100),
    "lost file": lambda folder: (folder / "x.bin").unlink(),
    "file is a folder": lambda folder: (folder / "x.bin").unlink() or (folder / "x.bin").mkdir(),
    "lost manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half manifest": lambda folder: os.truncate(folder / "manifest.json", 100),
    "manifest without files": lambda folder: edit_manifest(folder, files={}),
    "manifest of missing files": lambda folder: edit_manifest(folder, files={"y.bin": {"bytes": 3}}),
    "manifest with another count": lambda folder: edit_manifest(folder, said=2),
    "manifest {}": lambda folder: manifest_text(folder, b"{}"),
    "manifest []": lambda folder: manifest_text(folder, b"[]"),
    "manifest of NUL": lambda folder: manifest_text(folder, bytes(200)),
    "manifest in Latin-1": lambda folder: manifest_text(folder, b'{"schema": "\xe9"}'),
    "deep manifest": lambda folder: manifest_text(folder, b"[" * 100_000 + b"]" * 100_000),
    "folder is a file": replace_by_file,
    "folder is a dangling link": lambda folder: replace_by_link(folder, "nowhere"),
    "folder is a link to itself": lambda folder: replace_by_link(folder, folder.name),
    "part is a file": lambda folder: replace_by_file(folder) or folder.with_name(f".{folder.name}.part").write_text(""),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_built_again(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    folder, whole = cached_folder(tmp_path, "name", IDENTITY, builder(log))
    DAMAGES[kind](folder)
    again, manifest = cached_folder(tmp_path, "name", IDENTITY, builder(log))
    assert log == ["built"] * 2 and manifest == whole and again == folder and not folder.is_symlink()
    assert (folder / "x.bin").read_bytes() == bytes(range(256)) * 4
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [str(folder) in line for line in lines] == [True]


@pytest.mark.slow
def test_every_byte_of_a_large_file_is_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bit rot leaves size and time stamp, and may be anywhere."""
    content = bytes(range(256)) * (17 << 12)

    def build(folder: Path) -> dict[str, Any]:
        (folder / "x.bin").write_bytes(content)
        return {}

    for place in (100_000, len(content) // 2, len(content) - 1):
        folder, whole = cached_folder(tmp_path, "name", IDENTITY, build)
        flip_byte(folder / "x.bin", place)
        assert cached_folder(tmp_path, "name", IDENTITY, build)[1] == whole
        assert str(folder / "x.bin") in caplog.text and (folder / "x.bin").read_bytes() == content
        caplog.clear()


def test_a_folder_that_is_too_large_to_check_at_every_use_is_checked_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    folder, _ = cached_folder(tmp_path, "name", IDENTITY, builder(log))
    flip_byte(folder / "x.bin", 500)
    monkeypatch.setattr(module, "CHECKED_BYTES", 1000)
    cached_folder(tmp_path, "name", IDENTITY, builder(log))
    assert log == ["built"]
    with module.whole_checks():
        cached_folder(tmp_path, "name", IDENTITY, builder(log))
    assert log == ["built"] * 2
    os.truncate(folder / "x.bin", 1023)
    cached_folder(tmp_path, "name", IDENTITY, builder(log))
    assert log == ["built"] * 3


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_no_file_is_named_and_left_alone(kind: str, tmp_path: Path) -> None:
    folder, _ = cached_folder(tmp_path, "name", IDENTITY, builder([]))
    shutil.rmtree(folder)
    lock, target = tmp_path / f".{folder.name}.lock", tmp_path / "precious"
    lock.unlink()
    target.write_text("content")
    lock.mkdir() if kind == "folder" else lock.symlink_to(target)
    with pytest.raises(ConfigError, match=re.escape(str(lock))):
        cached_folder(tmp_path, "name", IDENTITY, builder([]))
    assert target.read_text() == "content"


def test_a_full_disk_is_named_with_the_cache_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "x.bin").write_bytes(b"half")
        (folder / ".journal").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        cached_folder(tmp_path, "name", IDENTITY, fill)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_disk_that_returns_other_bytes_than_were_written_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    sums = iter(range(1000))
    monkeypatch.setattr(module, "fast_hash", lambda path: xxhash.xxh3_64(str(next(sums)).encode()))
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "name-"))):
        cached_folder(tmp_path, "name", IDENTITY, builder([]))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "x.bin").write_bytes(b"half")
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cached_folder(tmp_path, "name", IDENTITY, fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.slow
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


def test_a_file_in_place_of_the_folder_of_hashes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 70."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path))
    (tmp_path / "sha256").write_text("")
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / "sha256"))):
        file_hash(tmp_path / "sha256")
    (tmp_path / "sha256").unlink()
    (tmp_path / "text").write_text("abc")
    assert file_hash(tmp_path / "text").startswith("ba7816bf")


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """Except for token files that can be continued, for a week."""
    names = ("dead", "held", "young", "old")
    parts = {name: tmp_path / f".{name}.part" for name in names}
    for name, part in parts.items():
        part.mkdir()
        (part / "x.bin").write_bytes(b"half")
        (tmp_path / f".{name}.lock").write_text("")
        if name in ("young", "old"):
            (part / ".journal").write_text("")
    os.utime(parts["old"] / ".journal", (1e9, 1e9))
    scratch = tmp_path / ".datasets-abc"
    scratch.mkdir()
    (scratch / ".kleiber-scratch").write_text("")
    with module.wait_for_lock(tmp_path / ".held.lock", lambda: None):
        cache_root(tmp_path)
    assert [name for name in names if parts[name].exists()] == ["held", "young"] and not scratch.exists()
