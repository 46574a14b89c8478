"""What a command printed, and commands that hang, fail or are stopped."""

import math
import os
import signal
import sys
import threading
import time

import pytest
from processes import PATIENCE

from kleiber.config import Preempted
from kleiber_topics.gate.runner import RunFailed, execute, read_metric, run_command

PATTERN = r"val_loss: ([0-9.]+)"


@pytest.mark.parametrize(
    ("text", "take", "value"),
    [
        ("step 1\nval_loss: 2.5\n", "once", 2.5),
        ("val_loss: 2.5\nval_loss: 2.25\n", "last", 2.25),
        ("val_loss: nan\n", "once", math.nan),
        ("val_loss: -Inf\n", "once", -math.inf),
    ],
)
def test_the_metric_is_read(text, take, value):
    assert read_metric(text, PATTERN, take) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("text", ["", "val_loss: none", "val_loss: 2.5\nval_loss: 2.5\n", "val_loss: 2.5.1"])
def test_a_metric_that_is_missing_repeated_or_no_number_fails(text):
    with pytest.raises(RunFailed):
        read_metric(text, PATTERN, "once")


@pytest.mark.slow
@pytest.mark.process
def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    child = f"{sys.executable} -c 'import time; time.sleep({PATIENCE})'"
    with pytest.raises(RunFailed, match="--timeout"):
        execute(f"{child} & echo $! > child; wait", tmp_path, tmp_path / "run", {}, 1.0)
    number = int((tmp_path / "child").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(1000):
            os.kill(number, 0)
            time.sleep(0.01)


@pytest.mark.process
def test_a_command_that_fails_says_where_its_output_is(tmp_path):
    with pytest.raises(RunFailed, match="exit code 3"):
        run_command("echo val_loss: 1.0; exit 3", tmp_path, tmp_path / "run", {}, PATTERN, "once", None)
    assert "val_loss" in (tmp_path / "run" / "output-0.txt").read_text()
    assert run_command("echo val_loss: 1.5", tmp_path, tmp_path / "run", {}, PATTERN, "once", None).value == 1.5


@pytest.mark.process
def test_a_signal_ends_the_command_and_the_process(tmp_path):
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Preempted):
        execute(f"sleep {PATIENCE}", tmp_path, tmp_path / "run", {}, None)
