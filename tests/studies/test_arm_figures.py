"""Figures of arms are named before they are drawn, and what has no data has no figure."""

import pytest

from kleiber.studies.compare import arms
from kleiber.studies.compare.arms import Arm

ARM = Arm("mixture", {0.01: {0: 3.0, 1: 3.1}}, 0.01, "", {"params": 5.0})


def test_what_has_no_data_has_no_figure():
    assert arms.differences_chart([], "title") == {}
    assert arms.against_loss("sizes", [], "params", "title") == {}


@pytest.mark.parametrize("name", ["differences", "arms", "tuning", "sizes"])
def test_a_figure_shows_the_arms_it_was_asked_for(name):
    gap = {"what": "mixture - dense", "value": 0.1, "lo": 0.0, "hi": 0.2}
    made = {
        **arms.differences_chart([gap], "title"),
        **arms.each_arm({"mixture": ARM}),
        **arms.against_loss("sizes", [ARM.row()], "params", "title"),
    }
    assert list(made) == ["differences", "arms", "tuning", "sizes"]
    assert '"mixture' in made[name]().to_json()
