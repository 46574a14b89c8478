"""The figures of a law show the numbers of its record, here that of the recorded ladder."""

import json

import pytest
from small_run import REPOSITORY

pytest.importorskip("altair")
from kleiber.studies.laws import figures

RECORD = json.loads((REPOSITORY / "multirun/golden/laws.json").read_text())


def test_exponents_are_those_of_the_main_approaches():
    """An approach that only the accounting has would stretch the axis and not be drawn."""
    (rows,) = figures.exponents(RECORD).to_dict()["datasets"].values()
    assert {row["approach"] for row in rows} == {exponent["approach"] for exponent in RECORD["approaches"]}
    assert {row["approach"] for row in RECORD["accounting"]} > {row["approach"] for row in rows}
