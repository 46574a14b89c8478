"""DoRA's magnitudes: their gradients, their equality with peft, and how optimizers treat them."""

import copy

import pytest
import torch
from adapters.small_moe import ALL, TOKENS, build, logits, shaken

from kleiber.adapters.lora import DoRA, apply_peft
from kleiber.nn.lora import adapt, decompose, merge
from kleiber.optimizers.adamw import AdamW
from kleiber.optimizers.muon import Muon


def test_magnitudes_and_updates_get_the_gradient_of_weights_whose_norm_is_a_constant():
    """With dL/dW' from the merged model: dL/dm = sum dL/dW' V / |V|, dL/dV = m dL/dW' / |V|, V = W + s B A."""
    model, plain, adapter = build(), build(), DoRA(rank=2, targets=ALL)
    for one in (model, plain):
        adapter.apply(one, seed=1)
        shaken(one)
    parts = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapter.merge(plain)
    for one in (model, plain):
        logits(one, TOKENS).sin().sum().backward()
    wanted, found = dict(plain.named_parameters()), dict(model.named_parameters())
    names = [name.removesuffix("_lora_m") for name in found if name.endswith("_lora_m")]
    assert any("experts" in n for n in names) and any("router" in n for n in names) and "head.weight" in names
    for name in names:
        a, b, m = (parts[f"{name}_lora_{part}"] for part in "abm")
        stack, grad = a.ndim == 3, wanted[name].grad
        v = parts[name] + adapter.scale * (a @ b if stack else b @ a)
        axis = 1 if stack else -1  # of what enters
        norm = v.square().sum(axis, keepdim=True).sqrt()
        through = adapter.scale * grad * m.unsqueeze(axis) / norm
        torch.testing.assert_close(found[f"{name}_lora_m"].grad, (grad * v / norm).sum(axis))
        torch.testing.assert_close(found[f"{name}_lora_a"].grad, through @ b.mT if stack else b.mT @ through)
        torch.testing.assert_close(found[f"{name}_lora_b"].grad, a.mT @ through if stack else through @ a.mT)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
def test_of_a_linear_layer_magnitudes_are_those_of_peft(bias):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    ours, x = torch.nn.Linear(12, 7, bias=bias), torch.randn(5, 12, requires_grad=True)
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, use_dora=True, target_modules=["0"])
    layer = peft.inject_adapter_in_model(config, torch.nn.Sequential(copy.deepcopy(ours)))[0]
    theirs = {
        "a": layer.lora_A.default.weight, "b": layer.lora_B.default.weight,
        "m": layer.lora_magnitude_vector.default.weight,
    }  # fmt: skip
    adapt(ours, "weight", 3, 2.0, torch.Generator().manual_seed(0))
    decompose(ours, "weight")
    mine = {part: ours.get_parameter(f"weight_lora_{part}") for part in "abm"}
    torch.testing.assert_close(mine["m"], theirs["m"])
    with torch.no_grad():
        for part in "abm":
            mine[part].normal_()
            theirs[part].copy_(mine[part])
    outputs = [net(x) for net in (ours, layer)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad(output.sin().sum(), [*parts.values(), x])
        for output, parts in zip(outputs, (mine, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    merge(ours)
    layer.merge()
    torch.testing.assert_close(ours.weight, layer.base_layer.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_stacks_of_a_wrapped_model_are_refused_by_name_since_peft_has_no_magnitudes_for_them():
    pytest.importorskip("peft")
    model = torch.nn.Module()
    model.inner = torch.nn.ModuleDict({"experts": torch.nn.Module()})
    model.inner["experts"].register_parameter("down", torch.nn.Parameter(torch.ones(2, 4, 3)))
    with pytest.raises(ValueError, match=r"inner\.experts\.down"):
        apply_peft(model, ["inner.experts.down"], 2, 2.0, 0, True)


def test_weights_of_nothing_stay_nothing():
    """A row of zeros has no direction: it must not turn into numbers that are none."""
    linear = torch.nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight[0] = 0
    adapt(linear, "weight", 2, 1.0, torch.Generator().manual_seed(0))
    decompose(linear, "weight")
    y = linear(torch.ones(3, 4))
    y.sin().sum().backward()
    assert not y[:, 0].any() and y[:, 1].all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in linear.parameters())


def test_magnitudes_are_not_decayed_and_learn_at_the_full_rate_each_in_one_group():
    model = build()
    DoRA(rank=2, targets=ALL).apply(model, seed=1)
    roles, scale = model.roles(), model.parametrization.lr_scale
    assert list(roles) == [name for name, _ in model.named_parameters()]
    for optimizer in (AdamW(weight_decay=0.1), Muon(weight_decay=0.1)):
        groups = optimizer.build(model, roles, scale).param_groups
        held = [name for group in groups for name in group["names"]]
        assert sorted(held) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
        own = [group for group in groups if any(name.endswith("_lora_m") for name in group["names"])]
        assert own and all(group["weight_decay"] == 0 and group["lr_scale"] == 1 for group in own)
