"""Models that are built, loaded, sharded and copied as shards, in a group of one rank."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from kleiber.models.transformer import Transformer
from kleiber.nn import lora
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.sharded_model import copy_model, rows_of_rank, shard, sharded_blocks, whole_model
from kleiber.nn.sharding import full_parameters, is_sharded, waits_for_ranks
from kleiber.types.batch import Batch


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def net(mesh):
    """Two layers and a root with a tied matrix, each a unit."""
    inner = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    inner[2].weight = inner[0].weight
    model = nn.Sequential(inner)
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def build() -> Transformer:
    torch.manual_seed(1)
    return Transformer(32, depth=2, width=16, context=8, mlp=interleaved_moe)


def build_sharded(mesh) -> Transformer:
    with sharded_blocks(mesh):
        return build()


BATCH = Batch(torch.arange(12).view(2, 6))


def test_a_copy_has_its_parameters_to_itself(net):
    tokens = torch.tensor([[1, 2]])
    expected = net(tokens)
    with full_parameters(net):
        plain = copy_model(net)
    assert type(plain) is nn.Sequential and torch.equal(plain(tokens), expected)
    assert plain[0][2].weight is plain[0][0].weight, "tied"
    net(tokens).sum().backward()  # after which every part has its shards alone
    sharded = copy_model(net)
    assert type(sharded) is nn.Sequential and all(is_sharded(value) for value in sharded.parameters())
    sharded.blocks = [sharded[0]]
    shard(sharded, next(sharded.parameters()).device_mesh)
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
        assert torch.equal(sharded(tokens), expected)
        assert sharded[0][2].weight is sharded[0][0].weight, "tied"
    net(tokens).sum().backward()  # its own hooks and states are still there
    assert all(is_sharded(value) and value.grad is not None for value in net.parameters())


def test_a_model_whose_blocks_are_shards_has_the_weights_of_a_whole_one(mesh):
    whole, model = build(), build_sharded(mesh)
    in_blocks = {name for name, _ in whole.named_parameters() if name.startswith("blocks.")}
    assert {name for name, value in model.named_parameters() if is_sharded(value)} == in_blocks
    model.blocks[0].attention.out.weight.requires_grad_(False)
    shard(model, mesh)
    assert all(is_sharded(value) for value in model.parameters()) and waits_for_ranks(model)
    assert not model.blocks[0].attention.out.weight.requires_grad
    with full_parameters(model):
        assert not waits_for_ranks(model)
        assert all(torch.equal(value, whole.get_parameter(name)) for name, value in model.named_parameters())
    expected, output = whole(BATCH).hidden, model(BATCH).hidden
    assert torch.equal(output, expected)
    output.sum().backward()
    assert model.blocks[1].attention.out.weight.grad is not None


def saved_bytes(model: Transformer) -> int:
    """Bytes that exist for the backward pass after a forward pass in bf16, weights and their gathered copies included.

    What FSDP2 has freed again has no bytes.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        output = model(BATCH)
    total = sum(storage.nbytes() for storage in storages.values())
    output.hidden.sum().backward()
    return total


def matrices_of_blocks(model: Transformer) -> dict[str, nn.Parameter]:
    names = [name for name, role in model.roles().items() if name.startswith("blocks.") and role.kind == "hidden"]
    return {name: model.get_parameter(name) for name in names}


def test_matrices_of_blocks_are_gathered_in_bf16_and_no_copy_waits_for_the_backward_pass(mesh):
    whole, copied, model = build(), build_sharded(mesh), build_sharded(mesh)
    shard(copied, mesh)
    shard(model, mesh, torch.bfloat16)
    matrices = matrices_of_blocks(whole)
    size = sum(parameter.numel() for parameter in matrices.values())
    saved = saved_bytes(copied) - saved_bytes(model)
    assert saved == pytest.approx(2 * size, rel=0.05), "2 bytes a parameter, less gains that stay gathered in fp32"
    saved_bytes(whole)
    for name, value in model.named_parameters():
        assert is_sharded(value) and value.dtype == value.grad.dtype == torch.float32, name
        assert torch.equal(value.grad.full_tensor(), whole.get_parameter(name).grad), name


