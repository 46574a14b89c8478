"""The backends of experts against a slow reference, and experts that are divided over ranks against one rank."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from kleiber.nn import dispatch as module
from kleiber.nn.dispatch import Experts, dispatch
from kleiber.nn.mup import Site
from kleiber.types.batch import Routing

BACKENDS = ("grouped", "loop", "dense")
TOKENS, EXPERTS, DIM, HIDDEN = 21, 6, 16, 8


def slow(x, gate_up, down, routing):
    """One token and one assignment at a time."""
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[0])
        for slot in range(routing.experts.shape[1]):
            if routing.kept is None or routing.kept[t, slot]:
                e = int(routing.experts[t, slot])
                gate, up = (x[t] @ gate_up[e]).chunk(2)
                y = y + routing.weights[t, slot].to(x.dtype) * ((F.silu(gate) * up) @ down[e])
        rows.append(y)
    return torch.stack(rows)


def case(dtype=torch.float32, k=2, kept=False, idle=(), hidden=HIDDEN):
    torch.manual_seed(0)
    parts = torch.randn(TOKENS, DIM), torch.randn(EXPERTS, DIM, 2 * hidden) / 4, torch.randn(EXPERTS, hidden, DIM) / 3
    x, gate_up, down = (part.to(dtype).requires_grad_() for part in parts)
    scores = torch.rand(TOKENS, EXPERTS, dtype=dtype)
    scores[:, list(idle)] = -1
    experts = scores.topk(k, -1).indices
    weights = torch.rand(TOKENS, k, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    mask = torch.rand(TOKENS, k) < 0.6 if kept else None
    return (x, gate_up, down), weights, Routing(weights, experts, scores.detach(), kept=mask)


def gradients(y, parts, weights):
    torch.manual_seed(1)
    return torch.autograd.grad((y * torch.randn_like(y)).sum(), (*parts, weights), materialize_grads=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "k, kept, idle", [(1, False, ()), (2, False, ()), (2, True, ()), (3, False, (0, 5)), (3, True, (2,))]
)
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_back_ends_agree_with_one_token_at_a_time(backend, k, kept, idle, dtype, atol):
    parts, weights, routing = case(dtype, k, kept, idle)
    ours, expected = dispatch(backend, *parts, routing), slow(*parts, routing)
    torch.testing.assert_close(ours, expected, atol=atol, rtol=1e-4)
    for gradient, reference in zip(gradients(ours, parts, weights), gradients(expected, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [False, True])
def test_an_expert_without_tokens_gets_a_zero_gradient_not_none(backend, kept):
    parts, _, routing = case(kept=kept, idle=(1, 3))
    dispatch(backend, *parts, routing).square().sum().backward()
    for stack in parts[1:]:
        assert stack.grad is not None and stack.grad[[1, 3]].abs().max() == 0 and stack.grad[0].abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_kept_is_zero_and_still_has_gradients(backend):
    parts, weights, routing = case()
    routing.kept = torch.zeros_like(routing.experts, dtype=torch.bool)
    y = dispatch(backend, *parts, routing)
    assert y.shape == parts[0].shape and y.abs().max() == 0
    assert all(float(g.abs().max()) == 0 for g in gradients(y, parts, weights))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_under_bf16_autocast_the_product_is_in_bf16_and_near(backend, kept):
    parts, weights, routing = case(kept=kept)
    with torch.autocast("cpu", torch.bfloat16):
        y = dispatch(backend, *parts, routing)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), slow(*parts, routing), atol=0.05, rtol=0.05)
    assert all(g.dtype == torch.float32 for g in gradients(y, parts, weights))


class Shapes(TorchDispatchMode):
    """Collects the shapes of the operands of matrix products."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().startswith("aten::mm"):
            self.found.add((*args[0].shape, args[1].shape[1]))
        return function(*args, **(kwargs or {}))


