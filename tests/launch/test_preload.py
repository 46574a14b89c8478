"""The imports of the fork server: they include every router, and all modules that a cell needs."""

import subprocess
import sys

import pytest
from small_run import TINY


@pytest.mark.slow
def test_a_forked_cell_imports_nothing_and_starts_with_frozen_objects(tmp_path):
    overrides = [*TINY, f"root={tmp_path}", "budget.steps=2"]
    script = f"""
import gc, sys
import kleiber.launch.preload
frozen, before = gc.get_freeze_count(), set(sys.modules)
from kleiber.launch.main import main
assert main({overrides!r}) == 0
from kleiber.nn.routers import EXPORTS
assert all("kleiber.nn.routers." + module in before for module in EXPORTS.values())
print(frozen > 100_000, sorted(name for name in set(sys.modules) - before if name.startswith(("kleiber", "lightning"))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True []"
