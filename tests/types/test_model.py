"""Base classes of layers and models: hooks without an effect, and the mask of a cache that grows with its tokens."""

import pytest
import torch
from torch import nn

from kleiber.nn.heads import LMHead
from kleiber.types.batch import Role
from kleiber.types.model import MLP, Attention, DecodingCache, Head, Layer, Model, Router, evaluation_mode


class Counter(DecodingCache):
    """A cache of a given number of positions."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions

    def __len__(self) -> int:
        return self.positions


def test_a_layer_has_no_roles_and_executes_the_flops_that_it_reports():
    class Product(Layer):
        def flops(self, time: int) -> float:
            return 3.0 * time

    assert Layer().roles() == {} and Layer().flops(8) == 0.0
    assert Product().executed_flops(8) == Product().flops(8) == 24.0


@pytest.mark.parametrize("hook", [Router().rebalance, MLP().rebalance])
def test_rebalancing_does_nothing_by_default(hook):
    assert hook(torch.ones(4)) is None and hook(None) is None


def test_optional_parts_are_absent_by_default():
    assert Attention().mask(4, 0, torch.device("cpu")) is None and MLP().last_matrix() is None
    model = Model()
    model.rebalance({"load/0": torch.ones(4)})
    assert model.causal and not model.tied


class Small(Model):
    """An embedding, a linear layer and an output layer."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tied, self.embedding, self.linear = tied, nn.Embedding(5, 3), nn.Linear(3, 3)
        self.head = LMHead(self.embedding.weight if tied else nn.Parameter(torch.zeros(5, 3)))


def test_the_role_of_a_parameter_is_that_of_the_first_layer_that_holds_it():
    embedding, linear = Role("embedding", 1), {"linear.weight": Role("hidden", 3), "linear.bias": Role("vector", 1)}
    assert Small(tied=True).roles() == {"embedding.weight": embedding, **linear}
    assert Small(tied=False).roles() == {"embedding.weight": embedding, **linear, "head.weight": Role("output", 3)}
    model = Small(tied=True)
    model.norm = nn.LayerNorm(3)
    with pytest.raises(AssertionError, match=r"LayerNorm\.weight has no role"):
        model.roles()


@pytest.mark.parametrize("tied", [True, False])
def test_freezing_the_head_leaves_a_tied_matrix_trainable(tied):
    model = Small(tied)
    model.freeze_head()
    assert model.embedding.weight.requires_grad and model.head.weight.requires_grad == tied


def test_a_head_multiplies_the_hidden_states_themselves():
    hidden, head = torch.ones(2, 3), Head()
    assert head.features(hidden) is hidden and head.multiplier == 1.0 and head.soft_cap is None


def test_a_cache_without_padding_has_no_mask():
    assert Counter(0).remember(None, torch.zeros(2, 3, dtype=torch.long)) is None


def test_padding_stays_masked_while_the_cache_grows():
    cache = Counter(0)
    prompt = torch.tensor([[False, True, True], [True, True, True]])
    first = cache.remember(prompt, torch.zeros(2, 3, dtype=torch.long))
    assert first is not None and torch.equal(first, prompt)
    cache.positions = 3
    second = cache.remember(None, torch.zeros(2, 1, dtype=torch.long))
    assert second is not None and second.tolist() == [[False, True, True, True], [True] * 4]


def test_positions_before_the_first_padding_are_real():
    cache = Counter(2)
    mask = cache.remember(torch.tensor([[False]]), torch.zeros(1, 1, dtype=torch.long))
    assert mask is not None and mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_in_its_former_mode_after_an_evaluation_that_fails(training):
    model = nn.Sequential(nn.Dropout(0.5)).train(training)
    with pytest.raises(ValueError, match="broken"), evaluation_mode(model):
        assert not model.training and not model[0].training
        raise ValueError("broken")
    assert model.training is training and model[0].training is training
