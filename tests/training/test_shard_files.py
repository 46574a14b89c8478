"""Files of shards in a group of one rank; tests/training/test_fsdp_checkpoints.py has two and four."""

import json
import shutil

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kleiber.training import checkpoint, shard_files
from kleiber.training.remote import Remote


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def net(mesh=None) -> nn.Module:
    """A tied pair and a layer whose weight is a shard where there is a mesh."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    model.register_buffer("load", torch.rand(2))
    if mesh is not None:
        model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh, [Shard(0)]))
    return model


def save(folder, model, mesh, step=1, names=None):
    """Saves a model and a state like that of an optimizer, as the ranks of a run do."""
    moment = distribute_tensor(torch.arange(12.0).view(3, 4), mesh, [Shard(0)])
    state = {"optimizer": {"1.weight": {"exp_avg": moment, "step": torch.tensor(3.0)}}, "micro_batch": 2}
    rest, shards = shard_files.split_shards(state, mesh)
    buffers, tensors = shard_files.split_shards({n: v for n, v in model.state_dict().items() if n != "2.weight"}, mesh)
    weights = {name: tensors.get(name, value) for name, value in buffers.items() if names is None or name in names}
    checkpoint.save_shards(folder, step, weights, rest, shards, "hash", names, mesh, 1)
    return checkpoint.read(folder / checkpoint.name(step))


def test_a_whole_file_is_read_into_shards(mesh, tmp_path):
    model, sharded = net(), net(mesh)
    saved = checkpoint.save(tmp_path, 1, model, {}, "hash")
    saved.load_model(sharded)
    assert torch.equal(sharded[1].weight.full_tensor(), model[1].weight) and torch.equal(sharded.load, model.load)
    save_file({"1.weight": torch.zeros(2, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match=r"1\.weight"):
        shard_files.load_weights(sharded, tmp_path)
    sharded.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="extra"):
        saved.load_model(sharded)


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_read(mesh, tmp_path, damage):
    save(tmp_path, net(mesh), mesh, step=1)
    (shard,) = (save(tmp_path, net(mesh), mesh, step=2).path / "weights").iterdir()
    shard.unlink() if damage == "gone" else shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1 and str(shard) in complaints[0]


def test_a_folder_that_cannot_be_written_is_named(mesh, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        shard_files.write_tensors(tmp_path / "file/weights", {"a": torch.ones(2)}, mesh)
    with pytest.raises(OSError, match=r"step-00000001.*no earlier one"):
        save(tmp_path / "file", net(mesh), mesh)


def test_a_remote_copy_has_the_shards(mesh, tmp_path):
    folder, model = tmp_path / "runs/run-hash/stages/main/checkpoints", net()
    saved, other = save(folder, net(mesh), mesh), Remote((tmp_path / "there").as_uri(), folder)
    other.copy(saved.path, 2, [])
    shutil.rmtree(saved.path)
    other.fetch(other.names())
    checkpoint.latest_of(folder).load_model(model)
    meta = json.loads((saved.path / "meta.json").read_text())
    meta["sha256"]["weights/../../other"] = "0"
    (saved.path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(checkpoint.Damaged, match="sha256"):
        checkpoint.read(saved.path)


def test_the_hash_of_the_weights_is_that_of_all_their_files(mesh, tmp_path):
    saved = save(tmp_path, net(mesh), mesh)
    first = checkpoint.weights_sha256(tmp_path)
    save(tmp_path, net(mesh), mesh)
    assert len(first) == 64 and checkpoint.weights_sha256(tmp_path) != first
    meta = json.loads((saved.path / "meta.json").read_text())
    del meta["sha256"]["state.pt"]
    (saved.path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(checkpoint.Damaged):
        checkpoint.read(saved.path)
