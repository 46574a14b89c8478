"""The stream of every layer can be read and changed, and reading changes nothing."""

import pytest
import torch
from evals.small_models import TIME, tiny
from torch import Tensor

from kleiber.evals.streams import (
    changed_input,
    changed_output,
    changed_stream,
    num_layers,
    read_streams,
)
from kleiber.types.batch import Batch

TOKENS = torch.arange(2 * TIME).reshape(2, TIME)


@pytest.mark.parametrize("kind", ["dense", "lstm", "moe"])
def test_the_streams_are_those_before_and_after_each_block(kind):
    model, batch = tiny(kind), Batch(TOKENS)
    before = model(batch).hidden
    streams = read_streams(model, batch)
    assert len(streams) == num_layers(model) == len(model.blocks) + 1
    assert torch.equal(model(batch).hidden, before)
    with torch.no_grad():
        assert torch.allclose(model.norm(streams[-1]), before, atol=1e-6)


def test_a_change_reaches_the_output_and_ends_with_its_context():
    model, batch = tiny("dense"), Batch(TOKENS)
    before = model(batch).hidden
    other = read_streams(model, Batch(TOKENS + 50))
    for layer in range(num_layers(model)):
        with changed_stream(model, layer, lambda stream, layer=layer: other[layer]):
            changed = model(batch).hidden
        assert torch.allclose(changed, model(Batch(TOKENS + 50)).hidden, atol=1e-5), layer
    block = model.blocks[0]

    def nothing(value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    for context in (changed_input(block.attention.out, nothing), changed_output(block.attention, nothing)):
        with context:
            assert not torch.allclose(model(batch).hidden, before)
    assert torch.equal(model(batch).hidden, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_models_of_transformers_have_streams(kind):
    from kleiber.models.hf import HFModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    model, batch = HFModel(64, kind, weights="random", config=sizes, context=16).eval(), Batch(TOKENS)
    other = read_streams(model, Batch(TOKENS + 30))
    assert len(other) == 3
    with torch.no_grad(), changed_stream(model, 2, lambda _: other[2]):
        assert torch.allclose(model(batch).hidden, model(Batch(TOKENS + 30)).hidden, atol=1e-5)
