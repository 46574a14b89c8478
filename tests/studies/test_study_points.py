"""Planned points of runs, branches and fine-tunes, before anything is trained."""

from pathlib import Path

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.model_size import BYTES_VOCABULARY, size
from kleiber.studies.study import build_study, fine_tunes, planned_points
from kleiber.types import Json

COMPOSER = Composer()


def composed(*overrides: str) -> Json:
    return resolve_config(COMPOSER.compose(list(overrides)))[0]


def test_a_tree_has_a_point_a_branch_and_a_chain_one_of_all_its_stages():
    tree = composed("stages=trunk_and_cooldowns", "stages.branches=[1M,2M]")
    runs = {
        Path("tree"): tree,
        Path("run"): composed("budget.steps=10"),
        Path("chain"): composed(
            "stages=docs_then_code", "stages.chain.code.budget.tokens=null", "+stages.chain.code.budget.epochs=2"
        ),
    }
    points = planned_points(runs)
    ends = [("tree", 1e6), ("tree", 2e6), ("run", 10 * 4096), ("chain", 4e6 + 2e6)]
    assert [(point.folder.name, point.D) for point in points] == ends
    assert {point.N for point in points} == {size(tree["model"], BYTES_VOCABULARY).active}
    tuned = composed("objective=classify", "data=labelled", "data.path=x")
    (in_epochs,) = planned_points({Path("tuned"): tuned})
    assert in_epochs.D == 3e6, "three passes over data that is not read"
    assert not in_epochs.counted and [point.counted for point in points] == [True, True, True, False]


def test_a_fine_tuning_run_is_a_row_with_the_replayed_share_taken_from_its_tokens():
    base = composed("budget.tokens=1M")
    tuned = composed("init=checkpoint", "init.path=base/main", "retention=replay", "retention.replay.fraction=0.25",
                     "budget.tokens=2M")  # fmt: skip
    points = planned_points({Path("base"): base, Path("tuned"): tuned})
    (row,) = fine_tunes(points)
    assert (row["D"], row["steps"], row["p"]) == (1.5e6, 2e6, 0.25)
    assert row["M"] == round(1e6 / points[0].N, 1)
    with pytest.raises(ValueError, match="fine-tunes"):
        fine_tunes(points[:1])


def test_the_study_of_a_config_refuses_options_that_cannot_be():
    assert build_study(composed()) is None
    with pytest.raises(ConfigError, match=r"study\.law"):
        build_study({"study": {"_target_": "kleiber.studies.Scaling", "law": "power"}})
