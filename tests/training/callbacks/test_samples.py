"""Latency and samples after the last step, without an effect on training."""

import json
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from tables import jsonl

import kleiber
from kleiber.data.tokenizers import Bytes
from kleiber.training.callbacks.samples import Samples
from kleiber.types.model import Model

INSTRUCT = Path(__file__).parents[2] / "data" / "instruct.jsonl"
NAMES = {"prefill_tokens_per_s", "decode_tokens_per_s", "decode_p50_ms", "decode_p95_ms", "memory_bytes"}
TREE = ["stages=trunk_and_cooldowns", "stages.branches=[2048,4096]", "eval.tokens=512"]
FEW = ["evals=[latency]", "evals.latency.batches=[1,3]"]
SHAPE = "{hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64}"
HF = ["model=hf", "model.path=llama", "model.weights=random", "model.context=64", f"model.config={SHAPE}"]


def summary(folder: Path) -> dict:
    content = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(
        content, json.loads((Path(kleiber.__file__).parent / "records" / "summary.schema.json").read_text())
    )
    return content


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("model.safetensors")}


def apart(metrics: dict) -> tuple[dict, dict]:
    """The latency among the metrics, and the others."""
    kinds: tuple[dict, dict] = {}, {}
    for name, value in metrics.items():
        kinds[not name.startswith("eval/latency/random/")][name] = value
    return kinds


def assert_same_weights(folder: Path, other: Path) -> None:
    first, second = weights(folder), weights(other)
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[place][name], t) for place, tensors in second.items() for name, t in tensors.items())


@pytest.mark.parametrize("model", ["moe", pytest.param("gpt", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_branches_log_their_latency_and_train_bit_identically(launch, model):
    options = [f"model={model}", *TREE]
    plain, timed = launch(*options, root="plain"), launch(*options, *FEW, root="timed")
    assert plain.name == timed.name, "who watches is not part of what a run is"
    assert_same_weights(plain, timed)
    stages, without = summary(timed)["stages"], summary(plain)["stages"]
    for stage, other in zip(stages, without, strict=True):
        latencies, scores = apart(stage["metrics"])
        asked = {f"eval/latency/random/{name}/{rows}" for name in NAMES for rows in (1, 3)}
        assert set(latencies) == (asked if stage["parent"] else set()), "a trunk is not what is served"
        assert all(value > 0 for value in latencies.values())
        assert scores == other["metrics"] and [apart(row)[1] for row in stage["curve"]] == other["curve"]
    logged = [json.loads(line) for line in (timed / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/latency/random/memory_bytes/3" in row for row in logged) == 2


@pytest.mark.slow
def test_a_wrapped_model_is_measured_too(launch):
    few = [*HF, "trainer.max_steps=2"]
    plain, timed = launch(*few, root="plain"), launch(*few, *FEW, root="timed")
    latencies, _ = apart(summary(timed)["stages"][0]["metrics"])
    assert len(latencies) == 2 * len(NAMES)
    assert_same_weights(plain, timed)


@pytest.mark.slow
def test_an_adapted_stage_is_measured_where_nothing_follows_it(launch):
    base = launch("trainer.max_steps=2", root="base")
    lora = ["init=checkpoint", f"init.path={base}", "adapter=lora", "adapter.rank=2", "trainer.max_steps=2"]
    plain, timed = launch(*lora, root="plain"), launch(*lora, *FEW, root="timed")
    assert len(apart(summary(timed)["stages"][0]["metrics"])[0]) == 2 * len(NAMES)
    assert_same_weights(plain, timed)


def module(**attributes) -> SimpleNamespace:
    model = Model()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    for name, value in attributes.items():
        setattr(model, name, value)
    return SimpleNamespace(model=model, device=torch.device("cpu"))


@pytest.mark.parametrize(("choice", "prompt"), [(None, [97, 98]), ("bos", [257, 97, 98])])
def test_a_prompt_begins_with_the_begin_token(choice, prompt, tmp_path, monkeypatch):
    class Begun(Bytes):
        bos, mask = 257, -1

    prompts = []

    def generate(model, ids, length, **options):
        prompts.append(ids.tolist())
        return torch.cat([ids, ids[:, :1].expand(-1, length)], 1)

    monkeypatch.setattr("kleiber.training.callbacks.samples.generate", generate)
    corpus = SimpleNamespace(tokenizer=Begun().with_separator(choice))
    Samples(tmp_path, corpus, num=2, prompt="ab").write(module(causal=True).model, [])
    assert prompts == [[prompt, prompt]]


def test_an_answer_of_a_conversation_ends_where_the_model_ends_it(launch, monkeypatch):
    def generate(model, ids, length, **options):
        return torch.cat([ids, torch.tensor([[*b"Yes", Bytes.eos, *b"No"]] * len(ids))], 1)

    monkeypatch.setattr("kleiber.training.callbacks.samples.generate", generate)
    folder = launch("objective=sft", "data=instruct", f"data.path={INSTRUCT}", "budget.steps=1")
    texts = (folder / "samples.txt").read_text().split("--- ")[1:]
    assert len(texts) == 3
    assert all(text.endswith("<|assistant|>\n>>>Yes\n") for text in texts)


@pytest.mark.slow
def test_an_objective_without_next_tokens_writes_no_samples(launch, tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    data = ["data=labelled", f"data.path={jsonl(tmp_path / 'rows.jsonl', rows)}"]
    folder = launch("objective=classify", *data, "budget.steps=1")
    assert not (folder / "samples.txt").exists()
