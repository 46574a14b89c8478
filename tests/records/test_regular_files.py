"""Only files are opened, within a second, links are never written through, and nothing larger than expected is read."""

import os
import signal
import socket
import stat
import time
from contextlib import chdir
from pathlib import Path

import pytest

from kleiber.config.errors import ConfigError
from kleiber.records.regular_files import (
    DamagedFile,
    create,
    file_sha256,
    kind_of,
    links_refused,
    make_folder,
    open_handle,
    open_to_add_lines,
    open_to_append,
    open_to_read,
    path_inside,
    read_bytes,
    read_text,
    remove,
    rename_aside,
)

KINDS = ("pipe", "socket", "folder", "link to a device", "link to a pipe")
READERS = (open_to_read, file_sha256, lambda path: read_bytes(path, 9), lambda path: read_text(path, 9))
WRITERS = (open_to_append, open_to_add_lines, lambda path: open_handle(path, os.O_RDWR | os.O_CREAT))


@pytest.fixture(autouse=True)
def no_waiting():
    """Fails a test that waits for a pipe, or reads a device without an end."""

    def fail(*_: object) -> None:
        raise TimeoutError("a pipe or a device was opened")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place(kind: str, path: Path) -> Path:
    """Puts something at `path` that is not a file."""
    if kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        pipe = path if kind == "pipe" else path.with_name("pipe")
        os.mkfifo(pipe)
        if pipe != path:
            path.symlink_to(pipe)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", [*READERS, *WRITERS])
def test_what_is_no_file_is_refused_by_name_and_not_opened(tmp_path, kind, use):
    path, began = place(kind, tmp_path / "summary.json"), time.monotonic()
    with pytest.raises(DamagedFile, match=r"summary\.json"):
        use(path)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("use", WRITERS)
@pytest.mark.parametrize("target", ["thesis.txt", "nothing.txt"])
def test_no_link_is_written_through(tmp_path, use, target):
    (tmp_path / "thesis.txt").write_text("my thesis")
    (tmp_path / "log.txt").symlink_to(target)
    with pytest.raises(DamagedFile, match=rf"log\.txt.*{target}"):
        use(tmp_path / "log.txt")
    assert (tmp_path / "thesis.txt").read_text() == "my thesis" and not (tmp_path / "nothing.txt").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "pipe"])
def test_a_new_file_takes_the_place_of_nothing(tmp_path, kind):
    (tmp_path / "thesis.txt").write_text("my thesis")
    path = tmp_path / "new"
    {
        "file": lambda: path.write_text("old"), "link": lambda: path.symlink_to("thesis.txt"),
        "dangling link": lambda: path.symlink_to("nothing"), "pipe": lambda: os.mkfifo(path),
    }[kind]()  # fmt: skip
    with pytest.raises((FileExistsError, DamagedFile)):
        create(path)
    assert (tmp_path / "thesis.txt").read_text() == "my thesis" and not (tmp_path / "nothing").exists()


def test_links_are_followed_for_reading_as_in_the_cache_of_the_hub(tmp_path):
    (tmp_path / "blob").write_text("content")
    (tmp_path / "config.json").symlink_to("blob")
    assert read_text(tmp_path / "config.json", 7) == "content"


def test_files_are_opened_as_python_opens_them(tmp_path):
    path = tmp_path / "log"
    with open_to_add_lines(path) as file:
        file.write("é\n")
    with open_to_append(path) as file:
        file.write(b"2\n")
        file.seek(0)
        assert file.read() == "é\n2\n".encode()
    with create(tmp_path / "new") as file:
        file.write(b"3")
    mask = os.umask(0)
    os.umask(mask)
    for name in ("log", "new"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert os.get_inheritable(open_handle(path, os.O_RDONLY)) is False


def test_a_larger_file_than_expected_is_refused_with_its_size_and_costs_nothing(tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(DamagedFile, match="5 bytes, more than 4"):
        read_bytes(path, 4)
    os.truncate(path, 3 * 2**30)
    with pytest.raises(DamagedFile, match="3,221,225,472 bytes"):
        read_bytes(path, 2**20)
    assert len(read_bytes(Path("/proc/self/status"), 2**20)) > 100, "a file whose size is not known before"
    with pytest.raises(DamagedFile, match="does not exist"):
        read_bytes(tmp_path / "nothing", 5)


def test_folders_are_made_inside_a_folder_and_never_through_a_link(tmp_path):
    home, elsewhere = tmp_path / "link to runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    home.symlink_to(elsewhere)  # the reader's own
    assert make_folder(home, "stages", "main") == home / "stages" / "main"
    assert make_folder(home, "stages", "main").is_dir() and make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (elsewhere / "evals").symlink_to(tmp_path)
    (elsewhere / "figures").symlink_to(tmp_path / "nothing")
    (elsewhere / "file").write_text("")
    for name in ("evals", "figures", "file"):
        with pytest.raises(DamagedFile, match=name):
            make_folder(home, name, "x")
    for name in ("..", ".", "", "a/b"):
        with pytest.raises(ConfigError, match="name of a folder"):
            make_folder(home, name)
    assert not (tmp_path / "x").exists() and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../x", "a/../../x", "", "a\0b", None])
def test_a_file_names_no_file_outside_of_its_folder(tmp_path, name):
    if name is None:
        assert path_inside(tmp_path, "weights/shard-00001.safetensors").parent == tmp_path / "weights"
        return
    with pytest.raises(DamagedFile):
        path_inside(tmp_path, name)


def test_removing_and_renaming_leave_the_target_of_a_link(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("my thesis")
    for number in (1, 2):
        (tmp_path / "figures").symlink_to("folder")
        rename_aside(tmp_path / "figures")
        assert f"figures.{number}" in capsys.readouterr().err
    for name in ("figures.1", "figures.2", "gone"):
        remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    assert (tmp_path / "folder" / "thesis.txt").exists()
    remove(tmp_path / "folder")
    assert kind_of(tmp_path / "folder") is None and not any(tmp_path.iterdir())


def test_within_links_refused_no_link_in_the_folder_is_read(tmp_path):
    home, secret = tmp_path / "home", tmp_path / "secret"
    secret.mkdir()
    (home / "inner").mkdir(parents=True)
    (secret / "file").write_text("x")
    (home / "inner" / "file").write_text("y")
    (home / "file").symlink_to(secret / "file")
    (home / "folder").symlink_to(secret)
    (home / "alias").symlink_to(home / "inner")
    assert read_text(home / "folder" / "file", 9) == "x"
    with links_refused(home):
        for linked in ("file", "folder/file", "alias/file"):
            with pytest.raises(DamagedFile, match="is a link"):
                read_text(home / linked, 9)
        assert read_text(home / "inner" / "file", 9) == "y"
        assert read_text(secret / "file", 9) == "x", "links elsewhere are the reader's"
    assert read_text(home / "file", 9) == "x"
