"""The plan of a ladder with a law of the user."""

import pytest

from kleiber.studies.designs.isoflop import IsoFLOP
from kleiber.studies.designs.plan import SweepContext, planning_laws


@pytest.fixture
def context(tmp_path):
    model = {"depth": 2, "context": 128}
    return SweepContext(model, 272, 1024, 0.2, True, tmp_path / "s", lambda widths: [2e10 for _ in widths])


def test_a_law_of_ones_own_is_planned_with(context, tmp_path):
    small = IsoFLOP(flops=3e14, law={"E": 1.0, "A": 20.0, "B": 400.0, "alpha": 0.5, "beta": 0.5}).plan(context)
    large = IsoFLOP(flops=3e14).plan(context)
    assert max(t.width for t in small) != max(t.width for t in large)
    assert len(planning_laws(None)) == 9
    with pytest.raises(ValueError, match=r"design\.law"):
        planning_laws({"E": 1.0})
