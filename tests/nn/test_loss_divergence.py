"""The chunked KL divergence and its gradients against PyTorch's."""

import pytest
import torch
from torch import nn

from kleiber.nn.loss import kl_divergence


def example():
    torch.manual_seed(0)
    old, new = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    weights = torch.rand(3, 5)
    weights[0, :3] = 0
    return old, nn.Linear(6, 11).double(), new.requires_grad_(), nn.Linear(4, 11).double(), weights


@pytest.mark.parametrize(("temperature", "chunk"), [(1.0, 4), (2.5, 4), (2.5, 100)])
def test_it_and_its_gradients_are_those_of_all_rows_at_once(temperature, chunk):
    old, old_head, new, head, weights = example()
    divergence = kl_divergence(old, old_head, new, head, weights, temperature, chunk)
    gradients = torch.autograd.grad(divergence, [new, head.weight])
    before = (old_head(old) / temperature).log_softmax(-1)
    after = (head(new) / temperature).log_softmax(-1)
    rows = nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    exact = temperature**2 * (rows * weights).sum()
    assert divergence.item() == pytest.approx(exact.item(), rel=1e-5)
    for gradient, reference in zip(gradients, torch.autograd.grad(exact, [new, head.weight]), strict=True):
        assert torch.allclose(gradient, reference, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert kl_divergence(old, old_head, new, head, weights, temperature, chunk).item() == divergence.item()


def test_it_is_exactly_zero_between_equals_and_the_old_side_gets_no_gradient():
    old, head, _, _, weights = example()
    old.requires_grad_()
    divergence = kl_divergence(old, head, old, head, weights, 2.0, 4)
    assert divergence.item() == 0.0
    assert not kl_divergence(old, head, old.detach(), head, weights).detach().requires_grad
