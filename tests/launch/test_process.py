"""Exit codes of errors, and the copy of a run's output in log.txt."""

import os
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

import pytest

from kleiber.config.errors import ConfigError, Preempted, exit_on_signals
from kleiber.config.stages import quantity
from kleiber.launch import main, process
from kleiber.records import folder


def raised_by_kleiber() -> Exception:
    with pytest.raises(ValueError) as caught:
        quantity("nonsense")
    return caught.value


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("x"), 2), (raised_by_kleiber(), 2), (ValueError("of a library"), 1), (ZeroDivisionError("x"), 1)],
)
def test_an_error_that_the_user_can_correct_is_2_and_any_other_1(error, code, capsys):
    assert process.print_error(error) == code
    assert str(error) in capsys.readouterr().err


def test_the_full_traceback_is_printed_on_request(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert process.print_error(raised_by_kleiber()) == 2
    assert "Traceback" in capsys.readouterr().err


def test_output_is_copied_to_the_log_and_streams_are_restored(tmp_path, capsys):
    before = sys.stdout, sys.stderr
    with process.copy_output(tmp_path):
        print("progress\r", end="")
        print("problem", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "log.txt").read_text() == "progress\nproblem\n"
    assert capsys.readouterr() == ("progress\r", "problem\n")


@contextmanager
def closed_pipe():  # not a fixture: pytest replaces the streams between setup and call
    """Makes stdout and stderr a pipe whose reader has ended, as that of `kleiber train | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    # Closing a stream raises where something is still to be written to the pipe.
    with (
        open(os.dup(writer), "w", buffering=1) as out,
        open(writer, "w", buffering=1) as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        yield


def train_lines(error: Exception | None):
    def train(*_):
        for number in range(3):
            print(f"line {number}")
            print(f"problem {number}", file=sys.stderr, flush=True)
        if error is not None:
            raise error
        return 0

    return train


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ConfigError("x"), 2), (ZeroDivisionError("x"), 1)])
def test_a_closed_pipe_ends_no_training_and_hides_no_status(tmp_path, monkeypatch, error, code):
    folder.write_config(tmp_path, {"name": "runs", "seed": 0, "trainer": {}}, [])
    monkeypatch.setattr(process, "_import_and_train", train_lines(error))
    with closed_pipe():
        assert process.run({}, tmp_path, []) == code
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("".join(f"line {number}\nproblem {number}\n" for number in range(3)))
    assert folder.status(tmp_path) == ("missing" if error is None else "failed")


def test_the_status_is_written_before_the_error_is_printed(tmp_path, monkeypatch):
    folder.write_config(tmp_path, {"name": "runs", "seed": 0, "trainer": {}}, [])
    monkeypatch.setattr(process, "_import_and_train", train_lines(ConfigError("x")))
    found = []
    monkeypatch.setattr(process, "print_error", lambda error: found.append(folder.status(tmp_path)) or 2)
    assert process.run({}, tmp_path, []) == 2 and found == ["failed"]


def test_a_closed_pipe_is_no_error_of_a_command(monkeypatch):
    monkeypatch.setattr(main, "train", lambda argv: main.TrainResult(train_lines(None)(), None))
    with closed_pipe():
        assert main.main([]) == 0


def test_a_signal_whose_exception_a_library_swallows_ends_the_run(tmp_path, monkeypatch):
    def fail_later(*_: object) -> int:
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        raise AttributeError("module has no attribute")

    monkeypatch.setattr("kleiber.runs.run.train", fail_later)
    folder.write_config(tmp_path, {"name": "runs", "seed": 0, "trainer": {}}, [])
    code, error = process._train_and_report({}, tmp_path, ())
    assert code == 75
    assert isinstance(error, Preempted)
    assert folder.status(tmp_path) == "preempted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_an_import_ends_a_command_without_an_exception(tmp_path, monkeypatch, number):
    """An exception there may be swallowed, and has crashed the interpreter while PyTorch was imported."""

    def import_in_part() -> None:
        with suppress(BaseException):
            os.kill(os.getpid(), number)
        os._exit(98)

    monkeypatch.setattr("kleiber.training.lightning.import_lightning", import_in_part)
    folder.write_config(tmp_path, {"name": "runs", "seed": 0, "trainer": {}}, [])
    pid = os.fork()
    if pid == 0:
        exit_on_signals()
        process._train_and_report({}, tmp_path, ())
        os._exit(99)
    code, status = {signal.SIGTERM: (75, "preempted"), signal.SIGINT: (130, "interrupted")}[number]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code and folder.status(tmp_path) == status


def test_a_signal_within_an_import_of_a_notebook_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("kleiber.training.lightning.import_lightning", lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(process, "is_command", lambda: False)
    folder.write_config(tmp_path, {"name": "runs", "seed": 0, "trainer": {}}, [])
    assert process._train_and_report({}, tmp_path, ())[0] == 75 and folder.status(tmp_path) == "preempted"


def test_a_signal_outside_of_training_preempts():
    with pytest.raises(Preempted, match="SIGTERM"):
        process.raise_preempted("SIGTERM")
