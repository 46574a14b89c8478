"""Output layers: their values, roles and costs, and the names of task layers."""

import pytest
import torch
from torch import nn

from kleiber.nn.heads import LMHead, TaskHead, head_name
from kleiber.types.batch import Role


def test_logits_are_products_with_the_matrix_and_have_a_bound() -> None:
    matrix, hidden = nn.Parameter(torch.randn(5, 3)), torch.randn(2, 4, 3)
    torch.testing.assert_close(LMHead(matrix, 0.5)(hidden), 0.5 * hidden @ matrix.T)
    capped = LMHead(matrix, 100.0, soft_cap=2.0)(hidden)
    assert capped.shape == (2, 4, 5) and capped.abs().max() <= 2.0
    assert LMHead(matrix).roles() == {"weight": Role("output", 3)} and LMHead(matrix).flops(7) == 2 * 15


def test_the_scores_of_a_task_begin_at_0_and_cost_a_product_per_row() -> None:
    head, pooled = TaskHead(3, 2, multiplier=0.5), torch.randn(4, 3)
    assert torch.equal(head(pooled), torch.zeros(4, 2)) and head.flops(8) == 2 * 6 / 8
    nn.init.ones_(head.weight)
    nn.init.ones_(head.bias)
    torch.testing.assert_close(head(pooled)[:, 1], 0.5 * pooled.sum(1) + 1)
    assert head.roles() == {"weight": Role("output", 3), "bias": Role("vector", 1)}
    with pytest.raises(ValueError, match="not 0"):
        TaskHead(3, 0)


def test_a_head_is_named_by_its_task_and_the_meaning_of_its_outputs() -> None:
    assert head_name("a.b", "x") == head_name("a.b", "x") != head_name("a.b", "y")
    assert head_name("a.b", "x").startswith("a_b-")
