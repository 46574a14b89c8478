"""What killed processes leave is found and removed; what a live process holds and whole checkpoints stay."""

import hashlib
import json
import os

import pytest

from kleiber.launch.cli import main
from kleiber.records.leftovers import find_leftovers, format_bytes
from kleiber.records.locks import SCRATCH, locked, scratch_folder


@pytest.fixture
def dead():
    """Id of a process that cannot be: it is above the largest one."""
    return 2**22 + 1


@pytest.fixture
def places(tmp_path):
    runs, temporary = tmp_path / "runs", tmp_path / "tmp"
    for folder in (runs / "a" / "checkpoints", runs / "b", temporary):
        folder.mkdir(parents=True)
    return runs, temporary


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(places):
    return {leftover.path: leftover for leftover in find_leftovers(*places)}


def test_files_locks_and_scratch_folders_of_dead_processes_are_found_with_their_sizes(places, dead):
    runs, temporary = places
    part = write(runs / "a" / f".summary.json.part-{dead}", "12345")
    weights = write(runs / "a" / "checkpoints" / f"step-00000010.part-{dead}" / "model.safetensors", "123")
    lock = write(runs / "b" / ".lock", str(dead))
    scratch = write(temporary / "kleiber-ranks-x" / SCRATCH, "").parent
    write(scratch / "0.json", "1234")
    sizes = {path: leftover.size for path, leftover in found(places).items()}
    assert sizes == {part: 5, weights.parent: 3, lock: len(str(dead)), scratch: 4}
    assert all(leftover.remove() for leftover in find_leftovers(*places))
    assert found(places) == {} and sorted(path.name for path in runs.iterdir()) == ["a", "b"]


def test_what_a_live_process_holds_is_left_alone(places, dead):
    runs, temporary = places
    write(runs / "a" / f".summary.json.part-{os.getpid()}")
    with locked(runs / "b"), scratch_folder("kleiber-x-", temporary):
        held = write(runs / "b" / f".summary.json.part-{dead}")
        assert found(places) == {}
    assert found(places).keys() == {held, runs / "b" / ".lock"}


def test_a_process_that_takes_a_lock_after_it_was_found_keeps_it(places, dead):
    runs, _ = places
    lock = write(runs / "b" / ".lock", str(dead))
    leftover = found(places)[lock]
    with locked(runs / "b"):
        assert not leftover.remove() and lock.exists()


def test_a_lock_is_not_taken_on_a_file_that_was_removed(places, monkeypatch):
    runs, _ = places
    taken = []

    def take(handle, tries=5):
        if not taken:
            (runs / "b" / ".lock").unlink()
        taken.append(handle)
        return True

    monkeypatch.setattr("kleiber.records.locks._take", take)
    with locked(runs / "b"):
        assert len(taken) == 2 and (runs / "b" / ".lock").read_text() == str(os.getpid())


def test_files_of_the_user_and_whole_checkpoints_are_no_leftovers(places, dead):
    runs, _ = places
    write(runs / f"video.part-{dead}")
    write(runs / "a" / ".lock", "not a lock of ours")
    folder = runs / "a" / "checkpoints" / f"step-00000010.part-{dead}"
    hashes = {
        name: hashlib.sha256(b"x").hexdigest() for name in ("model.safetensors", "state.pt") if write(folder / name)
    }
    write(folder / "meta.json", json.dumps({"sha256": hashes}))
    assert found(places) == {}
    write(folder / "state.pt", "damaged")
    assert found(places).keys() == {folder}


@pytest.mark.parametrize("content", ["", "\0" * 4], ids=["empty", "zeros"])
def test_a_lock_that_lost_its_process_id_is_left_over(places, content):
    lock = write(places[0] / "a" / ".lock", content)
    assert found(places).keys() == {lock}


@pytest.mark.parametrize(("answer", "options", "remains"), [("n", [], True), ("y", [], False), ("", ["--yes"], False)])
def test_the_command_asks_before_it_removes(places, dead, monkeypatch, capsys, answer, options, remains):
    runs, temporary = places
    part = write(runs / "a" / f".x.part-{dead}")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    monkeypatch.setattr("builtins.input", lambda _question: answer)
    assert main(["clean", str(runs), *options]) == 0
    assert part.exists() == remains and str(part) in capsys.readouterr().out


def test_the_end_of_the_input_is_a_no(places, dead, monkeypatch):
    part = write(places[0] / f".x.part-{dead}")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(places[1]))
    monkeypatch.setattr("builtins.input", lambda _question: (_ for _ in ()).throw(EOFError))
    assert main(["clean", str(places[0])]) == 0 and part.exists()
    assert main(["clean", str(places[0] / "nowhere")]) == 2


@pytest.mark.parametrize(("number", "text"), [(999, "999 B"), (1250, "1.25 kB"), (999_999, "1 MB"), (2.5e9, "2.5 GB")])
def test_bytes_have_three_digits_and_a_unit(number, text):
    assert format_bytes(int(number)) == text
