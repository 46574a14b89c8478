"""Loading a checkpoint of shards into models that are whole or sharded, in a group of one rank."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from training.test_shard_files import net, save

from kleiber.nn.sharding import is_sharded


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_checkpoint_of_shards_is_read_whole_and_as_shards(mesh, tmp_path):
    model, other, sharded = net(mesh), net(), net(mesh)
    saved = save(tmp_path, model, mesh)
    saved.load_model(other)
    saved.load_model(sharded)
    assert other[2].weight is other[0].weight and torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(other.load, model.load) and torch.equal(other[1].weight, model[1].weight.full_tensor())
    assert is_sharded(sharded[1].weight) and torch.equal(sharded[1].weight.full_tensor(), other[1].weight)
    assert saved.shapes()["1.weight"] == (3, 4)
    for reader, is_shard in ((None, False), (other, False), (sharded, True)):
        state = saved.load_state(reader)
        moment = state["optimizer"]["1.weight"]["exp_avg"]
        assert is_sharded(moment) == is_shard and state["micro_batch"] == 2
        whole = moment.full_tensor() if is_shard else moment
        assert torch.equal(whole, torch.arange(12.0).view(3, 4)) and state["optimizer"]["1.weight"]["step"] == 3


def test_weights_by_name_are_those_of_an_adapter(mesh, tmp_path):
    model, sharded = net(mesh), net(mesh)
    before = sharded[0].weight.detach().clone()
    saved = save(tmp_path, model, mesh, names={"1.weight"})
    saved.load_model(sharded, {"1.weight"})
    assert torch.equal(sharded[1].weight.full_tensor(), model[1].weight.full_tensor())
    assert torch.equal(sharded[0].weight, before)
    with pytest.raises(ValueError, match="an adapter"):
        saved.load_model(sharded)
    with pytest.raises(ValueError):
        saved.load_model(sharded, {"1.bias"})
