"""A sample of the campaign of kills: no run of any kind may end otherwise than the unbroken one.

`python tests/faults/kill_campaign.py --kills 208` is the whole one.
"""

import pytest
from faults.kill_campaign import campaign
from faults.kill_kinds import KINDS

FIRST = ("dense", "trunk", "ewc chain", "grpo")
IN_PROCESSES = {"fsdp": 2, "sweep": 2, "command": 3}
SAMPLE = {name: 2 for name, kind in KINDS.items() if not kind.in_processes} | {"trunk": 6} | IN_PROCESSES


@pytest.mark.slow
@pytest.mark.forks
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.long] * (k not in FIRST)) for k in SAMPLE])
def test_killed_runs_of_each_kind_end_as_the_unbroken_one(tmp_path, cache_dir, kind):
    (result,) = campaign(tmp_path, kills=SAMPLE[kind], kinds=[kind])
    assert result.different == [] and sum(result.kills.values()) == SAMPLE[kind]
