"""The gated delta rule in chunks against its recurrence, and the layer against that of transformers."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.models.cache import Cache
from kleiber.nn.delta import GatedDeltaNet, delta_rule
from kleiber.nn.mup import Site


def inputs(time: int) -> list[torch.Tensor]:
    """Unit queries and keys, values, log decays and strengths of two rows and three heads, in fp64."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, time, size, dtype=torch.float64) for size in (8, 8, 5))
    log_decay, strength = -torch.rand(2, 3, time).double(), torch.rand(2, 3, time).double()
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, log_decay, strength]


@pytest.mark.parametrize("time, chunk", [(11, 4), (8, 64), (1, 4)])
def test_chunks_give_what_the_recurrence_gives(time, chunk):
    q, k, v, log_decay, strength = inputs(time)
    state = start = torch.randn(2, 3, 8, 5, dtype=torch.float64)
    rows = []
    for t in range(time):
        key, b = k[:, :, t, :, None], strength[:, :, t, None, None]
        state = log_decay[:, :, t, None, None].exp() * (state - b * key @ (key.transpose(2, 3) @ state))
        state = state + b * key @ v[:, :, t, None]
        rows.append((q[:, :, t, None] @ state / 8**0.5).squeeze(2))
    y, last = delta_rule(q, k, v, log_decay, strength, start, chunk)
    torch.testing.assert_close(y, torch.stack(rows, 2))
    torch.testing.assert_close(last, state)


def test_reading_in_pieces_through_a_cache_equals_reading_at_once():
    module, x, cache = GatedDeltaNet(Site(32), chunk=4), torch.randn(2, 12, 32), Cache()
    pieces = [module(part, None, cache) for part in x.split([5, 1, 1, 3, 2], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), module(x), atol=1e-5, rtol=1e-5)
    assert len(cache) == 12 and sum(tensor[0].numel() for tensor in cache.tensors()) == 2 * 16 * 16 + 3 * 96


def test_what_it_does_not_have_is_refused():
    for options in ({"qk_norm": True}, {"num_kv_heads": 1}, {"positions": "alibi"}, {"rope_theta": 1e4}):
        with pytest.raises(ValueError, match=f"model.{next(iter(options))}"):
            GatedDeltaNet(Site(32), **options)
    with pytest.raises(ValueError, match=r"model\.causal=false"):
        GatedDeltaNet(Site(32, causal=False))
    with pytest.raises(ValueError, match=r"data\.pack=false"):
        GatedDeltaNet(Site(32)).mask(4, 0, torch.device("cpu"), segments=torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.slow
def test_the_layer_is_that_of_qwen3_next():
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=32, num_hidden_layers=1, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16,
        linear_value_head_dim=16, linear_conv_kernel_dim=4, rms_norm_eps=1e-5, layer_types=["linear_attention"],
    )  # fmt: skip
    theirs, ours = Qwen3NextGatedDeltaNet(config, 0), GatedDeltaNet(Site(32))
    torch.nn.init.uniform_(ours.norm.weight, 0.5, 1.5)
    q, k, v = ours.qkv.weight.view(3, 2, 16, 32)
    b, a = ours.gates.weight.view(2, 2, 1, 32)
    by_head = torch.cat([q, k, v, ours.z.weight.view(2, 16, 32)], 1).reshape(-1, 32)
    state = {
        "in_proj_qkvz.weight": by_head, "in_proj_ba.weight": torch.cat([b, a], 1).reshape(-1, 32),
        "conv1d.weight": ours.convolution.weight[:, None], "dt_bias": ours.bias, "A_log": ours.log_rate,
        "norm.weight": ours.norm.weight, "out_proj.weight": ours.out.weight,
    }  # fmt: skip
    theirs.load_state_dict(state)
    x = torch.randn(2, 150, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
