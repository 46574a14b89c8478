"""Low-rank updates of single modules: outputs before and after merging, roles, and restored classes."""

import pytest
import torch
from torch import nn

from kleiber.nn.heads import LMHead
from kleiber.nn.lora import Adapted, adapt, decompose, merge, without_updates
from kleiber.nn.mup import MuP
from kleiber.types.batch import Role
from kleiber.types.model import Layer


class Stack(Layer):
    """Two experts of a matrix each, as (experts, in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(2, 6, 4, dtype=torch.float64))

    def forward(self, x):
        return x @ self.matrices

    def roles(self):
        return {"matrices": Role("hidden", 6)}


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(6, 4, bias=bias, dtype=torch.float64)


def adapted(module, name: str, magnitudes: bool = False, seed: int = 0):
    adapt(module, name, 3, 2.0, torch.Generator().manual_seed(seed))
    if magnitudes:
        decompose(module, name)
    return module


def moved(module):
    """The module with updates and magnitudes away from their start."""
    for name, parameter in module.named_parameters():
        if "_lora_" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("_m") else 0.0, 0.3)
    return module


CASES = [(linear, "weight"), (Stack, "matrices")]


@pytest.mark.parametrize("magnitudes", [False, True])
@pytest.mark.parametrize(("build", "name"), CASES)
def test_an_update_starts_at_zero_and_merging_keeps_the_output(build, name, magnitudes):
    module, x = build(), torch.randn(5, 6, dtype=torch.float64)
    before, kind, names = module(x), type(module), list(module.state_dict())
    adapted(module, name, magnitudes)
    torch.testing.assert_close(module(x), before)
    after = moved(module)(x)
    assert not torch.allclose(after, before)
    merge(module)
    torch.testing.assert_close(module(x), after)
    assert type(module) is kind and list(module.state_dict()) == names


@pytest.mark.parametrize(("build", "name"), CASES)
def test_the_matrix_becomes_w_plus_scale_times_b_a(build, name):
    module = moved(adapted(build(), name))
    weight, a, b = (module._parameters[name + suffix].detach().clone() for suffix in ("", "_lora_a", "_lora_b"))
    merge(module)
    torch.testing.assert_close(module._parameters[name], weight + 2.0 * (b @ a if weight.ndim == 2 else a @ b))


def test_without_updates_a_model_computes_as_before_and_gets_them_back():
    model = nn.Sequential(linear(), nn.Linear(4, 3, dtype=torch.float64))
    x = torch.randn(5, 6, dtype=torch.float64)
    before = model(x)
    moved(adapted(model[0], "weight", magnitudes=True))
    after = model(x)
    with pytest.raises(ZeroDivisionError), without_updates(model):
        assert torch.equal(model(x), before)
        _ = 1 / 0
    assert torch.equal(model(x), after)


def test_roles_name_every_parameter_with_its_fan_in():
    of_linear, of_stack = adapted(linear(), "weight", magnitudes=True), adapted(Stack(), "matrices")
    assert isinstance(of_linear, Adapted)
    assert of_linear.roles() == {
        "weight": Role("hidden", 6), "bias": Role("vector", 1), "weight_lora_a": Role("hidden", 6, fixed_outputs=True),
        "weight_lora_b": Role("output", 3), "weight_lora_m": Role("vector", 1),
    }  # fmt: skip
    assert of_stack.roles() == {
        "matrices": Role("hidden", 6), "matrices_lora_a": Role("hidden", 6, fixed_outputs=True),
        "matrices_lora_b": Role("output", 3),
    }  # fmt: skip


def test_a_of_an_output_layer_has_its_constant_rate():
    head = LMHead(nn.Parameter(torch.randn(5, 6)), 1.0, None)
    roles = adapted(head, "weight").roles()
    assert (
        roles["weight_lora_a"] == Role("output", 6, fixed_outputs=True) and MuP().lr_scale(roles["weight_lora_a"]) == 1
    )


def test_the_seed_decides_a_and_a_second_adapted_weight_keeps_the_first():
    first, same, other = (adapted(linear(), "weight", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight_lora_a, same.weight_lora_a) and not torch.equal(
        first.weight_lora_a, other.weight_lora_a
    )
    assert float(first.weight_lora_a.detach().abs().max()) <= 6**-0.5
    stack = Stack()
    stack.second = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    adapted(adapted(stack, "matrices"), "second")
    assert stack.lora_scales == {"matrices": 2.0, "second": 2.0} and stack.plain is Stack


def test_a_vector_cannot_be_adapted_nor_a_plain_weight_decomposed():
    with pytest.raises(AssertionError, match="bias"):
        adapt(linear(), "bias", 2, 1.0, torch.Generator())
    with pytest.raises(AssertionError, match="weight"):
        decompose(linear(), "weight")
    plain = linear()
    merge(plain)  # which has no update
    assert type(plain) is nn.Linear
