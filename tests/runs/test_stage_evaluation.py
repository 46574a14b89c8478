"""Which stages of a tree are evaluated after their last step."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from kleiber.data.order import Reading
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.runs.stage_evaluation import plan_reading, validation_interval
from kleiber.types.batch import Batch, Output


def test_the_samples_that_a_stage_reads_are_not_known_where_replay_mixes_in_others() -> None:
    corpus = SimpleNamespace(tokenizer=Bytes())

    def reading(method: str, privacy: dict | None = None) -> Reading | None:
        node = {"method": {"_target_": f"kleiber.retention.{method}"}}
        return plan_reading(OmegaConf.create({"seed": 3, "retention": node, "privacy": privacy}), corpus, 8, 5)  # type: ignore[arg-type]

    assert reading("Replay") is None
    assert reading("L2SP") == Reading(3, 8, 5) and reading("L2SP", {}) == Reading(3, 8, 5, poisson=True)


def stage_of(steps: int, every_steps: int | None = None, stop_at_loss: float | None = None, tokens: int | None = 500):
    settings = {"eval": {"every_steps": every_steps, "tokens": tokens}, "budget": {"stop_at_loss": stop_at_loss}}
    return SimpleNamespace(config=OmegaConf.create(settings), plan=SimpleNamespace(steps=steps, batch_tokens=100))


TASK = SimpleNamespace(held_out=SimpleNamespace(first=lambda limit: SimpleNamespace(num_tokens=limit or 4000)))


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"steps": 4}, 4),
        ({"steps": 5}, 3),
        ({"steps": 50}, 13),
        ({"steps": 39, "tokens": None}, 39),
        ({"steps": 4, "stop_at_loss": 3.0}, 1),
        ({"steps": 4, "every_steps": 3}, 3),
        ({"steps": 4, "every_steps": 0}, 0),
    ],
)
def test_a_stage_is_validated_as_often_as_configured_or_as_its_length_allows(options, every) -> None:
    assert validation_interval(stage_of(**options), [TASK]) == every  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", range(1, 60))
def test_validations_are_four_at_most_and_those_before_the_last_score_no_more_than_is_trained(steps) -> None:
    count = math.ceil(steps / validation_interval(stage_of(steps), [TASK]))  # type: ignore[list-item, arg-type]
    assert 1 <= count <= 4 and (count - 1) * 500 <= steps * 100


@pytest.mark.slow
def test_a_trunk_is_evaluated_by_tokens_alone_and_its_branches_at_their_ends(launch) -> None:
    tree = ["stages=trunk_and_cooldowns", "stages.branches=[5120,8192]", "trainer=cpu", "evals=[perplexity]"]
    run = launch(*tree)
    stages = {stage["name"]: stage for stage in json.loads((run / "summary.json").read_text())["stages"]}
    scored = {name: "eval/perplexity/tiny/loss" in stage["metrics"] for name, stage in stages.items()}
    assert scored == {"trunk": False, "5120": True, "8192": True}


@pytest.mark.slow
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
