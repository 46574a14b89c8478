"""The studies of a ladder whose headline is an exponent: by counting convention, and by the vertices of budgets."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.scaling import Scaling

from .trunk_runs import SIZES, trees


@pytest.fixture
def ladder(tmp_path):
    trees(tmp_path / "l", SIZES, [2e6, 4e6, 8e6, 16e6], 2)
    return tmp_path / "l"


@pytest.mark.slow
def test_one_ladder_gives_an_exponent_by_counting_convention_and_one_by_vertices(ladder):
    runs = read_runs(ladder)
    counted, by_vertices = (
        Scaling(bootstrap=60, answers=answers, min_tokens=tokens).analyze(runs)
        for answers, tokens in (("conventions", "2M"), ("optimum", 1))
    )
    rows = [row for row in counted.law["accounting"] if row["approach"].startswith("3")]
    assert all(f"{pick(row['a'] for row in rows):.3f} [" in counted.answer for pick in (min, max))
    parabolas = next(row for row in by_vertices.law["approaches"] if row["approach"].startswith("2"))
    assert f"{parabolas['a']:.3f}" in by_vertices.answer
    assert [row["C"] for row in by_vertices.tables["Optimum by budget"]] == [p["C"] for p in parabolas["points"]]


@pytest.mark.parametrize("answers", ["conventions", "optimum"])
def test_a_ladder_of_one_size_gives_no_exponent(answers, tmp_path):
    trees(tmp_path / "l", SIZES[:1], [2e6, 4e6, 8e6, 16e6], 2)
    with pytest.raises(ValueError, match=r"5 parameters.*4 rows"):
        Scaling(bootstrap=0, answers=answers, min_tokens=1).analyze(read_runs(tmp_path / "l"))
