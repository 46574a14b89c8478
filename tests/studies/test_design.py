"""Designs as cells: each width with its seeds, and the command line's sweep on top."""

import pytest

from kleiber.studies.designs.grid import Grid


def test_a_grid_has_every_width_with_its_seeds_small_ones_first():
    cells = Grid(widths=[64, 32], seeds=[1, 2], head_dim=16).cells()
    assert cells == [
        ["model.width=32", "model.num_heads=2", "seed=0"],
        ["model.width=32", "model.num_heads=2", "seed=1"],
        ["model.width=64", "model.num_heads=4", "seed=0"],
    ]


def test_heads_may_be_left_to_the_model():
    assert Grid(widths=[48], seeds=1, head_dim=None).cells() == [["model.width=48", "seed=0"]]


@pytest.mark.parametrize(
    "options",
    [{"widths": []}, {"widths": [32, 32]}, {"widths": [32, 64], "seeds": [1]}, {"widths": [32], "seeds": 0},
     {"widths": [40]}],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"design\."):
        Grid(**options)
