"""The measures equal a slow computation, name planted faults, ignore padding, and leave model and generators alone."""

import math

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.moe import MoE
from kleiber.nn.patterns import NoMixing
from kleiber.nn.window import WindowAttention
from kleiber.training.callbacks import stability_measures
from kleiber.training.callbacks.stability_measures import (
    Measures,
    add_updates,
    gradient_norms,
    layers_of,
    look_inside,
    matrices_of,
    rows_of,
    sample_entries,
)
from kleiber.types.batch import Batch


def model_of(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(64, depth=2, width=32, num_heads=4, context=16, **options)


def tokens(rows: int = 2, time: int = 16) -> torch.Tensor:
    return torch.randint(0, 64, (rows, time), generator=torch.Generator().manual_seed(1))


def slowly(model: Transformer, batch: Batch) -> dict[str, list[float]]:
    """Loops over layers, heads and queries of a dense model without window or padding."""
    x, values = model.embedding(batch.tokens) * model.embedding_multiplier, {}
    for layer, block in enumerate(model.blocks):
        q, k, _ = block.attention.project(block.attention_norm(x))
        largest, entropies = [], []
        for head in range(q.shape[1]):
            logits = [
                block.attention.scale
                * k[row, head // (q.shape[1] // k.shape[1]), : t + 1 if model.causal else None]
                @ q[row, head, t]
                for row in range(len(x))
                for t in range(x.shape[1])
            ]
            largest.append(max(float(each.abs().max()) for each in logits))
            weights = [each.softmax(0) for each in logits if len(each) > 1]
            entropies.append([float(-(p * p.log()).sum() / math.log(len(p))) for p in weights])
        values[f"attention_logit/{layer}"] = largest
        values[f"attention_entropy/{layer}"] = [sum(each) / len(each) for each in entropies]
        x, _ = block(x, None, batch, None)
        values[f"activation/{layer}"] = [float(x.square().mean().sqrt())]
    return values | {"log_z": [float(model.head(model.norm(x)).logsumexp(-1).mean())]}


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"num_kv_heads": 2}, {"qk_norm": False}])
def test_measures_equal_the_slow_computation(options):
    model, batch = model_of(**options), Batch(tokens())
    with torch.no_grad():
        expected = slowly(model, batch)
    measured = look_inside(model, batch).values()
    assert measured.keys() == expected.keys()
    for name, values in expected.items():
        assert measured[name] == pytest.approx(values, rel=1e-4), name


def test_a_head_with_large_weights_is_found():
    model = model_of(qk_norm=False)
    batch = Batch(tokens())
    before = look_inside(model, batch).values()["attention_logit/1"]
    with torch.no_grad():  # query weights of head 2
        model.blocks[1].attention.qkv.weight[16:24] *= 20
    after = look_inside(model, batch).values()
    assert after["attention_logit/1"] == pytest.approx(
        [20 * v if h == 2 else v for h, v in enumerate(before)], rel=1e-4
    )
    assert min(range(4), key=after["attention_entropy/1"].__getitem__) == 2


def test_uniform_attention_has_an_entropy_of_1_and_one_key_that_of_0():
    model = model_of(qk_norm=False)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[:64] = 0
    assert look_inside(model, Batch(tokens())).values()["attention_entropy/0"] == pytest.approx([1.0] * 4)
    model = model_of(attention=lambda site, **options: WindowAttention(site, window=1, **options))
    values = look_inside(model, Batch(tokens())).values()  # a query that reads itself has no choice, and does not count
    assert values["attention_entropy/0"] == [0.0] * 4 and min(values["attention_logit/0"]) > 0


def test_padding_changes_nothing():
    model, row = model_of(), tokens(1, 8)
    padded = torch.cat([row, torch.zeros(1, 8, dtype=torch.long)], 1)
    real = torch.arange(16)[None] < 8
    alone, beside = (look_inside(model, batch).values() for batch in (Batch(row), Batch(padded, real)))
    for name, values in alone.items():
        assert beside[name] == pytest.approx(values, rel=1e-5), name


def test_long_rows_are_measured_at_some_positions(monkeypatch):
    model, batch = model_of(), Batch(tokens())
    whole = look_inside(model, batch).values()
    monkeypatch.setattr(stability_measures, "QUERIES", 4)
    part = look_inside(model, batch).values()
    assert 0 < part["attention_logit/0"][0] <= whole["attention_logit/0"][0]
    assert part["activation/0"] == whole["activation/0"] and part["log_z"] != whole["log_z"]


class Drawing(FullAttention):
    """Attention that draws a random number in every forward pass, as a layer of a user's own may."""

    def forward(self, x, mask=None, cache=None):
        return super().forward(x, mask, cache) + 0 * torch.rand(1)


@pytest.mark.parametrize("options", [{"mlp": MoE}, {"dropout": 0.5}, {"attention": NoMixing}, {"attention": Drawing}])
def test_looking_changes_neither_the_model_nor_the_generators(options):
    heads = {} if options.get("attention") is NoMixing else {"num_heads": 4}
    torch.manual_seed(0)
    model = Transformer(64, depth=1, width=32, context=16, **heads, **options)
    model.blocks[0].requires_grad_(True)
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    values = look_inside(model, Batch(tokens())).values()
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert ("attention_logit/0" in values) == (options.get("attention") is not NoMixing)


def test_rows_are_cut_to_the_context_and_have_no_targets():
    batch = Batch(tokens(3, 16), torch.ones(3, 16, dtype=torch.bool), labels=torch.ones(3), samples=torch.arange(3))
    part = rows_of(batch, 2, 8)
    assert part.tokens.shape == (2, 8) and part.real is not None and part.real.shape == (2, 8)
    assert part.labels is None and part.samples is not None and part.samples.tolist() == [0, 1]


def test_gradients_by_layer_are_norms_of_their_parameters():
    model = model_of()
    model.blocks[0].requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    counts = {name: sum(p.numel() for p in parameters) for name, parameters in layers_of(model).items()}
    assert counts.keys() == {"embedding", "layer 1", "output"}
    assert gradient_norms(layers_of(model)) == pytest.approx({name: n**0.5 for name, n in counts.items()})
    assert model.norm.weight.grad is not None
    model.norm.weight.grad[0] = math.nan
    assert gradient_norms(layers_of(model))["output"] == math.inf


def test_the_update_ratio_is_that_of_each_matrix():
    model, measures = model_of(), Measures()
    with torch.no_grad():
        model.blocks[1].attention.out.weight.zero_()
    before = sample_entries(matrices_of(model).values())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.25)
    add_updates(measures, before, matrices_of(model))
    values = measures.values()
    assert values.pop("update/blocks.1.attention.out.weight") == [0.0]
    assert len(values) == 8 and all(value == pytest.approx([0.25]) for value in values.values())


def test_large_matrices_are_sampled(monkeypatch):
    monkeypatch.setattr(stability_measures, "ENTRIES", 100)
    model = model_of()
    assert all(len(part) <= 100 for part in sample_entries(matrices_of(model).values()))
