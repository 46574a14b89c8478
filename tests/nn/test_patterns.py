"""Kinds of layers in turn: which kind is where, what reaches it, and patterns that are refused."""

import pytest

from kleiber.nn.mup import Site
from kleiber.nn.patterns import NoMixing, layer_pattern


def test_a_pattern_repeats_itself_and_one_longer_than_the_model_is_refused():
    layers = [layer_pattern(Site(32, 5, layer), ["window", "none", "full"], num_heads=4) for layer in range(5)]
    assert [type(layer).__name__ for layer in layers] == [
        *("WindowAttention", "NoMixing", "FullAttention", "WindowAttention", "NoMixing")
    ]
    assert layers[2].num_heads == 4 and isinstance(layers[1], NoMixing)
    with pytest.raises(ValueError, match=r"pattern=.* 1 to 2 entries"):
        layer_pattern(Site(32, 2), ["window", "window", "full"])


def test_options_of_softmax_attention_reach_its_layers_alone():
    full, delta = (
        layer_pattern(Site(32, 2, layer), ["full", "delta"], num_heads=4, qk_norm=False, positions="none", soft_cap=3.0)
        for layer in (0, 1)
    )
    shared, latent = (
        layer_pattern(Site(32, 2, layer), ["full", "latent"], num_heads=4, value_residual=True) for layer in (0, 1)
    )
    assert shared.shares_values and not latent.shares_values
    assert full.q_norm is None and full.rope is None and full.soft_cap == 3.0 and delta.num_heads == 4
