"""Which stages of a tree are evaluated after their last step."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from kleiber.data.order import Reading
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.runs.stage_evaluation import plan_reading
from kleiber.types.batch import Batch, Output


def test_the_samples_that_a_stage_reads_are_not_known_where_replay_mixes_in_others() -> None:
    corpus = SimpleNamespace(tokenizer=Bytes())

    def reading(method: str, privacy: dict | None = None) -> Reading | None:
        node = {"method": {"_target_": f"kleiber.retention.{method}"}}
        return plan_reading(OmegaConf.create({"seed": 3, "retention": node, "privacy": privacy}), corpus, 8, 5)  # type: ignore[arg-type]

    assert reading("Replay") is None
    assert reading("L2SP") == Reading(3, 8, 5) and reading("L2SP", {}) == Reading(3, 8, 5, poisson=True)


@pytest.mark.slow
def test_a_trunk_is_evaluated_by_tokens_alone_and_its_branches_at_their_ends(launch) -> None:
    tree = ["stages=trunk_and_cooldowns", "stages.branches=[5120,8192]", "trainer=cpu", "evals=[perplexity]"]
    run = launch(*tree)
    stages = {stage["name"]: stage for stage in json.loads((run / "summary.json").read_text())["stages"]}
    scored = {name: "eval/perplexity/tiny/loss" in stage["metrics"] for name, stage in stages.items()}
    assert scored == {"trunk": False, "5120": True, "8192": True}


def test_the_number_of_tokens_is_that_of_the_validation_in_passes_of_two_micro_batches(launch, monkeypatch) -> None:
    rows, forward = set(), Transformer.forward

    def count_rows(self: Transformer, batch: Batch, *arguments: object) -> Output:
        rows.add((torch.is_grad_enabled(), len(batch)))
        return forward(self, batch, *arguments)

    monkeypatch.setattr(Transformer, "forward", count_rows)
    run = launch("evals=[perplexity]", "eval.tokens=512", "batch.micro=1", "callbacks.samples=null")
    assert rows == {(True, 1), (False, 2)}
    scores = json.loads((run / "evals/perplexity.json").read_text())["scores"]["tiny"]
    metrics = json.loads((run / "summary.json").read_text())["stages"][-1]["metrics"]
    assert scores["loss"]["n"] == 512 and abs(scores["loss"]["value"] - metrics["val/tiny/loss"]) < 1e-5
