"""Muon moves each expert as torch.optim.Muon moves a matrix, leaves other parameters to AdamW, and resumes exactly."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import PATIENCE
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from kleiber.models.transformer import Transformer
from kleiber.nn.moe import interleaved_moe
from kleiber.nn.mup import MuP, StandardParametrization
from kleiber.nn.sharding import load_optimizer, optimizer_state
from kleiber.objectives.clm import CLM
from kleiber.optimizers.muon import Muon, ShardedMuon, StackedMuon, orthogonalize
from kleiber.types.batch import Batch


def mixture(width: int = 64) -> Transformer:
    torch.manual_seed(0)
    return Transformer(96, width=width, context=32, mlp=partial(interleaved_moe, num_experts=4, k=2))


def build(model: Transformer, **options) -> torch.optim.Optimizer:
    return Muon(**options).build(model, model.roles(), model.parametrization.lr_scale)


def train(model: Transformer, optimizer: torch.optim.Optimizer, *steps: int) -> None:
    for step in steps:
        tokens = torch.randint(96, (4, 33), generator=torch.Generator().manual_seed(step))
        CLM()(model, Batch(tokens)).total.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16), (2, 24, 24)])
def test_every_expert_moves_as_torchs_muon_moves_a_matrix(shape):
    stack = torch.nn.Parameter(torch.randn(shape))
    single = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stacked = StackedMuon([{"params": [stack], "lr": 0.1, "weight_decay": 0.2}], momentum=0.9, steps=5)
    reference = torch.optim.Muon(single, lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        stack.grad = torch.randn(shape)
        for matrix, gradient in zip(single, stack.grad, strict=True):
            matrix.grad = gradient.clone()
        stacked.step()
        reference.step()
    # Both work in bf16, where the order of a sum is worth three digits.
    torch.testing.assert_close(stack.detach(), torch.stack([m.detach() for m in single]), rtol=0, atol=5e-3)


def test_sharded_matrices_move_as_with_torchs_muon():
    """In a group of one rank; tests/training/test_fsdp.py has two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (3, 9), (5, 5))]
        sharded = [torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in plain]
        options = {"lr": 0.1, "weight_decay": 0.2}
        ours = ShardedMuon([{"params": sharded, **options}], momentum=0.9, steps=5)
        reference = torch.optim.Muon(plain, momentum=0.9, adjust_lr_fn="match_rms_adamw", **options)
        for _ in range(3):
            for p, part in zip(plain, sharded, strict=True):
                p.grad = torch.randn(p.shape)
                part.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
            ours.step()
            reference.step()
        assert all(torch.equal(p, part.to_local()) for p, part in zip(plain, sharded, strict=True))
    finally:
        dist.destroy_process_group()


def test_singular_values_come_near_one_and_zeros_stay():
    stack = torch.randn(3, 20, 50)
    stack[2] = 0
    values = torch.linalg.svdvals(orthogonalize(stack, 5).float())
    assert values[:2].min() > 0.5 and values[:2].max() < 1.3
    assert values[2].max() == 0


def test_muon_has_the_matrices_of_blocks_and_adamw_the_other_parameters():
    model = mixture()
    optimizer = build(model)
    train(model, optimizer, 0)
    muons = {n for n, state in optimizer_state(optimizer).items() if "momentum_buffer" in state}
    roles = model.roles()
    assert muons == {name for name, role in roles.items() if role.kind == "hidden"}
    assert any("experts" in name for name in muons) and any("qkv" in name for name in muons)
    assert sorted(n for g in optimizer.param_groups for n in g["names"]) == sorted(roles)


@pytest.mark.parametrize("parametrization", [MuP(base_width=32), StandardParametrization()])
def test_a_matrix_has_the_square_root_of_adams_scale_and_lr_times_decay_is_constant(parametrization):
    model = Transformer(96, width=128, context=32, parametrization=parametrization)
    groups = {n: g for g in build(model, weight_decay=0.3).param_groups for n in g["names"]}
    for name, role in model.roles().items():
        scale = parametrization.lr_scale(role)
        assert groups[name]["lr_scale"] == pytest.approx(scale**0.5 if role.kind == "hidden" else scale)
        if role.kind == "hidden":
            assert groups[name]["lr"] * groups[name]["weight_decay"] == pytest.approx(0.02 * 0.3)


def test_the_singular_values_of_a_step_do_not_depend_on_the_width():
    """The largest singular value of a step, over sqrt(fan_out / fan_in), does not depend on the width."""
    sizes = []
    for width in (64, 256):
        model = Transformer(96, width=width, context=32)
        before = model.blocks[0].mlp.down.weight.detach().clone()
        train(model, build(model), 0)
        moved = model.blocks[0].mlp.down.weight.detach() - before
        sizes.append((torch.linalg.svdvals(moved)[0] / (moved.shape[0] / moved.shape[1]) ** 0.5).item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)


def test_training_resumes_exactly_from_state_by_name():
    straight, resumed = mixture(), mixture()
    unbroken = build(straight)
    train(straight, unbroken, 0, 1, 2, 3)
    first = build(resumed)
    train(resumed, first, 0, 1)
    state = {n: {k: v.clone() for k, v in s.items()} for n, s in optimizer_state(first).items()}
    second = build(resumed)
    load_optimizer(second, state)
    train(resumed, second, 2, 3)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max(folder.glob("stages/main/checkpoints/*/model.safetensors")))


@pytest.mark.slow
@pytest.mark.process
def test_a_run_resumes_exactly_and_is_the_same_on_two_ranks(launch, process, interrupted, tmp_path):
    options = ["model=moe", "optimizer=muon", "trainer=ddp", "trainer.precision=64", "model.depth=1", "budget.steps=8"]
    options += ["model.context=64", "data.max_bytes=20000", "eval.tokens=1024"]
    alone = launch(*options, "trainer.devices=1", root="alone")
    with interrupted(3):
        launch(*options, "trainer.devices=1", root="broken", code=130)
    resumed = launch(*options, "trainer.devices=1", root="broken")
    assert all(torch.equal(weights(alone)[name], tensor) for name, tensor in weights(resumed).items())
    pair = process(*options, "trainer.devices=2", root="pair")
    _, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 0, err
    for name, tensor in weights(next((tmp_path / "pair").glob("*/*"))).items():
        # The orthogonalize step is made in bf16, so what differs in the last digit of fp64 can differ there.
        torch.testing.assert_close(tensor, weights(alone)[name], rtol=0, atol=1e-3)
