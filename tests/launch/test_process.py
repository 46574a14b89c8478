"""Exit codes of errors, and the copy of a run's output in log.txt."""

import sys

import pytest

from kleiber.config.errors import ConfigError, Preempted
from kleiber.config.stages import quantity
from kleiber.launch import process


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


def test_a_signal_outside_of_training_preempts():
    with pytest.raises(Preempted, match="SIGTERM"):
        process.raise_preempted("SIGTERM")
