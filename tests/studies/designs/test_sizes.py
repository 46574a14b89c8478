"""Planned points, and what they cannot determine, before anything is trained."""

from pathlib import Path

import numpy as np
import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.model_size import BYTES_VOCABULARY, size
from kleiber.studies.designs.sizes import fine_tunes, points_of, rank_of, shortfall, study_of
from kleiber.studies.laws.catalog import find
from kleiber.types import Json

COMPOSER = Composer()
LAW = find("chinchilla")


def composed(*overrides: str) -> Json:
    return resolve_config(COMPOSER.compose(list(overrides)))[0]


def grid(sizes: int, lengths: int) -> dict[str, np.ndarray]:
    N, D = np.meshgrid(np.geomspace(1e5, 1e6, sizes), np.geomspace(1e6, 1e7, lengths))
    return {"N": N.ravel(), "D": D.ravel()}


def test_a_grid_of_three_sizes_and_three_lengths_determines_the_law():
    assert rank_of(LAW, grid(3, 3)) == len(LAW.params) and shortfall(LAW, grid(3, 3)) is None


@pytest.mark.parametrize(("sizes", "lengths", "missing"), [(1, 9, "model sizes"), (9, 1, "token counts")])
def test_a_line_of_points_does_not_and_the_missing_variation_is_named(sizes, lengths, missing):
    why = shortfall(LAW, grid(sizes, lengths))
    assert why is not None and f"add {missing}" in why


def test_repeated_points_count_once():
    inputs = {name: np.repeat(column, 9) for name, column in grid(2, 2).items()}
    assert "4 points" in str(shortfall(LAW, inputs))


def test_a_tree_has_a_point_a_branch_and_a_chain_none():
    tree = composed("stages=trunk_and_cooldowns", "stages.branches=[1M,2M]")
    runs = {
        Path("tree"): tree,
        Path("run"): composed("budget.steps=10"),
        Path("chain"): composed("stages=docs_then_code"),
    }
    points = points_of(runs)
    assert [(point.folder.name, point.D) for point in points] == [("tree", 1e6), ("tree", 2e6), ("run", 10 * 4096)]
    assert {point.N for point in points} == {size(tree["model"], BYTES_VOCABULARY).active}


def test_a_fine_tuning_run_is_a_row_with_the_replayed_share_taken_from_its_tokens():
    base = composed("budget.tokens=1M")
    tuned = composed("init=checkpoint", "init.path=base/main", "retention=replay", "retention.replay.fraction=0.25",
                     "budget.tokens=2M")  # fmt: skip
    points = points_of({Path("base"): base, Path("tuned"): tuned})
    (row,) = fine_tunes(points)
    assert (row["D"], row["steps"], row["p"]) == (1.5e6, 2e6, 0.25)
    assert row["M"] == round(1e6 / points[0].N, 1)
    with pytest.raises(ValueError, match="fine-tunes"):
        fine_tunes(points[:1])


def test_the_study_of_a_config_refuses_options_that_cannot_be():
    assert study_of(composed()) is None
    with pytest.raises(ConfigError, match=r"study\.law"):
        study_of({"study": {"_target_": "kleiber.studies.Scaling", "law": "power"}})
