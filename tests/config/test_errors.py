"""Exit codes are the documented numbers, every status has a code and a color, and signals reach the run."""

import os
import signal
import threading

import pytest

from kleiber.config.errors import SIGNALS, ExitCode, Preempted, Status, did_you_mean, on_preemption


def test_the_first_signal_reacts_all_are_listed_and_the_handlers_come_back():
    before, reactions = [signal.getsignal(number) for number in SIGNALS], []
    with on_preemption(reactions.append) as received:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert reactions == ["SIGUSR1"] and received == ["SIGUSR1", "SIGTERM"]
    assert [signal.getsignal(number) for number in SIGNALS] == before


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
    assert status.exit_code == {"finished": 0, "preempted": 75}.get(status, 1)


def test_every_status_of_a_failure_is_red():
    colors = {status: status.color for status in Status}
    assert colors.pop(Status.FINISHED) == "green" and colors.pop(Status.RUNNING) == "cyan"
    assert colors.pop(Status.MISSING) == "yellow" and set(colors.values()) == {"red"}


def test_a_similar_choice_is_suggested_and_none_where_no_choice_is_similar():
    assert "'model'" in did_you_mean("modl", ["data", "model"])
    assert did_you_mean("xyz", ["data", "model"]) == did_you_mean("model", []) == ""
