"""Explicit attention equals the fused kernel's and that of transformers; summaries have the values of planted heads."""

from functools import partial

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mup import MuP, Site, StandardParametrization
from kleiber.nn.patterns import NoMixing
from kleiber.nn.window import WindowAttention
from kleiber.types.batch import Batch
from kleiber_topics.interpretability.attention import heads as heads_module
from kleiber_topics.interpretability.attention.heads import (
    HeadWeights,
    attention_layers,
    explicit_attention,
    first_tokens,
    head_metrics,
    induction_scores,
    read_attention,
)

TIME, WIDTH = 12, 32
KINDS = {
    "full": (FullAttention, {}),
    "shared keys": (FullAttention, {"num_heads": 4, "num_kv_heads": 2}),
    "one key head, no norm": (FullAttention, {"num_heads": 4, "num_kv_heads": 1, "qk_norm": False}),
    "window": (WindowAttention, {"window": 4}),
    "biased and capped": (FullAttention, {"positions": "alibi", "soft_cap": 2.0}),
    "latent": (LatentAttention, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("parametrization", [MuP(), StandardParametrization()])
def test_the_explicit_output_is_that_of_the_kernel(kind, causal, parametrization):
    make, options = KINDS[kind]
    module = make(Site(WIDTH, causal=causal, parametrization=parametrization), **options)
    x = torch.randn(3, TIME, WIDTH) * 3
    real = torch.ones(3, TIME, dtype=torch.bool)
    real[1, 8:] = False
    segments = torch.tensor([[0] * 5 + [1] * 7] * 3)
    for arguments in ({}, {"real": real}, {"segments": segments}, {"real": real, "segments": segments}):
        mask = module.mask(TIME, 0, x.device, **arguments)
        attention, output = explicit_attention(module, x, mask)
        assert torch.allclose(output, module(x, mask), atol=1e-5, rtol=1e-5)
        assert torch.allclose(attention.weights.sum(-1), torch.ones(()), atol=1e-5)
        assert (attention.weights[(~attention.allowed).expand_as(attention.weights)] == 0).all()


def collect(model: Transformer, batch: Batch) -> dict[int, HeadWeights]:
    parts: dict[int, list[HeadWeights]] = {}
    read_attention(model, batch, lambda layer, rows, heads: parts.setdefault(layer, []).append(heads))
    return {
        layer: HeadWeights(*(torch.cat(part) for part in zip(*found, strict=True))) for layer, found in parts.items()
    }


def test_layers_that_share_values_are_read_however_the_rows_are_split(monkeypatch):
    """`read_attention` raises ValueError where the explicit output is not that of the layer."""
    model = Transformer(50, 3, WIDTH, context=16, attention=partial(FullAttention, value_residual=True))
    batch = Batch(torch.randint(50, (5, 16)))
    whole = collect(model, batch)
    monkeypatch.setattr(heads_module, "MATRIX_ENTRIES", 2 * 2 * 16 * 16)
    for layer, split in collect(model, batch).items():
        torch.testing.assert_close(split.weights, whole[layer].weights)


def test_every_layer_is_read_and_splitting_the_rows_changes_nothing(monkeypatch):
    torch.manual_seed(0)
    model = Transformer(50, depth=3, width=WIDTH, context=TIME)
    batch = Batch(torch.randint(50, (5, TIME)), segments=torch.tensor([[0] * 5 + [1] * 7] * 5))
    hidden = model(batch).hidden
    whole = collect(model, batch)
    monkeypatch.setattr(heads_module, "MATRIX_ENTRIES", 1)
    split = collect(model, batch)
    assert list(whole) == list(attention_layers(model)) == [0, 1, 2]
    assert all(torch.allclose(whole[layer].weights, split[layer].weights, atol=1e-6) for layer in whole)
    assert torch.equal(model(batch).hidden, hidden)  # no hook is left


def test_transformers_computes_the_same_weights():
    from transformers import LlamaConfig, LlamaForCausalLM

    from kleiber.models.hf_twin import from_hf

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    twin = LlamaForCausalLM(config).eval()
    tokens = torch.randint(50, (3, 20))
    theirs = twin(tokens, output_attentions=True).attentions
    for layer, heads in collect(from_hf(twin), Batch(tokens)).items():
        assert torch.allclose(heads.weights, theirs[layer], atol=1e-5)


def test_a_class_that_computes_something_else_is_refused():
    class Doubled(FullAttention):
        def forward(self, x, mask=None, cache=None):
            return 2 * super().forward(x, mask, cache)

    model = Transformer(50, depth=1, width=WIDTH, context=TIME, attention=Doubled)
    with pytest.raises(ValueError, match=r"layer 0, Doubled, does not compute softmax"):
        collect(model, Batch(torch.randint(50, (2, TIME))))


def test_a_layer_without_queries_is_not_read():
    model = Transformer(50, depth=1, width=WIDTH, context=TIME, attention=partial(NoMixing))
    assert attention_layers(model) == {}


def planted(kind: str) -> HeadWeights:
    """One row and head of a known pattern under a causal mask."""
    allowed = torch.ones(1, 1, TIME, TIME, dtype=torch.bool).tril()
    query, key = torch.arange(TIME)[:, None], torch.arange(TIME)
    chosen = {"first": key == 0 * query, "previous": key == (query - 1).clamp(min=0), "uniform": key <= query}[kind]
    weights = chosen.double() / chosen.sum(1, keepdim=True)
    return HeadWeights(weights[None, None].log().clamp(min=-60.0), weights[None, None], allowed)


def test_planted_heads_have_their_exact_values():
    first = torch.zeros(1, TIME, dtype=torch.long)
    values = {kind: head_metrics(planted(kind), first) for kind in ("first", "previous", "uniform")}
    table = {(kind, name): float(value) for kind, metrics in values.items() for name, value in metrics.items()}
    queries = torch.arange(TIME, dtype=torch.float64)
    assert table["first", "sink"] == 1 and table["first", "entropy"] == table["first", "normalized_entropy"] == 0
    assert table["first", "distance"] == pytest.approx((TIME - 1) / 2)
    assert table["previous", "previous_token"] == 1 and table["previous", "sink"] == pytest.approx(1 / (TIME - 1))
    assert table["uniform", "entropy"] == pytest.approx(float((queries + 1).log().mean()))
    assert table["uniform", "normalized_entropy"] == pytest.approx(1)
    assert table["uniform", "distance"] == pytest.approx(float((queries / 2).mean()))
    assert table["uniform", "sink"] == pytest.approx(float((1 / (queries[1:] + 1)).mean()))


def test_the_largest_logit_ignores_masked_pairs_and_the_sign():
    heads = planted("uniform")
    logits = torch.zeros(1, 1, TIME, TIME, dtype=torch.float64)
    logits[0, 0, 2, 5], logits[0, 0, 5, 2] = 99.0, -7.0
    metrics = head_metrics(heads._replace(logits=logits), torch.zeros(1, TIME, dtype=torch.long))
    assert float(metrics["max_logit"]) == 7


def test_padding_and_other_documents_do_not_count():
    torch.manual_seed(1)
    model = Transformer(50, depth=1, width=WIDTH, context=2 * TIME, num_heads=2)
    text = torch.randint(50, (1, TIME))
    alone = Batch(text)
    padded = Batch(torch.cat([text, text], 1), real=torch.tensor([[True] * TIME + [False] * TIME]))
    packed = Batch(torch.cat([text, text], 1), segments=torch.tensor([[0] * TIME + [1] * TIME]))
    assert first_tokens(packed).tolist() == [[0] * TIME + [TIME] * TIME]
    numbers = [head_metrics(collect(model, b)[0], first_tokens(b), b.real) for b in (alone, padded, packed)]
    for name, value in numbers[0].items():
        assert torch.allclose(value, numbers[1][name], atol=1e-5), name
        assert torch.allclose(value, numbers[2][name], atol=1e-5), name  # rotary positions are relative


def test_a_row_without_a_query_to_count_has_no_value():
    alone = HeadWeights(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    metrics = head_metrics(alone, torch.zeros(1, 1, dtype=torch.long))
    assert torch.isnan(metrics["sink"]).all() and torch.isnan(metrics["previous_token"]).all()
    assert float(metrics["entropy"]) == 0


def test_the_induction_score_is_the_weight_of_what_followed_last_time():
    period = 5
    weights = torch.zeros(1, 2, 2 * period, 2 * period)
    query = torch.arange(period)
    weights[0, 0, period + query, query + 1] = 0.75
    weights[0, 1] = 1 / (2 * period)
    assert torch.allclose(induction_scores(weights, period), torch.tensor([[0.75, 0.1]]))
