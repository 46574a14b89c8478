"""budget.stop_at_loss ends training with the scores that reach it, also after a kill."""

import json

import pytest

from kleiber.config.stages import Budget

OPTIONS = ["budget.steps=20", "eval.every_steps=4", "callbacks.checkpoints.every=0"]


def stage(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())["stages"][0]


def loss(row: dict) -> float:
    return next(value for key, value in row.items() if key.startswith("val/") and key.endswith("/loss"))


@pytest.mark.slow
def test_the_first_scores_below_it_end_training(launch):
    whole = stage(launch(*OPTIONS))
    target = loss(whole["curve"][1]) + 1e-6
    folder = launch(*OPTIONS, f"budget.stop_at_loss={target}")
    early = stage(folder)
    assert (early["steps"], early["tokens"], early["stopped_at_loss"]) == (8, 8 * 512, target)
    assert early["curve"] == whole["curve"][:2] and whole["stopped_at_loss"] is None
    assert early["checkpoint"].endswith("step-00000008") and (folder / "samples.txt").exists()
    (folder / "summary.json").unlink()  # killed between the last step and the summary
    launch(*OPTIONS, f"budget.stop_at_loss={target}")
    assert stage(folder)["steps"] == 8 and stage(folder)["stopped_at_loss"] == target


@pytest.mark.slow
def test_one_that_is_not_reached_changes_nothing(launch):
    record = stage(launch(*OPTIONS, "budget.stop_at_loss=0.001"))
    assert (record["steps"], record["stopped_at_loss"]) == (20, None)


def test_it_stands_beside_a_budget():
    assert Budget(steps=5, stop_at_loss=1.0).limits() == {"steps": 5}


@pytest.mark.slow
def test_a_stage_of_a_chain_that_stops_early_has_its_whole_row_of_scores(launch, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("a line of another kind, again and again. " * 400)
    two = f"two:{{data:{{path:{other}}},budget:{{steps:20}}}}"
    chain = ["stages=chain", f"stages.chain={{one:{{budget:{{steps:20}}}},{two}}}", "eval.every_steps=2"]
    folder = launch(*chain, "budget.stop_at_loss=100", "callbacks.samples=null")
    summary = json.loads((folder / "summary.json").read_text())
    assert [(stage["steps"], stage["branch_step"]) for stage in summary["stages"]] == [(2, None), (2, 2)]
    assert all(value is not None for row in summary["R"]["matrix"] for value in row)
