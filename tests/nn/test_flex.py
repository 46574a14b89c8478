"""The attention of GPUs that skips masked blocks, computed eagerly here, against the mask of all pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention

from kleiber.nn import attention, flex
from kleiber.nn.attention import FullAttention
from kleiber.nn.latent import LatentAttention
from kleiber.nn.mup import Site
from kleiber.nn.window import WindowAttention

TIME, WIDTH = 150, 32  # more than one block of 128
SEGMENTS = torch.arange(TIME)[None] // torch.tensor([[37], [64]])
REAL = torch.arange(TIME) < torch.tensor([[TIME], [90]])
PROMPT = torch.arange(TIME)[None] % torch.tensor([[37], [64]]) < 11
CASES = {
    "packed": (True, {"segments": SEGMENTS}),
    "padded": (True, {"real": REAL}),
    "padded in front": (True, {"real": REAL.flip(1)}),
    "padded, both directions": (False, {"real": REAL}),
    "prefix": (True, {"prompt": PROMPT[:1].expand(2, -1) & (torch.arange(TIME) < 37)}),
    "packed prefix": (True, {"segments": SEGMENTS, "prompt": PROMPT}),
    "packed, padded prefix": (True, {"segments": SEGMENTS, "real": REAL, "prompt": PROMPT}),
}
CUDA = torch.device("cuda")


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(flex, "generated", lambda function: function)
    # On a CPU PyTorch refuses gradients, of which it has no kernel; the slow reference has them.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


def layer(causal: bool = True, **options) -> FullAttention:
    torch.manual_seed(0)
    return FullAttention(Site(WIDTH, context=TIME, causal=causal), num_heads=2, **options).double()


@pytest.mark.parametrize("case", CASES)
def test_blocks_allow_the_pairs_of_the_mask_of_all_pairs(eager, case):
    causal, parts = CASES[case]
    module = layer(causal, prefix="prompt" in parts)
    dense = module.mask(TIME, 0, torch.device("cpu"), **parts)[:, 0]
    mask = flex.block_mask(causal, TIME, torch.device("cpu"), **parts)
    at = [torch.arange(n) for n in (2, 1, TIME, TIME)]
    pairs = mask.mask_mod(at[0][:, None, None], at[1], at[2][:, None], at[3])
    assert torch.equal(pairs, dense.expand(2, -1, -1))
    blocks = F.max_pool2d(F.pad(dense.float(), (0, 256 - TIME, 0, 256 - TIME)), 128).bool()
    assert torch.equal(mask.to_dense()[:, 0, :2, :2].bool(), blocks.expand(2, -1, -1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # that it is slow
@pytest.mark.parametrize("heads", [2, 1])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_mask_of_all_pairs(eager, unchecked, case, heads):
    causal, parts = CASES[case]
    module, x = layer(causal, num_kv_heads=heads, prefix="prompt" in parts), torch.randn(2, TIME, WIDTH).double()
    masks = [module.mask(TIME, 0, x.device, **parts), flex.block_mask(causal, TIME, x.device, **parts)]
    results = []
    for mask in masks:
        y = module(x, mask)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_the_masks_of_all_steps_are_made_by_one_graph(unchecked, monkeypatch):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(flex, "generated", lambda function: torch.compile(function, dynamic=False, backend=count))
    for shift in range(3):
        mask = flex.block_mask(True, TIME, torch.device("cpu"), segments=SEGMENTS.roll(shift, 1))
        assert mask.kv_num_blocks.shape == (2, 1, 2)
    assert len(graphs) == 1


def test_only_a_gpu_that_trains_long_rows_without_a_bias_skips_blocks():
    def skips(module, time=attention.SPARSE, past=0, device=CUDA):
        return module._skips_blocks(time, past, device)

    site = Site(64, context=TIME)
    assert skips(FullAttention(site))
    assert not skips(FullAttention(site), device=torch.device("cpu"))
    assert not skips(FullAttention(site), time=attention.SPARSE - 1)
    assert not skips(FullAttention(site), past=1)
    for module in (FullAttention(site, soft_cap=9.0), FullAttention(site, positions="alibi"), LatentAttention(site)):
        assert not skips(module)
    assert not skips(WindowAttention(site)), "its chunks need no mask of all pairs"
    with torch.no_grad():
        assert not skips(FullAttention(site))
