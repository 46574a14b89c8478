"""The standing attack, some cases of each kind: none ends in a way that no rule explains.

`python tests/faults/fuzz.py --cases 3000` is the whole one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE

CASES = {"configs": 15, "folders": 15, "tables": 15, "hostile": 10}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("kind", CASES)
def test_no_case_ends_unexplained(kind, tmp_path):
    """In a process of its own, for its cases are forks: one of a process that has drawn a figure waits for ever for the
    threads that drew it.
    """
    out, script = tmp_path / "cases.jsonl", Path(__file__).with_name("fuzz.py")
    command = [sys.executable, script, "--kinds", kind, "--cases", CASES[kind], "--out", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=3 * PATIENCE)
    cases = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    unexplained = [(case["failure"], case["words"], case["output"][-1000:]) for case in cases if case["failure"]]
    assert not unexplained and len(cases) == CASES[kind] and done.returncode == 0, done.stdout + done.stderr
