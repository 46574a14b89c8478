"""The campaign of kill30.py: kills fall where they are aimed, and no run may end otherwise than the unbroken one."""

import pytest
from faults.kill30 import KINDS, campaign


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("ddp", "trunk")])
def test_killed_runs_of_each_kind_end_as_the_unbroken_one(tmp_path, cache_dir, kind):
    (result,) = campaign(tmp_path, kills=6, kinds=[kind])
    assert result["different"] == [] and sum(result["kills"].values()) == 6
    assert (result["kills"]["checkpoint"], result["kills"]["validation"], result["kills"]["late"]) == (2, 1, 1)


@pytest.mark.slow
def test_thirty_random_kills_over_trees_end_bit_identical(tmp_path, cache_dir):
    (result,) = campaign(tmp_path, kills=30, kinds=["trunk"])
    assert result["different"] == [] and sum(result["kills"].values()) == 30
    assert result["kills"]["checkpoint"] == 10 and result["kills"]["validation"] >= 5
