"""The isoFLOP study finds the optimum of every budget."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.scaling import Accounting, IsoFLOP

from .trunk_runs import SIZES, trees


@pytest.fixture
def ladder(tmp_path):
    trees(tmp_path / "l", SIZES, [2e6, 4e6, 8e6, 16e6], 2)
    return tmp_path / "l"


@pytest.mark.slow
def test_the_same_runs_told_from_counting_and_from_vertices(ladder):
    runs = read_runs(ladder)
    counted = Accounting(bootstrap=60).analyze(runs)
    assert "moves the allocation exponent from" in counted.headline
    assert "N_opt ~ C^" in IsoFLOP(bootstrap=60).analyze(runs).headline
