"""The campaign of kill30.py: where the kills fell is printed, and no tree may end otherwise than the unbroken one."""

import pytest
from faults.kill30 import campaign


@pytest.mark.slow
def test_thirty_random_kills_over_trees_end_bit_identical(tmp_path, cache_dir):
    histogram = campaign(tmp_path, kills=30, seed=0)
    assert sum(histogram.values()) == 30
    aimed = [(place, stage) for (aim, place, stage), n in histogram.items() if aim != "anywhere" for _ in range(n)]
    assert [place for place, _ in aimed].count("checkpoint") >= 10
    assert [place for place, _ in aimed].count("validation") >= 5
    assert sum(stage not in ("no stage", "trunk") for _, stage in aimed) >= 5
