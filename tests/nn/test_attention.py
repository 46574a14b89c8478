"""Which positions read which, by gradients; the fast attention against a slow one; cached against uncached."""

import math

import pytest
import torch
import torch.nn.functional as F

from kleiber.models.cache import Cache
from kleiber.nn import attention
from kleiber.nn.attention import FullAttention
from kleiber.nn.mup import Site, StandardParametrization, heads
from kleiber.nn.patterns import NoMixing
from kleiber.nn.window import WindowAttention

TIME, WIDTH = 12, 16
KINDS = {
    "full": (FullAttention, {}, lambda i, j: j <= i),
    "window": (WindowAttention, {"window": 4}, lambda i, j: i - 4 < j <= i),
    "none": (NoMixing, {}, lambda i, j: i == j),
}


def reads(module, real=None, segments=None) -> torch.Tensor:
    """reads[i, j]: whether output i depends on input j, by gradient."""
    x = torch.randn(1, TIME, WIDTH, requires_grad=True)
    y = module(x, module.mask(TIME, 0, x.device, real, segments))
    rows = [torch.autograd.grad(y[0, i].square().sum(), x, retain_graph=True)[0][0].norm(dim=-1) for i in range(TIME)]
    return torch.stack(rows) > 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_depends_on_exactly_the_inputs_that_the_kind_allows(kind):
    make, options, allowed = KINDS[kind]
    expected = torch.tensor([[allowed(i, j) for j in range(TIME)] for i in range(TIME)])
    assert torch.equal(reads(make(Site(WIDTH), **options)), expected)


@pytest.mark.parametrize("make, options, far", [(FullAttention, {}, TIME), (WindowAttention, {"window": 3}, 3)])
def test_without_causality_both_sides_are_read(make, options, far):
    expected = torch.tensor([[abs(i - j) < far for j in range(TIME)] for i in range(TIME)])
    assert torch.equal(reads(make(Site(WIDTH, causal=False), **options)), expected)


def test_padding_is_read_by_nobody_and_segments_do_not_mix():
    real = torch.ones(1, TIME, dtype=torch.bool)
    real[:, 9:] = False
    segments = torch.tensor([[0] * 5 + [1] * 7])
    readable = reads(FullAttention(Site(WIDTH)), real, segments)
    for i in range(9):
        for j in range(TIME):
            assert readable[i, j] == (j <= i and (i < 5) == (j < 5)), (i, j)
    assert torch.equal(readable[9:], torch.eye(TIME, dtype=torch.bool)[9:] | readable[9:])


