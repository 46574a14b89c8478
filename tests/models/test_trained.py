"""The model of a finished run is the one that was saved, and damage is passed over or told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kleiber import checkpoint
from kleiber.models.trained import trained
from kleiber.models.transformer import Transformer
from kleiber.types import Batch


@pytest.fixture
def saved(tmp_path: Path) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(64, depth=1, width=32, context=16, tied=False)
    net.add_head("task", 3)
    torch.nn.init.normal_(net.heads["task"].weight)
    target = "kleiber.models.transformer.Transformer"
    (tmp_path / "config.yaml").write_text(
        f"model: {{_target_: {target}, depth: 1, width: 32, context: 16, tied: false}}"
    )
    stages = [{"name": name, "data": {"tokenizer_hash": "bytes/1"}} for name in ("first", "last")]
    (tmp_path / "summary.json").write_text(json.dumps({"stages": stages}))
    for stage in ("first", "last"):
        for step in (5, 10):
            checkpoint.save(tmp_path / f"stages/{stage}/checkpoints", step, net, {}, "hash")
            torch.nn.init.normal_(net.embedding.weight)
    return net


def test_it_is_the_last_stage_or_the_one_that_was_named(saved: Transformer, tmp_path: Path) -> None:
    first, last, same = (trained(str(tmp_path / name), "path").model for name in ("first", "last", ""))
    assert torch.equal(last.embedding.weight, same.embedding.weight)
    assert not torch.equal(first.embedding.weight, last.embedding.weight)
    assert torch.equal(last.heads["task"].weight, saved.heads["task"].weight)
    assert not torch.equal(last.head.weight, last.embedding.weight)
    last(Batch(torch.zeros(1, 4, dtype=torch.long)))


def test_damaged_weights_are_passed_over(saved: Transformer, tmp_path: Path) -> None:
    place = tmp_path / "stages/last/checkpoints"
    whole = trained(str(tmp_path), "path").model
    (place / "step-00000010/model.safetensors").write_bytes(b"cut")
    earlier = trained(str(tmp_path), "path").model
    assert not torch.equal(whole.embedding.weight, earlier.embedding.weight)
    (place / "step-00000005/meta.json").unlink()
    with pytest.raises(ValueError, match=r"path=.*: no good checkpoint in"):
        trained(str(tmp_path), "path")


def test_weights_of_another_model_are_refused(saved: Transformer, tmp_path: Path) -> None:
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("depth: 1", "depth: 2"))
    with pytest.raises(ValueError, match="its weights are not those of its model"):
        trained(str(tmp_path), "path")
