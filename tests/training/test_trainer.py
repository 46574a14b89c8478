"""Compilation, activation checkpoints and deterministic kernels; none of them changes the names of weights."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import PATIENCE
from safetensors.torch import load_file

from kleiber.config.errors import ConfigError
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe
from kleiber.objectives.clm import CLM
from kleiber.training.lightning import silence
from kleiber.training.trainer import Local, chosen_device, data_sheet_peak
from kleiber.types.batch import Batch


def small(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(96, width=64, depth=2, context=32, **options)


def gradients(model: Transformer, rows: int = 2) -> dict[str, torch.Tensor]:
    batch = Batch(torch.randint(96, (rows, 33), generator=torch.Generator().manual_seed(1)))
    CLM()(model, batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# In a process of its own: the checks of shapes that pytest installs are no code that can be compiled.
ONE_GRAPH = """
import torch
from functools import partial
from kleiber.models.transformer import Transformer
from kleiber.nn.window import WindowAttention
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.patterns import NoMixing
from kleiber.nn.mlp import GELU
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch

def gradients(prepare, **options):
    torch.manual_seed(0)
    model = Transformer(96, width=64, depth=1, context=32, **options)
    prepare(model)
    batch = Batch(torch.randint(96, (2, 33)))
    if model.causal:
        CLM()(model, batch).total.backward()
    else:
        (model(Batch(batch.tokens[:, 1:])).hidden @ model.head.weight.T).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}

for options in (
    dict(num_kv_heads=1, attention=partial(WindowAttention, window=5)), dict(mlp=GELU, causal=False, qk_norm=False),
    dict(attention=NoMixing, tied=False, soft_cap=30.0), dict(attention=partial(GatedDeltaNet, chunk=8)),
):
    plain = gradients(lambda model: None, **options)
    for name, found in gradients(lambda model: model.compile(backend="aot_eager", fullgraph=True), **options).items():
        torch.testing.assert_close(found, plain[name], rtol=1e-4, atol=1e-5)
mixture = Transformer(96, width=64, depth=1, context=32, mlp=partial(interleaved_moe, num_experts=4, k=2))
mixture.compile(backend="aot_eager")  # in bf16 on a CPU the products of experts are outside of the graph
with torch.autocast("cpu", torch.bfloat16):
    CLM()(mixture, Batch(torch.randint(96, (2, 33)))).total.backward()
print("one graph each")
"""


@pytest.mark.slow
def test_a_model_is_one_graph_with_the_same_gradients():
    done = subprocess.run([sys.executable, "-c", ONE_GRAPH], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "one graph each\n", done.stderr


def test_several_devices_are_refused_by_the_trainer_of_one_with_what_to_write():
    with pytest.raises(ValueError, match=r"trainer\.devices=2.*trainer=ddp"):
        Local(devices=2)


def test_deterministic_refuses_kernels_that_are_not():
    try:
        silence(rank_zero=True)
        Local(deterministic=True).trainer([], [], 1)
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))


@pytest.mark.slow
@torch.no_grad()
def test_every_width_of_padded_rows_is_compiled(unchecked, monkeypatch):
    model, graphs = small(), []
    monkeypatch.setattr(Local, "compile_model", lambda _, m: m.compile(dynamic=False, backend=count))

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=3, accumulated_recompile_limit=3):
        Local(compile=True).prepare_model(small(mlp=partial(interleaved_moe, num_experts=4, k=2)))
        assert torch._dynamo.config.recompile_limit == 3, "its shapes would never end"
        Local(compile=True).prepare_model(model)
        for width in (8, 16, 24, 32):
            for rows in (2, 1):
                before = len(graphs)
                model(Batch(torch.zeros(rows, width, dtype=torch.long)))
                assert len(graphs) > before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo asks every input of a block for its gradient
def test_blocks_of_a_deep_model_share_a_graph_with_the_same_gradients(unchecked, monkeypatch):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    plain, deep, shallow = (Transformer(96, width=16, depth=depth, context=32) for depth in (10, 10, 2))
    deep.load_state_dict(plain.state_dict())
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compile_module(module, backend=count, **how))
    Local(compile=True).prepare_model(shallow)
    gradients(shallow)
    assert len(graphs) == 1
    Local(compile=True).prepare_model(deep)
    compiled = gradients(deep)
    assert len(graphs) == 2, "one for ten blocks"
    for name, expected in gradients(plain).items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=1e-5)


def loss(folder: Path) -> float:
    metrics = json.loads((folder / "summary.json").read_text())["stages"][0]["metrics"]
    (final_loss,) = (value for name, value in metrics.items() if name.endswith("/loss"))
    return final_loss


@pytest.mark.slow
def test_bf16_is_another_arithmetic_with_the_same_weights_on_disk(launch):
    options = ["budget.steps=4", "trainer.max_steps=4"]
    full, half = launch(*options), launch(*options, "trainer.precision=bf16")
    assert 0 < abs(loss(half) - loss(full)) < 0.05
    for folder in (full, half):
        (weights,) = folder.glob("stages/main/checkpoints/step-00000004/model.safetensors")
        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_compiled_run_is_the_plain_one_and_keeps_what_it_compiled(launch, process, monkeypatch, tmp_path):
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    options = ["budget.steps=6", "trainer.max_steps=6", "batch.micro=3"]

    def compiled(root: str) -> tuple[Path, set[Path]]:
        _, err = (done := process(*options, "trainer.compile=true", root=root)).communicate(timeout=PATIENCE)
        assert done.returncode == 0, err
        graphs = tmp_path / "cache" / "inductor" / "fxgraph"
        return next((tmp_path / root).glob("*/*")), {path for path in graphs.rglob("*") if path.is_file()}

    plain, (first, graphs), (second, later) = launch(*options), compiled("first"), compiled("second")
    assert graphs and graphs == later
    assert loss(first) == pytest.approx(loss(plain), rel=1e-4)
    assert loss(second) == loss(first)
    names = [load_file(next(f.glob("**/step-00000006/model.safetensors"))).keys() for f in (plain, first)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA B200", 2250e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA A10", 125e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA GeForce GTX 1080", None),
    ],
)  # fmt: skip
def test_a_device_has_the_peak_of_its_data_sheet(name, peak):
    assert data_sheet_peak(name) == peak


@pytest.mark.parametrize(("name", "gpu", "device"), [(None, True, "cuda"), (None, False, "cpu"), ("cpu", True, "cpu")])
def test_a_command_computes_on_the_gpu_where_there_is_one(monkeypatch, name, gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert chosen_device(name).type == device


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device"):
        chosen_device("gpu")