def test_what_autocast_does_not_round_is_gathered_in_fp32(mesh):
    model, seen = build_sharded(mesh), {}
    shard(model, mesh, torch.bfloat16)
    for number, block in enumerate(model.blocks):
        block.mlp.register_forward_pre_hook(
            lambda *_, number=number, block=block: seen.update(
                {f"blocks.{number}.{name}": value.dtype for name, value in block.named_parameters()}
            )
        )
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(BATCH).hidden
        assert torch.equal(hidden, build()(BATCH).hidden)
    rounded = {name for name, dtype in seen.items() if dtype == torch.bfloat16}
    assert rounded == set(matrices_of_blocks(model)) < set(seen) == {n for n in model.roles() if n[:7] == "blocks."}
    hidden.sum().backward()


def test_all_weights_are_exact_within_full_parameters(mesh):
    whole, model = build(), build_sharded(mesh)
    shard(model, mesh, torch.bfloat16)
    for _ in range(2):
        with full_parameters(model):
            assert all(torch.equal(value, whole.get_parameter(name)) for name, value in model.named_parameters())
            assert torch.equal(model(BATCH).hidden, whole(BATCH).hidden)
            assert torch.equal(copy_model(model)(BATCH).hidden, whole(BATCH).hidden)
        assert all(is_sharded(value) for value in model.parameters())
        saved_bytes(model)


def test_a_model_with_a_low_rank_update_is_gathered_in_its_own_precision(mesh):
    model = build_sharded(mesh)
    lora.adapt(model.blocks[0].attention.out, "weight", 2, 1.0, torch.Generator().manual_seed(0))
    shard(model, mesh, torch.bfloat16)
    model(BATCH).hidden.sum().backward()
    assert model.blocks[1].attention.out.weight.grad is not None


def test_a_model_that_draws_weights_after_its_list_of_blocks_is_refused(mesh):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(3, 2)])
            nn.init.zeros_(self.blocks[0].weight)

    with pytest.raises(ValueError, match=r"Linear 0.*trainer=fsdp"), sharded_blocks(mesh):
        Late()


def test_weights_are_loaded_into_shards_through_a_whole_model(mesh):
    model, other = build_sharded(mesh), Transformer(32, depth=2, width=16, context=8, mlp=interleaved_moe)
    with whole_model(model) as whole:
        assert not any(is_sharded(value) for value in whole.parameters())
        whole.load_state_dict(other.state_dict())
    for name, value in model.named_parameters():
        value = value.full_tensor() if is_sharded(value) else value
        assert torch.equal(value, other.get_parameter(name))
    with whole_model(other) as same:
        assert same is other


def test_an_adapted_stack_keeps_its_own_weights_as_shards(mesh):
    """FSDP2 reads parameters as attributes, and those of an adapted stack have the update added."""
    model, experts = build_sharded(mesh), None
    for experts in (m for m in model.modules() if "gate_up" in m._parameters and m._parameters["gate_up"].ndim == 3):
        lora.adapt(experts, "gate_up", 2, 1.0, torch.Generator().manual_seed(0))
        nn.init.ones_(experts.gate_up_lora_b)
    before = experts._parameters["gate_up"].full_tensor()
    shard(model, mesh)
    with full_parameters(model):
        assert torch.equal(experts._parameters["gate_up"], before) and not torch.equal(experts.gate_up, before)


def test_rows_are_divided_as_fsdp_divides_them():
    class Mesh:
        def __init__(self, rank):
            self.rank = rank

        def size(self):
            return 4

        def get_local_rank(self):
            return self.rank

    assert [rows_of_rank(9, Mesh(rank)) for rank in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 9)]
    assert [rows_of_rank(1, Mesh(rank)) for rank in range(4)] == [(0, 1), (1, 1), (1, 1), (1, 1)]