def test_in_bf16_a_cpu_gets_products_of_few_shapes_whatever_the_numbers_of_rows():
    rows, weight = torch.randn(1000, 16).bfloat16(), torch.randn(3, 16, 8).bfloat16().requires_grad_()
    with Shapes() as shapes:
        for first in range(400, 460):
            counts = torch.tensor([first, 0, 1000 - first - 7])
            rows.requires_grad_(), (y := module.grouped_mm(rows, weight, counts)).sum().backward()
            assert y[-7:].count_nonzero() == 0 and weight.grad[1].count_nonzero() == 0
    # Numbers from 400 to 593 in steps of 32 and of none, in three products each.
    assert len(shapes.found) <= 3 * 8
    looped = module.looped_mm(rows, weight, counts)
    torch.testing.assert_close(y, looped)
    found, expected = (torch.autograd.grad(z.square().sum(), (rows, weight)) for z in (
        module.grouped_mm(rows, weight, counts), looped))  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_a_compiled_product_in_bf16_has_its_rows_filled_up_on_a_cpu(monkeypatch, unchecked):
    sizes, fill = [], module.fill_rows
    monkeypatch.setattr(module, "fill_rows", lambda rows: sizes.append(len(rows)) or fill(rows))
    rows, weight, counts = torch.randn(50, 16).bfloat16(), torch.randn(3, 16, 8).bfloat16(), torch.tensor([20, 7, 23])
    compiled = torch.compile(module.grouped_mm, backend="eager")(rows, weight, counts)
    assert sizes == counts.tolist() and torch.equal(compiled, module.grouped_mm(rows, weight, counts))


def test_each_back_end_takes_its_own_way(monkeypatch):
    taken = []
    for name in ("looped_mm", "every_expert"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name: taken.append(name) or real(*a))
    grouped = F.grouped_mm
    monkeypatch.setattr(module.F, "grouped_mm", lambda *a, **kw: taken.append("grouped_mm") or grouped(*a, **kw))
    parts, _, routing = case()
    for backend in BACKENDS:
        dispatch(backend, *parts, routing)
    assert taken == [*["grouped_mm"] * 2, *["looped_mm"] * 2, "every_expert"]
    taken.clear()
    unaligned, _, routing = case(hidden=9)  # 36 bytes a row: no kernel for `down`, and 72 for `gate_up`
    dispatch("grouped", *unaligned, routing)
    double, _, routing = case(torch.float64)
    dispatch("grouped", *double, routing)
    assert taken == ["looped_mm"] * 4


def test_the_gpu_way_of_leaving_rows_out_gives_what_cutting_them_off_gives():
    parts, weights, routing = case(kept=True)
    cut = dispatch("grouped", *parts, routing)
    masked = module.dispatch_kept(module.grouped_mm, *parts, routing, cut=False)
    torch.testing.assert_close(masked, cut)
    for gradient, reference in zip(gradients(masked, parts, weights), gradients(cut, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [False, True])
def test_compiled_it_gives_the_same(backend, kept, unchecked):
    parts, weights, routing = case(kept=kept)
    compiled = torch.compile(dispatch, backend="aot_eager")
    ours, expected = compiled(backend, *parts, routing), dispatch(backend, *parts, routing)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    for gradient, reference in zip(gradients(ours, parts, weights), gradients(expected, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


@pytest.fixture
def group():
    """A group of one rank, which exchanges rows with itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept, idle", [(False, ()), (True, (2,))])
def test_rows_that_travel_give_what_rows_that_stay_give(group, backend, kept, idle):
    """Two ranks: tests/training/test_parallel.py."""
    parts, weights, routing = case(torch.float64, kept=kept, idle=idle)
    ours, expected = module.dispatch_over_ranks(backend, *parts, routing, group), dispatch(backend, *parts, routing)
    torch.testing.assert_close(ours, expected)
    for gradient, reference in zip(gradients(ours, parts, weights), gradients(expected, parts, weights), strict=True):
        torch.testing.assert_close(gradient, reference)


def test_no_row_at_all_travels(group):
    parts, _, routing = case()
    routing.kept = torch.zeros_like(routing.experts, dtype=torch.bool)
    assert module.dispatch_over_ranks("grouped", *parts, routing, group).abs().max() == 0


def test_experts_whose_weights_are_divided_exchange_rows(group, monkeypatch):
    experts, sizes = Experts(Site(DIM), EXPERTS, HIDDEN, 2), []
    (x, _, _), _, routing = case()
    expected, mesh = experts(x, routing), init_device_mesh("cpu", (1,))
    for name, parameter in list(experts.named_parameters()):
        shard = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
        experts.register_parameter(name, torch.nn.Parameter(shard))
    real = module.exchange
    monkeypatch.setattr(module, "exchange", lambda *a: sizes.append(a[1]) or real(*a))
    torch.testing.assert_close(experts(x, routing), expected)
    assert sizes == [[2 * TOKENS], [2 * TOKENS]]
