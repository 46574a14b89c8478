"""Which stages of a tree are evaluated after their last step."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_a_trunk_is_evaluated_by_tokens_alone_and_its_branches_at_their_ends(launch) -> None:
    tree = ["stages=trunk_and_cooldowns", "stages.branches=[5120,8192]", "trainer=cpu", "evals=[perplexity]"]
    run = launch(*tree)
    stages = {stage["name"]: stage for stage in json.loads((run / "summary.json").read_text())["stages"]}
    scored = {name: "eval/perplexity/tiny/loss" in stage["metrics"] for name, stage in stages.items()}
    assert scored == {"trunk": False, "5120": True, "8192": True}


def test_the_number_of_tokens_is_that_of_the_validation(launch) -> None:
    run = launch("evals=[perplexity]", "eval.tokens=128")
    scores = json.loads((run / "evals/perplexity.json").read_text())["scores"]["tiny"]
    metrics = json.loads((run / "summary.json").read_text())["stages"][-1]["metrics"]
    assert scores["loss"]["n"] == 128 and abs(scores["loss"]["value"] - metrics["val/tiny/loss"]) < 1e-5
