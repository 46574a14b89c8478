"""The grid design: cells of widths and seeds, combined with a sweep of the command line."""

import pytest

from kleiber.studies.designs.grid import Arms, Grid


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
    [{"widths": [32, 32]}, {"widths": [32, 64], "seeds": [1]}, {"widths": [40]}],
)
def test_a_grid_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"design\."):
        Grid(**options)


def test_the_design_plans_every_arm_rate_and_seed_and_replaces_what_is_one_a_seed():
    design = Arms(
        {"a": {"model": "moe", "init.path": "{base}"}, "b": {"model": "gpt"}}, [0.02, 0.01], 2, {"base": ["P", "Q"]}
    )
    cells = design.cells()
    assert len(cells) == 8 and ["model=moe", "init.path=Q", "optimizer.lr=0.01", "study.arm=a", "seed=1"] in cells
    assert [cell[-1] for cell in cells] == ["seed=0"] * 4 + ["seed=1"] * 4


@pytest.mark.parametrize(
    "options, named",
    [
        ({"arms": {}}, "arms"), ({"lrs": []}, "lrs"), ({"lrs": [0.1, 0.1]}, "lrs"),
        ({"fill": {"base": ["P"]}}, "fill.base"), ({"arms": {"a": {"x": 1}, "b": {"x": 1}}}, "the same"),
    ],
)  # fmt: skip
def test_a_design_that_cannot_be_read_again_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        Arms(**{"arms": {"a": {"x": 1}}, "lrs": [0.1], "seeds": 2} | options)
