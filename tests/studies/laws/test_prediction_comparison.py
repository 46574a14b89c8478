"""A recorded law compared with rows that it was not fitted to."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws import analysis, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.prediction import compare_with_rows

from .. import ladders


def rows(N, D, L):
    return table.load(pd.DataFrame({"N": N, "D": D, "L": L}), {}, (), ("N", "D"))


@pytest.fixture(scope="module")
def law():
    grid = ladders.twenty()
    loss = ladders.noisy(ladders.loss(**grid), 1, 0.002)
    return analysis.analyze(rows(grid["N"], grid["D"], loss), find("chinchilla"), analysis.Options(bootstrap=100))


@pytest.mark.slow
def test_the_law_that_made_the_rows_is_right_about_new_ones(law):
    N, D = np.array([2e9, 1e9, 2e9]), np.array([4e10, 2e10, 4e10])
    result = compare_with_rows(law, find("chinchilla"), rows(N, D, ladders.loss(N, D)), 3.0)
    assert [row["runs"] for row in result["cells"]] == [1, 2]  # by rising compute, seeds of a cell together
    assert result["cells"][1]["at"] == {"N": 2e9, "D": 4e10}
    assert result["mare"] < 0.01 and abs(result["bias"]) <= result["mare"] and result["run_coverage"] == 1.0


@pytest.mark.slow
def test_errors_are_those_of_each_cells_mean(law):
    output = analysis.predict(law, find("chinchilla"), {"N": 1e9, "D": 2e10})["value"]
    result = compare_with_rows(law, find("chinchilla"), rows([1e9, 1e9], [2e10, 2e10], [output, output * 1.2]), 3.0)
    assert result["mare"] == pytest.approx(1 - 1 / 1.1) and result["bias"] == pytest.approx(1 / 1.1 - 1)
    assert result["coverage"] == 0.0 and result["run_coverage"] == 0.0


def test_a_law_without_draws_has_no_coverage(law):
    result = compare_with_rows({**law, "draws": []}, find("chinchilla"), rows([1e9], [2e10], [2.5]), 3.0)
    assert result["coverage"] is None and result["run_coverage"] is None


def test_rows_too_far_outside_are_refused_by_name(law):
    with pytest.raises(ValueError, match=r"N=1e\+15, D=2e\+10: .* decades outside the rows"):
        compare_with_rows(law, find("chinchilla"), rows([1e15], [2e10], [2.5]), 3.0)
