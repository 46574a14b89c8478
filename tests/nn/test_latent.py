"""Latent attention against the attention of DeepSeek-V3 in transformers, its cache, and its refusals."""

import pytest
import torch

from kleiber.models.cache import Cache
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mup import Site, StandardParametrization


def test_the_cache_holds_the_latent_vector_and_one_rotated_key():
    module, x, cache = LatentAttention(Site(32), rank=6, query_rank=5), torch.randn(2, 12, 32), Cache()
    pieces = []
    for part in x.split([5, 1, 1, 3, 2], 1):
        pieces.append(module(part, module.mask(part.shape[1], len(cache), x.device), cache))
    torch.testing.assert_close(torch.cat(pieces, 1), module(x), atol=1e-6, rtol=1e-5)
    assert [tensor.shape[3] for tensor in cache.tensors()] == [6, 8]


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"num_kv_heads": 1}])
def test_options_that_it_does_not_have_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LatentAttention(Site(32), **options)


@pytest.mark.slow
@pytest.mark.parametrize("query_rank", [None, 12])
def test_the_layer_is_that_of_deepseek(query_rank):
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=query_rank, kv_lora_rank=8,
        qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, rope_interleave=False, max_position_embeddings=64,
        attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    site = Site(32, parametrization=StandardParametrization(), norm_eps=1e-6)
    theirs, ours = DeepseekV3Attention(config, 0), LatentAttention(site, 2, query_rank=query_rank)
    state = {
        "kv_a_proj_with_mqa.weight": ours.down.weight, "kv_a_layernorm.weight": ours.norm.weight,
        "kv_b_proj.weight": ours.up.weight, "o_proj.weight": ours.out.weight,
    }  # fmt: skip
    if query_rank is None:
        state["q_proj.weight"] = ours.query.weight
    else:
        state["q_b_proj.weight"] = ours.query.weight
        state |= {"q_a_proj.weight": ours.query_down.weight, "q_a_layernorm.weight": ours.query_norm.weight}
    theirs.load_state_dict(state)
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    theirs.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    x = torch.randn(2, 20, 32)
    positions = DeepseekV3RotaryEmbedding(config)(x, torch.arange(20)[None])
    mask = torch.full((20, 20), -torch.inf).triu(1)[None, None]
    torch.testing.assert_close(ours(x), theirs(x, positions, mask)[0], atol=1e-5, rtol=1e-4)
