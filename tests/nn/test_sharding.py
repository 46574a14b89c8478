"""Full weights and optimizer state of a sharded model, in a group of one rank."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from kleiber.nn.sharding import (
    full_parameters,
    inner_product,
    is_sharded,
    load_optimizer,
    needs_other_ranks,
    optimizer_state,
    place_by_name,
    place_like,
    split_sharded,
)
from kleiber.training import checkpoint
from kleiber.training.snapshot import copy_tensors


@pytest.fixture
def net():
    """Two layers and a root with a tied matrix, each a unit."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = tied()
    fully_shard(model[0])
    yield fully_shard(model, reshard_after_forward=False)
    dist.destroy_process_group()


def tied() -> nn.Sequential:
    inner = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    inner[2].weight = inner[0].weight
    return nn.Sequential(inner)


def test_with_full_parameters_a_model_is_plain_and_saved_with_its_ties(net, tmp_path):
    before = {name: value.full_tensor() for name, value in net.state_dict().items()}
    with full_parameters(net):
        inside = net.state_dict()
        assert not any(isinstance(value, DTensor) for value in inside.values())
        net(torch.tensor([[1, 2]]))  # after which a unit shards itself, at other times
        assert not any(isinstance(parameter, DTensor) for parameter in net.parameters())
        saved = checkpoint.save(tmp_path, 1, net, {}, "hash")
    assert all(isinstance(value, DTensor) for value in [*net.state_dict().values(), *net.parameters()])
    other = tied()
    saved.load_model(other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_unit_shards_itself_again_after_full_parameters(net):
    with full_parameters(net):
        pass
    net(torch.tensor([[1, 2]]))
    assert all(isinstance(parameter, DTensor) for parameter in net.parameters())


def test_optimizer_state_is_gathered_whole_and_placed_in_shards(net):
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.AdamW([{"params": list(parameters.values()), "names": list(parameters)}], fused=True)
    net(torch.tensor([[1, 2]])).square().sum().backward()
    optimizer.step()
    state = optimizer_state(optimizer)
    gathered = copy_tensors(state, keep=True)
    assert not any(isinstance(value, DTensor) for values in gathered.values() for value in values.values())
    assert all(
        value is None
        for values in copy_tensors(state, keep=False).values()
        for key, value in values.items()
        if key != "step"
    )
    assert copy_tensors(gathered, keep=False).keys() == gathered.keys()
    for name, values in gathered.items():
        for key, value in values.items():
            back = place_like(value, parameters[name])
            assert isinstance(back, DTensor) == (key != "step")
            assert torch.equal(back.full_tensor() if key != "step" else back, value)


def test_within_full_parameters_scores_and_weights_that_are_loaded_stay(net):
    """What the end of a stage does: load a point of WiSE, and score it, which asks for the full parameters again."""
    with full_parameters(net):
        net.load_state_dict({name: torch.ones_like(value) for name, value in net.state_dict().items()})
        with full_parameters(net):
            net(torch.tensor([[1, 2]])).sum().backward()
        assert all(bool((value == 1).all()) and not is_sharded(value) for value in net.parameters())
    assert all(is_sharded(value) for value in net.parameters())


def test_memory_is_placed_by_name_and_gathered(net):
    memory = {"start": {name: torch.randn(value.shape) for name, value in net.named_parameters()}, "seed": 3}
    memory["0.0.weight"] = {"text": torch.ones(2)}
    placed = place_by_name(memory, net)
    assert all(is_sharded(value) for value in placed["start"].values())
    assert not is_sharded(placed["0.0.weight"]["text"]) and placed["seed"] == 3
    product = inner_product(list(placed["start"].values()), list(net.parameters()))
    with full_parameters(net):
        expected = sum((memory["start"][name] * value).sum() for name, value in net.named_parameters())
    assert product.item() == pytest.approx(expected.item(), rel=1e-6)
    gathered = copy_tensors(placed, keep=True)
    assert all(torch.equal(value, memory["start"][name]) for name, value in gathered["start"].items())
    assert not any(copy_tensors(placed, keep=False)["start"].values())


def test_a_plain_model_is_left_alone():
    net = nn.Linear(2, 2)
    with full_parameters(net):
        assert net(torch.ones(1, 2)).shape == (1, 2)
    state = {"weight": {"step": torch.ones(())}}
    assert copy_tensors(state, keep=False) == state


def test_with_full_parameters_what_is_sharded_without_fsdp_is_plain(net):
    module, mesh = nn.Linear(3, 2), init_device_mesh("cpu", (1,))
    shard = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(0)]))
    module.weight = shard
    assert needs_other_ranks(module)
    with full_parameters(module), full_parameters(module):
        assert not needs_other_ranks(module) and torch.equal(module.weight, shard.full_tensor())
        assert isinstance(module.weight, nn.Parameter) and not isinstance(module.weight, DTensor)
    assert module.weight is shard and list(dict(module.named_parameters())) == ["weight", "bias"]
    assert split_sharded([module.bias, shard, module.bias]) == [[module.bias, module.bias], [shard]]


def test_optimizer_state_goes_by_name_not_by_place():
    def build(order):
        net = nn.ModuleDict({n: nn.Linear(2, 2, bias=False) for n in "ab"})
        groups = [{"params": [net[n].weight], "names": [f"{n}.weight"]} for n in order]
        return net, torch.optim.AdamW(groups, fused=True)

    net, optimizer = build("ab")
    for number, p in enumerate(net.parameters()):
        p.grad = torch.full((2, 2), float(number + 1))
    optimizer.step()
    other, fresh = build("ba")
    load_optimizer(fresh, optimizer_state(optimizer))
    for name in "ab":
        assert torch.equal(fresh.state[other[name].weight]["exp_avg"], optimizer.state[net[name].weight]["exp_avg"])
    with pytest.raises(ValueError, match=r"c\.weight"):
        load_optimizer(fresh, {"c.weight": {}})
