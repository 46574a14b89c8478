"""Runs through an adapter: what is saved, that a stopped run ends the same, and what starts from one has all of it."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from kleiber.runs.huggingface import export
from kleiber.runs.open import open_model
from kleiber.types.batch import Batch

KINDS = {
    "lora": ["adapter=lora", "adapter.rank=2"],
    "dora": ["adapter=dora", "adapter.rank=2"],
    "freeze": ["adapter=freeze", "adapter.freeze=[embedding,experts]"],
}


def weights(folder) -> dict[str, torch.Tensor]:
    summary = json.loads((folder / "summary.json").read_text())
    return load_file(folder / summary["stages"][-1]["checkpoint"] / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_run_saves_its_part_resumes_to_the_bit_and_is_opened_whole(launch, interrupted, tmp_path, kind):
    base = launch("model=moe", "trainer.max_steps=2", root="base")
    options = [
        "init=checkpoint",
        f"init.path={base}",
        *KINDS[kind],
        "trainer.max_steps=6",
        "callbacks.checkpoints.every=2",
    ]
    straight = launch(*options, root="straight")
    with interrupted(2):
        launch(*options, root="stopped", code=130)
    resumed = launch(*options, root="stopped")
    one, other = weights(straight), weights(resumed)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    before = weights(base)
    if kind != "freeze":
        assert all("lora" in name for name in one) and any("experts" in name for name in one)
        assert any(name.endswith("_lora_m") for name in one) == (kind == "dora")
    else:
        assert one.keys() == {n for n in before if "embedding" not in n and "experts" not in n}
    opened, plain = open_model(str(straight)), open_model(str(base))
    assert list(opened.model.state_dict()) == list(plain.model.state_dict())
    assert torch.equal(opened.model.embedding.weight, plain.model.embedding.weight)
    changed = opened.model.blocks[0].attention.qkv.weight
    assert not torch.equal(changed, plain.model.blocks[0].attention.qkv.weight)
    export(str(straight), tmp_path / "out")
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([opened.tokenizer.encode("The keeper weighed the mice")])
    with torch.no_grad():
        ours = opened.model.head(opened.model(Batch(ids)).hidden)
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, ours, atol=1e-5, rtol=1e-5
        )
    # A further run starts from the merged weights: its score at a rate of nothing is that of the adapted one.
    further = launch(
        "init=checkpoint", f"init.path={straight}", "trainer.max_steps=1", "optimizer.lr=1e-12", root="further"
    )
    last = [json.loads((f / "summary.json").read_text())["stages"][-1]["metrics"] for f in (straight, further)]
    scores = [{key: value for key, value in found.items() if key.startswith("val/")} for found in last]
    assert scores[0] and scores[1] == pytest.approx(scores[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra peft")
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_wrapped_model_trains_through_peft_and_resumes_to_the_bit(shared, launch, interrupted, kind):
    source = shared / "data" / "models" / "stories260K"
    options = ["model=hf", f"model.path={source}", f"adapter={kind}", "adapter.rank=2", "trainer.max_steps=6"]
    options += ["callbacks.checkpoints.every=2", "optimizer.lr=1e-3"]
    straight = launch(*options, root="straight")
    with interrupted(2):
        launch(*options, root="stopped", code=130)
    one, other = weights(straight), weights(launch(*options, root="stopped"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert one and all("lora_" in name for name in one)
    assert any("magnitude" in name for name in one) == (kind == "dora")
    assert not any("lora" in name for name in open_model(str(straight)).model.state_dict())
