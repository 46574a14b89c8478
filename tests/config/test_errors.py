"""Exit codes are the documented numbers, every status has a code and a color, and signals reach the run."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from kleiber.config.errors import (
    SIGNALS,
    ExitCode,
    Interrupted,
    Preempted,
    Status,
    did_you_mean,
    exit_on_signals,
    listed,
    on_preemption,
    preempted_by,
)


def test_the_first_signal_reacts_all_are_listed_and_the_handlers_come_back():
    before, reactions = [signal.getsignal(number) for number in SIGNALS], []
    with on_preemption(reactions.append) as received:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert reactions == ["SIGUSR1"] and received == ["SIGUSR1", "SIGTERM"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_ctrl_c_is_interrupted_and_any_other_signal_preempted():
    assert isinstance(preempted_by("SIGINT", ""), Interrupted) and preempted_by("SIGINT", "").status == "interrupted"
    assert (
        type(preempted_by("SIGTERM", " at step 3")) is Preempted and preempted_by("SIGTERM", "").status == "preempted"
    )


def test_a_second_ctrl_c_ends_the_process_at_once_after_its_last_acts(tmp_path):
    """Counted over nested contexts, and from zero in the next one; nothing of Python runs after it."""
    pid = os.fork()
    if pid == 0:
        with on_preemption(lambda _: None) as received:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            with on_preemption(lambda _: None, lambda: (tmp_path / "outer").write_text(received[0])):
                os.kill(os.getpid(), signal.SIGINT)
                with on_preemption(lambda _: None, lambda: (tmp_path / "inner").write_text("")):
                    os.kill(os.getpid(), signal.SIGINT)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert (tmp_path / "outer").read_text() == "SIGINT" and (tmp_path / "inner").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_an_exception_that_python_discards_is_not_printed_and_comes_again(number, capfd):
    """FAULTS 122: a signal came in the callback of a weak reference to a module's lock, while PyTorch was imported."""

    def react(name):
        raise preempted_by(name, "")

    hook = sys.unraisablehook
    with pytest.raises(Preempted, match=signal.Signals(number).name), on_preemption(react):
        referent = threading.Event()
        reference = weakref.ref(referent, lambda _: signal.raise_signal(number))
        del referent
        assert reference() is None
        time.sleep(20)
    assert sys.unraisablehook is hook and capfd.readouterr() == ("", "")


def test_an_exception_that_no_signal_caused_reaches_the_hook_that_was_there(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda discarded: heard.append(type(discarded.exc_value)))
    with on_preemption(lambda _: None):
        referent = threading.Event()
        reference = weakref.ref(referent, lambda _: 1 / 0)
        del referent
        assert reference() is None
    assert heard == [ZeroDivisionError]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_sigint_that_is_ignored_or_that_another_library_handles_stays_so(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with on_preemption(lambda name: pytest.fail(name)) as received:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        assert received == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_is_changed():
    before, came = signal.getsignal(signal.SIGTERM), []

    def body():
        with on_preemption(print) as heard:
            came.append((heard, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert came == [([], before)]


def test_except_exception_does_not_catch_preemption():
    with pytest.raises(Preempted):
        try:
            raise Preempted("SIGTERM")
        except Exception:
            pytest.fail("taken for a failure")


def test_exit_codes_are_the_documented_numbers():
    codes = {code.name: int(code) for code in ExitCode}
    assert codes == {
        "DONE": 0, "FAILED": 1, "BAD_INPUT": 2, "UNDECIDED": 3, "PARTLY_FAILED": 4, "CONTRADICTED": 5,
            "PREEMPTED": 75, "INTERRUPTED": 130,
    }  # fmt: skip


@pytest.mark.parametrize("status", Status)
def test_only_finished_runs_end_with_zero_and_only_preempted_ones_are_queued_again(status):
    assert status.exit_code == {"finished": 0, "preempted": 75, "interrupted": 130}.get(status, 1)


def test_every_status_of_a_failure_is_red():
    colors = {status: status.color for status in Status}
    assert colors.pop(Status.FINISHED) == "green" and colors.pop(Status.RUNNING) == "cyan"
    assert colors.pop(Status.MISSING) == "yellow" and set(colors.values()) == {"red"}


def test_a_similar_choice_is_suggested_and_none_where_no_choice_is_similar():
    assert "'model'" in did_you_mean("modl", ["data", "model"])
    assert did_you_mean("xyz", ["data", "model"]) == did_you_mean("model", []) == ""


def test_a_process_that_has_nothing_to_save_leaves_ctrl_c_to_a_run_that_has():
    pid = os.fork()
    if pid == 0:
        exit_on_signals()
        with on_preemption(lambda _: None) as received:
            os.kill(os.getpid(), signal.SIGINT)
        if received != ["SIGINT"]:
            os._exit(98)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_a_long_list_of_names_is_cut_and_counted():
    assert listed(["a", "b"], most=2) == "a, b"
    assert listed(["a", "b", "c", "d"], most=2) == "a, b, and 2 more"


ABORTING = """
import atexit, ctypes, sys
from kleiber.config.errors import exit_with
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)  # as a destructor that finds a thread running
atexit.register(print, "closed")
sys.stderr.write("written")
exit_with(4)
"""


@pytest.mark.parametrize(("variables", "code"), [({"RANK": "1"}, 4), ({}, -signal.SIGABRT)])
def test_a_rank_ends_without_the_destructors_that_may_abort_it(variables, code):
    env = {name: value for name, value in os.environ.items() if name != "RANK"} | variables
    ended = subprocess.run([sys.executable, "-c", ABORTING], capture_output=True, text=True, env=env)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "closed\n", "written")
