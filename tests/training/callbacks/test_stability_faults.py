"""Planted faults are found and named; healthy runs of many kinds raise no alarm."""

import json
from pathlib import Path

import pytest
import torch
from small_run import REPOSITORY
from topic_choices import missing_topics

from kleiber.runs.stage import load_weights
from kleiber.training.step import accumulate

OPTIONS = ["trainer.max_steps=20", "model.depth=2", "model.attention.qk_norm=false", "callbacks.stability.every=5"]


def alarms(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("stability at step ")]


@pytest.fixture
def planted(monkeypatch):
    """Changes the model after its weights have been loaded, at the start of every stage."""

    def plant(change) -> None:
        def load(tree, stage, model, *rest):
            load_weights(tree, stage, model, *rest)
            with torch.no_grad():
                change(model)

        monkeypatch.setattr("kleiber.runs.stage.load_weights", load)

    return plant


@pytest.mark.slow
def test_a_head_whose_weights_are_20_times_too_large_is_named(launch, planted, capsys):
    def enlarge(model) -> None:  # queries and keys of head 1 of layer 1
        qkv, size = model.blocks[1].attention.qkv.weight, model.blocks[1].attention.head_dim
        for start in (size, 3 * size):
            qkv[start : start + size] *= 20

    planted(enlarge)
    launch(*OPTIONS)
    first = alarms(capsys.readouterr().err)
    assert [line.partition(" is ")[0] for line in first] == [
        "stability at step 5: largest attention logit of layer 1, head 1",
        "stability at step 5: attention entropy over its maximum of layer 1, head 1",
    ]


@pytest.mark.slow
def test_a_layer_without_a_gradient_is_named(launch, monkeypatch, capsys):
    def vanish(model, *rest):
        sums = accumulate(model, *rest)
        for parameter in model.blocks[0].parameters():
            parameter.grad *= 1e-6
        return sums

    monkeypatch.setattr("kleiber.training.lit.accumulate", vanish)
    launch(*OPTIONS)
    (line,) = alarms(capsys.readouterr().err)
    assert line.startswith("stability at step 5: gradient norm relative to the other layers of layer 0 is ")


SEEDS = ["trainer.max_steps=120", "budget.steps=120", "model.depth=2", "callbacks.checkpoints.every=20",
         "eval.every_steps=0", "callbacks.stability.every=10"]  # fmt: skip


def loss_of(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["stages"][0]["metrics"]["val/tiny/loss"]


@pytest.mark.slow
@pytest.mark.long
def test_a_gradient_a_thousand_times_too_large_is_named_and_rolled_back(launch, monkeypatch, capsys):
    healthy = [loss_of(launch(*SEEDS, f"seed={seed}", root="healthy")) for seed in range(3)]
    calls: list[int] = []

    def explode(model, *rest):
        sums = accumulate(model, *rest)
        calls.append(1)
        if len(calls) == 50:
            for parameter in model.blocks[1].parameters():
                parameter.grad *= 1e3
        return sums

    monkeypatch.setattr("kleiber.training.lit.accumulate", explode)
    capsys.readouterr()
    folder = launch(*SEEDS, "callbacks.stability.policy=rollback", root="harmed")
    (line,) = alarms(capsys.readouterr().err)
    assert line.startswith("stability at step 50: spike of the gradient: ") and "100% of it in layer 1" in line
    (rollback,) = json.loads((folder / "summary.json").read_text())["stages"][0]["rollbacks"]
    assert (rollback["step"], rollback["to"]) == (50, 40)
    noise = max(healthy) - min(healthy)
    print(f"healthy {healthy}, rolled back {loss_of(folder)}")
    assert min(healthy) - noise <= loss_of(folder) <= max(healthy) + noise


DATA = REPOSITORY / "tests/data"
SMALL = ["model.width=32", "model.depth=2", "model.num_heads=2"]
PREFERENCE = ["data=preference", f"data.path={DATA / 'preference.jsonl'}"]
HF = "model.config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}"
KINDS = {
    "dense": SMALL,
    "mixture": ["model=moe", *SMALL],
    "bert": ["model=bert", "objective=mlm", *SMALL],
    "sft": [*SMALL, "data=instruct", f"data.path={DATA / 'instruct.jsonl'}", "objective=sft"],
    "dpo": [*SMALL, *PREFERENCE, "objective=dpo", "init=checkpoint", "init.path=BASE"],
    "kto": [*SMALL, "data=unpaired", f"data.path={DATA / 'unpaired.jsonl'}", "objective=kto", "init=checkpoint",
            "init.path=BASE"],
    "lora": [*SMALL, "init=checkpoint", "init.path=BASE", "adapter=lora", "data.domain=code"],
    "ewc": [*SMALL, "stages=docs_then_code", "retention=ewc"],
    "muon": [*SMALL, "optimizer=muon"],
    "lion": [*SMALL, "optimizer=lion"],
    "cosine": [*SMALL, "schedule=cosine"],
    "bf16": [*SMALL, "trainer.precision=bf16"],
    "window": [*SMALL, "model/attention=window", "model.attention.window=16"],
    "no QK-norm": [*SMALL, "model.attention.qk_norm=false"],
    "standard": [*SMALL, "model/parametrization=standard", "optimizer.lr=0.003"],
    "no attention": [*SMALL[:2], "model/attention=none"],
    "untied, z-loss": [*SMALL, "model.tied=false", "objective.z_loss=1e-4"],
    "deep": ["model.width=32", "model.depth=6", "model.num_heads=2"],
    "recall": [*SMALL, "data=recall"],
    "transformers": ["model=hf", "model.path=llama", "model.weights=random", HF, "optimizer.lr=0.003"],
    "high rate": [*SMALL, "optimizer.lr=0.05"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_at_most_one_in_20_healthy_runs_raises_an_alarm(tmp_path, cache_dir, capsys):
    from kleiber.launch.main import main

    common = [
        f"root={tmp_path}", "model.context=64", "batch.tokens=512", "budget.steps=150", "eval.every_steps=0",
        "eval.tokens=4096", "logger=csv", "trainer.threads=1", "callbacks.samples=null", "data.max_bytes=600K",
    ]  # fmt: skip
    raised, base = {}, Path()
    for name, options in KINDS.items():
        if missing_topics(options):
            continue
        before = set(tmp_path.glob("*/*"))
        capsys.readouterr()
        assert main([*common, *(option.replace("BASE", str(base)) for option in options)]) == 0, name
        lines = alarms(capsys.readouterr().err)
        if lines:
            raised[name] = lines
        base = base if name != "dense" else next(iter(set(tmp_path.glob("*/*")) - before))
    assert len(raised) <= len(KINDS) // 20, raised