def slow(module: FullAttention, x: torch.Tensor) -> torch.Tensor:
    """Attention one head, one query at a time, rotations as complex numbers."""
    (_, time, _), size = x.shape, module.head_dim
    q, k, v = module.qkv(x).split([n * size for n in (module.num_heads, module.num_kv_heads, module.num_kv_heads)], -1)
    turn = torch.polar(
        torch.ones(time, size // 2, dtype=torch.float64),
        torch.outer(torch.arange(time), 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)),
    )

    def prepare(z, norm):
        if norm is not None:
            z = z / (z.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        turned = torch.complex(z[..., : size // 2], z[..., size // 2 :]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    outputs = []
    for head in range(module.num_heads):
        shared = head // (module.num_heads // module.num_kv_heads)
        at, kv = slice(head * size, (head + 1) * size), slice(shared * size, (shared + 1) * size)
        queries, keys = prepare(q[..., at], module.q_norm), prepare(k[..., kv], module.k_norm)
        rows = [
            (queries[:, i, None] @ keys[:, : i + 1].transpose(1, 2) * module.scale).softmax(-1) @ v[:, : i + 1, kv]
            for i in range(time)
        ]
        outputs.append(torch.cat(rows, 1))
    return module.out(torch.cat(outputs, -1))


@pytest.mark.parametrize("kv", [4, 2, 1])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_fast_attention_equals_the_slow_one(kv, qk_norm):
    module = FullAttention(Site(32), num_heads=4, num_kv_heads=kv, qk_norm=qk_norm).double()
    module.rope.double()
    for norm in (module.q_norm, module.k_norm):
        if norm is not None:
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    # The tables of the fast one are made in fp32.
    torch.testing.assert_close(module(x), slow(module, x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("num_heads, dtype", [(8, torch.float32), (2, torch.bfloat16)])
def test_in_bf16_a_cpu_attends_by_small_heads_in_fp32(num_heads, dtype):
    module, x = FullAttention(Site(128), num_heads=num_heads), torch.randn(2, 24, 128)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = module.project(x)
        assert v.dtype == torch.bfloat16
        attended = module._attend_causally(q, k, v)
    exact = F.scaled_dot_product_attention(*(part.to(dtype) for part in (q, k, v)), is_causal=True, scale=module.scale)
    assert attended.dtype == v.dtype and torch.equal(attended, exact.to(v.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_in_pieces_through_a_cache_equals_reading_at_once(kind):
    make, options, _ = KINDS[kind]
    module, x, cache, pieces = make(Site(WIDTH), **options), torch.randn(2, TIME, WIDTH), Cache(), []
    for part in x.split([5, 1, 1, 3, 2], 1):
        mask = module.mask(part.shape[1], len(cache), x.device)
        pieces.append(module(part, mask, cache))
    torch.testing.assert_close(torch.cat(pieces, 1), module(x, module.mask(TIME, 0, x.device)), atol=1e-6, rtol=1e-5)
    assert len(cache) == TIME


def test_the_mask_is_made_only_when_causality_does_not_say_it_all():
    device = torch.device("cpu")
    assert FullAttention(Site(WIDTH)).mask(TIME, 0, device) is None
    assert FullAttention(Site(WIDTH)).mask(1, 5, device) is None
    assert WindowAttention(Site(WIDTH), window=TIME).mask(TIME, 0, device) is None
    assert WindowAttention(Site(WIDTH), window=TIME - 1).mask(TIME, 0, device) is not None


@pytest.mark.parametrize("kv", [4, 2])
def test_queries_in_chunks_read_the_same_as_all_at_once(kv, monkeypatch):
    module, x = FullAttention(Site(32), num_heads=4, num_kv_heads=kv), torch.randn(2, TIME, 32)
    whole = module(x).detach()
    keys, kernel = [], attention.F.scaled_dot_product_attention

    def counted(q, k, *arguments, **options):
        keys.append(k.shape[2])
        return kernel(q, k, *arguments, **options)

    monkeypatch.setattr(attention, "CHUNK", 5)
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        torch.testing.assert_close(module(x), whole, atol=1e-6, rtol=1e-6)
    assert keys == [5, 10, TIME]  # keys that a chunk cannot read are not computed


def test_padding_behind_a_row_needs_no_mask_without_a_gradient():
    module, x, device = FullAttention(Site(WIDTH)), torch.randn(2, TIME, WIDTH), torch.device("cpu")
    real = torch.arange(TIME) < torch.tensor([[TIME], [7]])
    masked = module(x, module.mask(TIME, 0, device, real))
    with torch.no_grad():
        assert module.mask(TIME, 0, device, real) is None
        assert module.mask(TIME, 0, device, real.flip(1)) is not None  # padding in front is read by what follows
        torch.testing.assert_close(module(x)[real], masked[real], atol=1e-6, rtol=1e-6)
    both_ways = FullAttention(Site(WIDTH, causal=False))
    with torch.no_grad():
        assert both_ways.mask(TIME, 0, device, real) is not None


def test_scale_follows_the_parametrization():
    assert FullAttention(Site(256)).scale == 4 / 64
    assert FullAttention(Site(256, parametrization=StandardParametrization())).scale == 1 / math.sqrt(64)


def test_heads_are_of_64_channels_or_two_below_width_128():
    assert heads(256, None, None) == (4, 4, 64)
    assert heads(64, None, None) == (2, 2, 32)
    assert heads(96, 6, 2) == (6, 2, 16)


@pytest.mark.parametrize("width, num_heads, num_kv_heads", [(160, None, None), (64, 3, None), (64, 4, 3)])
def test_heads_that_do_not_divide_are_refused(width, num_heads, num_kv_heads):
    with pytest.raises(ValueError, match="heads"):
        heads(width, num_heads, num_kv_heads)


def test_no_mixing_refuses_options_of_attention():
    with pytest.raises(ValueError, match="num_heads=4"):
        NoMixing(Site(64), num_heads=4)
    with pytest.raises(ValueError, match="even"):
        FullAttention(Site(9), num_heads=3)
