"""Activation checkpoints: the same gradients from less memory, and what is computed again."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training.test_trainer import gradients, small

from kleiber.models.generation import generate
from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.moe import interleaved_moe
from kleiber.training.recomputation import PRODUCTS, checkpoint_activations, product_bytes
from kleiber.types.batch import Batch

SELECTIVE = {
    "gpt": {"dropout": 0.2},
    "moe": {"mlp": partial(interleaved_moe, num_experts=4, k=2)},
    "delta": {"attention": partial(GatedDeltaNet, chunk=8)},
    "capped": {"attention": partial(FullAttention, soft_cap=30.0)},
}


def kept_bytes(model: Transformer) -> int:
    """Bytes of the distinct storages that a forward pass keeps for the backward pass, weights left out."""
    weights, sizes = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(Batch(torch.zeros(2, 32, dtype=torch.long)))
    total = sum(sizes.values())
    del output
    return total


@pytest.mark.parametrize("options", [{}, {"mlp": partial(interleaved_moe, num_experts=4, k=2)}], ids=["gpt", "moe"])
def test_checkpointed_activations_give_the_same_gradients_from_less_memory(options):
    plain, light = small(**options), small(**options)
    checkpoint_activations(light)
    assert list(light.state_dict()) == list(plain.state_dict())
    assert kept_bytes(light) < 0.25 * kept_bytes(plain)
    recomputed = gradients(light)
    for name, expected in gradients(plain).items():
        assert torch.equal(recomputed[name], expected)


class Products(TorchDispatchMode):
    """Counts matrix products and attentions, and other operations."""

    def __init__(self):
        super().__init__()
        self.products = self.others = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function in PRODUCTS
        self.others += function not in PRODUCTS
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", SELECTIVE)
def test_selective_checkpoints_compute_no_product_again_and_the_same_gradients(kind, bf16):
    plain, light = small(**SELECTIVE[kind]), small(**SELECTIVE[kind])
    checkpoint_activations(light, keep_products=True)
    counted, results = [Products(), Products()], []
    for model, count in zip((plain, light), counted, strict=True):
        torch.manual_seed(1)
        with count, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            results.append(gradients(model))
    assert counted[1].products == counted[0].products > 0
    assert counted[1].others > counted[0].others, "the rest is computed again"
    for name, expected in results[0].items():
        assert torch.equal(results[1][name], expected), name


def test_a_model_with_checkpointed_activations_still_decodes_from_a_cache():
    plain, light = small(), small()
    checkpoint_activations(light)
    prompt = torch.arange(10)[None]
    assert torch.equal(generate(plain, prompt, 6, temperature=0.0), generate(light, prompt, 6, temperature=0.0))


def test_bytes_of_products_are_those_of_a_row():
    """Queries, keys and values, attention, its output, the three matrices of the MLP: of 32 positions in fp32."""
    model = small()
    width, hidden = 64, model.blocks[0].mlp.down.weight.shape[1]
    of_position = 2 * (3 * width + width + width + 2 * hidden + width)
    assert product_bytes(model, 32) >= 4 * 32 * of_position
    assert product_bytes(model, 32) == pytest.approx(2 * product_bytes(model, 16), rel=0.1)
