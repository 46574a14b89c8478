"""Ctrl-C and SIGTERM while a command starts end it with 130 and 75, without a traceback and at once. FAULTS 122."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.kill_start import catches
from processes import alive, wait_for
from small_run import REPOSITORY, TINY, last_of_each

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
RUN = [*TINY, "root={root}", "budget.steps=5000", "trainer.max_steps=5000"]
COMMANDS = {
    "train": ["train.py", *RUN],
    "kleiber train": ["-m", "kleiber", "train", *RUN],
    "sweep": ["train.py", "-m", "name=s", "seed=1,2", *RUN],
    "ranks": ["train.py", *RUN, "trainer=ddp", "trainer.devices=2"],
    "dry run": ["train.py", *RUN, "dry_run=true"],
    "report": ["-m", "kleiber", "report", "{study}"],
    "fit": ["-m", "kleiber", "fit", "{table}", "--law", "power", "--map", "C=x,L=y"],
    "eval": ["-m", "kleiber", "eval", "{study}/run", "--evals", "perplexity"],
    "runs": ["-m", "kleiber", "runs", "{study}"],
}
QUICK = {("train", signal.SIGTERM, 0.4), ("sweep", signal.SIGINT, 1.0)}
CASES = [(name, number, after) for name in COMMANDS for number in CODES for after in (0.0, 0.4, 1.0)]
CASES += [(name, number, after) for name in ("sweep", "ranks") for number in CODES for after in (2.0, 4.0)]


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "number", "after"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_a_signal_while_a_command_starts_ends_it_with_its_code(tmp_path, cache_dir, name, number, after):
    """The signal goes to all processes of the terminal, or of the job."""
    (tmp_path / "table.csv").write_text("x,y\n" + "".join(f"{10**n},{10 - n}\n" for n in range(6)))
    (tmp_path / "study" / "run").mkdir(parents=True)
    places = {"root": tmp_path / "root", "study": tmp_path / "study", "table": tmp_path / "table.csv"}
    words = [word.format(**places) if "{" in word else word for word in last_of_each(COMMANDS[name])]
    command = [sys.executable, *words]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
    # Python itself catches SIGINT from its start; until kleiber does, a traceback of Python cannot be avoided.
    wait_for(lambda: catches(started.pid, signal.SIGUSR1) or started.poll() is not None)
    time.sleep(after)
    if started.poll() is None:
        os.killpg(started.pid, number)
        begun = time.monotonic()
        code = started.wait(60)
        assert time.monotonic() - begun < 20
    else:
        code = started.returncode
    printed = (tmp_path / "log").read_text()
    ended = code in (0, 2, 3) and after > 0  # the command was faster than the signal
    assert ended or code == CODES[number], printed
    assert "Traceback" not in printed and "KeyboardInterrupt" not in printed, printed
    wait_for(lambda: not alive(tmp_path))
    statuses = [json.loads(path.read_text())["status"] for path in Path(tmp_path).glob("root/*/*/summary.json")]
    assert set(statuses) <= {"interrupted" if number == signal.SIGINT else "preempted"}, printed
