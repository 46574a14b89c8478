"""ALiBi against the biases of transformers, and attention with biases, caps and mixed values against slow ones."""

import pytest
import torch

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention
from kleiber.nn.mup import Site
from kleiber.nn.positions import Alibi


@pytest.mark.slow
@pytest.mark.parametrize("num_heads", [1, 4, 6])
def test_alibi_has_the_slopes_of_bloom(num_heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 7), num_heads, torch.float32)  # up to a constant for each query
    ours = Alibi(num_heads)(torch.tensor([6]), 7)
    torch.testing.assert_close(ours - ours[..., :1], theirs - theirs[..., :1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", [{"positions": "alibi"}, {"positions": "alibi", "soft_cap": 0.5}])
def test_biased_and_capped_attention_equals_a_slow_one(options, causal):
    """A head and a query at a time; also in chunks, as without a gradient."""
    time, module = 150, FullAttention(Site(32, causal=causal), num_heads=4, num_kv_heads=2, qk_norm=False, **options)
    x = torch.randn(2, time, 32)
    q, k, v = module.project(x)
    rows = []
    for head in range(4):
        for query in range(time):
            keys = slice(0, query + 1 if causal else time)
            logits = module.scale * (k[:, head // 2, keys] @ q[:, head, query, :, None]).squeeze(-1)
            if module.soft_cap is not None:
                logits = 0.5 * torch.tanh(logits / 0.5)
            if module.alibi is not None:
                logits = logits - 4.0 ** -(head + 1) * (query - torch.arange(time)[keys]).abs()
            rows.append((logits.softmax(-1)[:, None] @ v[:, head // 2, keys]).squeeze(1))
    slow = module.out(torch.stack(rows, 1).view(2, 4, time, 8).transpose(1, 2).reshape(2, time, 32))
    torch.testing.assert_close(module(x, module.mask(time, 0, x.device)), slow, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(module(x, module.mask(time, 0, x.device)), slow, atol=1e-5, rtol=1e-5)


def test_value_residual_mixes_the_values_of_the_first_layer_into_later_ones():
    first, second = (FullAttention(Site(32, depth=2, layer=layer), value_residual=True) for layer in (0, 1))
    x, stored = torch.randn(2, 9, 32), []
    torch.testing.assert_close(first(x, None, None, stored), first(x))
    torch.nn.init.uniform_(second.value_weights)
    q, k, v = second.project(x)
    mixed = second.value_weights[0] * first.project(x)[2] + second.value_weights[1] * v
    y = torch.nn.functional.scaled_dot_product_attention(q, k, mixed, is_causal=True, scale=second.scale)
    torch.testing.assert_close(second(x, None, None, stored), second.out(y.transpose(1, 2).reshape(2, 9, 32)))
    assert first.value_weights is None
    with pytest.raises(ValueError, match="value_residual"):
        second(x, None, None, [])


def test_layers_of_a_model_share_one_rotation_and_models_do_not():
    first, second = (Transformer(11, depth=3, width=32, context=16, num_heads=2) for _ in range(2))
    assert len({id(block.attention.rope) for block in first.blocks}) == 1
    assert first.blocks[0].attention.rope is not second.blocks[0].attention.rope
