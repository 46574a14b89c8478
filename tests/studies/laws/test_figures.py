"""The figures of a law show the numbers of its record, here that of the recorded ladder."""

import json

import numpy as np
import pandas as pd
import pytest
from small_run import REPOSITORY

pytest.importorskip("altair")
from kleiber.studies.laws import figures
from kleiber.studies.laws.catalog import find

RECORD = json.loads((REPOSITORY / "multirun/golden/laws.json").read_text())


def test_exponents_are_those_of_the_main_approaches():
    """An approach that only the accounting has would stretch the axis and not be drawn."""
    (rows,) = figures.exponents(RECORD).to_dict()["datasets"].values()
    assert {row["approach"] for row in rows} == {exponent["approach"] for exponent in RECORD["approaches"]}
    assert {row["approach"] for row in RECORD["accounting"]} > {row["approach"] for row in rows}


@pytest.mark.slow
def test_200_sizes_are_drawn():
    N = np.repeat(np.geomspace(2e4, 2e6, 200), 4)
    rows = pd.DataFrame({"N": N, "D": np.tile(1e6 * 2.0 ** np.arange(4), 200), "loss": 3.0, "run": "a"})
    chart = figures.ladder(rows.assign(stage="b", seed=0), find("chinchilla"), RECORD).to_dict()
    assert 200 * 60 in {len(points) for points in chart["datasets"].values()}
