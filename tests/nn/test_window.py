"""A window that is computed in chunks against the mask of all pairs, and when it is."""

import pytest
import torch

from kleiber.nn import window
from kleiber.nn.mup import Site
from kleiber.nn.window import WindowAttention

WIDTH = 16


@pytest.mark.parametrize("time", [64, 61])
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, {"positions": "alibi"}, {"soft_cap": 9.0}], ids=str)
def test_a_window_in_chunks_is_that_of_the_mask_of_all_pairs(monkeypatch, options, time):
    module = WindowAttention(Site(32, context=64), num_heads=2, window=5, **options).double()
    module.chunk = 8
    x = torch.randn(2, time, 32, dtype=torch.float64)
    segments = torch.arange(time)[None] // torch.tensor([[7], [13]])
    real = torch.arange(time) < torch.tensor([[time], [time - 9]])
    for parts in ({}, {"segments": segments}, {"real": real}, {"segments": segments, "real": real}):
        results = []
        for longest in (1000, 16):
            monkeypatch.setattr(window, "LONG", longest)
            mask = module.mask(time, 0, x.device, **parts)
            assert mask.shape[2:] == ((time, time) if longest > time else (8, 16))
            y = module(x, mask)
            results.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
        for whole, chunked in zip(*results, strict=True):
            torch.testing.assert_close(chunked, whole, atol=1e-9, rtol=1e-9)


def test_chunks_of_a_window_are_of_long_rows_in_training_alone():
    module, device = WindowAttention(Site(WIDTH), window=300), torch.device("cpu")
    assert module.mask(1200, 0, device).shape == (1, 4, 300, 600)
    assert module.mask(1199, 0, device).shape == (1, 1, 1199, 1199)
    assert WindowAttention(Site(WIDTH)).mask(1023, 0, device).shape == (1, 1, 1023, 1023), "as in recorded runs"
    assert WindowAttention(Site(WIDTH)).mask(1024, 0, device).shape == (1, 16, 64, 128)
    assert module.executed_flops(1200) == pytest.approx(module.executed_flops(1199) / 2, rel=0.01)
    with torch.no_grad():
        assert module.mask(1200, 0, device).shape == (1, 1, 1200, 1200)
    both = WindowAttention(Site(WIDTH, causal=False), window=64)
    assert both.mask(1200, 0, device).shape == (1, 1, 1200, 1200)
