"""SGD moves parameters as torch.optim.SGD does, at the rates of muP, and resumes exactly."""

import copy

import pytest
import torch

from kleiber.config.errors import ConfigError
from kleiber.launch.main import compose_config
from kleiber.models.transformer import Transformer
from kleiber.nn.sharding import load_optimizer, optimizer_state
from kleiber.objectives.clm import CLM
from kleiber.optimizers.sgd import SGD
from kleiber.types.batch import Batch


def small(width: int = 64) -> Transformer:
    torch.manual_seed(0)
    return Transformer(96, width=width, context=32)


def build(model: Transformer, **options) -> torch.optim.Optimizer:
    return SGD(**options).build(model, model.roles(), model.parametrization.lr_scale)


def train(model: Transformer, optimizer: torch.optim.Optimizer, *steps: int) -> None:
    for step in steps:
        tokens = torch.randint(96, (4, 33), generator=torch.Generator().manual_seed(step))
        loss = CLM()(model, Batch(tokens))
        (loss.total / loss.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_every_parameter_has_the_rate_of_its_role():
    model = small(64)  # twice the base width
    rates = {name: g["lr"] for g in build(model, lr=0.5).param_groups for name in g["names"]}
    assert rates["embedding.weight"] == rates["norm.weight"] == 1.0
    assert {rates[name] for name in rates if name.startswith("blocks.") and "norm" not in name} == {0.5}
    gains = {name for name in rates if name.startswith("blocks.") and name.endswith("_norm.weight")}
    of_heads = {name for name in gains if name.endswith(("q_norm.weight", "k_norm.weight"))}  # of a size of their own
    assert {rates[name] for name in gains - of_heads} == {1.0} and {rates[name] for name in of_heads} == {0.5}


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"nesterov": True, "weight_decay": 0.1}])
def test_at_the_base_width_it_is_torchs_sgd(options):
    ours, theirs = small(32), small(32)
    decayed = [p for p in theirs.parameters() if p.dim() == 2 and p is not theirs.embedding.weight]
    rest = [p for p in theirs.parameters() if all(p is not other for other in decayed)]
    settings = {"momentum": 0.9, **options, "weight_decay": 0.0}
    groups = [{"params": decayed, "weight_decay": options.get("weight_decay", 0.0)}, {"params": rest}]
    train(ours, build(ours, lr=0.1, **options), 0, 1, 2)
    train(theirs, torch.optim.SGD(groups, lr=0.1, **settings), 0, 1, 2)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_restored_state_continues_bit_for_bit(momentum):
    model = small()
    optimizer = build(model, momentum=momentum)
    train(model, optimizer, 0, 1)
    saved = copy.deepcopy((model.state_dict(), optimizer_state(optimizer)))
    train(model, optimizer, 2, 3)
    again = small()
    again.load_state_dict(saved[0])
    resumed = build(again, momentum=momentum)
    load_optimizer(resumed, saved[1])
    train(again, resumed, 2, 3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_it_is_a_choice_and_classes_of_torch_are_refused_with_it():
    assert compose_config(["optimizer=sgd", "optimizer.momentum=0"])["optimizer"]["momentum"] == 0
    with pytest.raises(ConfigError, match="optimizer=sgd"):
        compose_config(["optimizer._target_=torch.optim.SGD"])
    with pytest.raises(ValueError, match="nesterov"):
        SGD(momentum=0.0, nesterov=True)
