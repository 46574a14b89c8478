import os
import signal
import threading

import pytest

from kleiber.config.errors import SIGNALS, Preempted, on_preemption


def test_the_first_signal_reacts_all_are_listed_and_the_handlers_come_back():
    before, told = [signal.getsignal(number) for number in SIGNALS], []
    with on_preemption(told.append) as came:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert told == ["SIGUSR1"] and came == ["SIGUSR1", "SIGTERM"]
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


def test_what_catches_every_exception_does_not_catch_it():
    with pytest.raises(Preempted):
        try:
            raise Preempted("SIGTERM")
        except Exception:
            pytest.fail("taken for a failure")
