"""One optimizer step: penalties, micro-batches of padded rows, and changes of gradients before clipping."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from retention.toys import NEW, model
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from kleiber.models.transformer import Transformer
from kleiber.nn.moe import PerSequence, interleaved_moe
from kleiber.objectives.clm import CLM
from kleiber.training.step import accumulate, gradient_norms, micro_batches, normalize_gradients, read_numbers
from kleiber.types.batch import Batch, Penalty
from kleiber.types.retention import Retention


class HalfSquare(Retention):
    """1/2 |w|^2 of one parameter, in equal parts for all samples."""

    def penalty_counts(self, model, batch, step):
        return [len(batch)]

    def penalty(self, model, batch, step, counts):
        part = 0.5 * model.norm.weight.square().sum() * len(batch) / counts[0]
        return Penalty(part, {"half": part.detach()})


@pytest.mark.parametrize("rows", [8, 3])
def test_a_penalty_adds_its_parts_to_the_mean_loss(rows):
    batch = NEW.gather(np.arange(8))
    results = []
    for retention in ([Retention()], [Retention(), HalfSquare()]):
        net = model()
        sums = accumulate(net, CLM(), batch.split(rows), torch.Tensor.backward, retention=retention)
        tokens = sums.values["tokens"].item()
        results.append((net.norm.weight.grad / tokens, {k: v.item() for k, v in sums.means().items()}))
    (plain, before), (pulled, after) = results
    assert torch.allclose(pulled - plain, net.norm.weight, atol=1e-5)
    exact = 0.5 * net.norm.weight.square().sum().item()
    assert after["total"] - before["total"] == pytest.approx(exact, rel=1e-4)
    assert after["retention/half"] == pytest.approx(exact, rel=1e-4) and after["ce"] == before["ce"]


def test_a_change_sees_the_mean_gradient_and_is_clipped():
    weight = torch.nn.Parameter(torch.zeros(2))
    gradients = []

    def change():
        gradients.append(weight.grad.clone())
        weight.grad += torch.tensor([0.0, 4.0])

    weight.grad = torch.tensor([30.0, 0.0])
    assert normalize_gradients([weight], 10.0, 1, 1.0, change) == pytest.approx(5.0)
    assert gradients[0].tolist() == [3.0, 0.0] and weight.grad.tolist() == pytest.approx([0.6, 0.8])


def test_the_norm_of_sharded_and_whole_gradients_is_that_of_all_of_them():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole, shard = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
        shard = torch.nn.Parameter(distribute_tensor(shard.detach(), mesh, [Shard(0)]))
        whole.grad = torch.tensor([30.0, 0.0])
        shard.grad = distribute_tensor(torch.tensor([0.0, 40.0]), mesh, [Shard(0)])
        assert normalize_gradients([whole, shard], 10.0, 1, 1.0) == pytest.approx(5.0)
        assert whole.grad.tolist() == pytest.approx([0.6, 0.0])
        assert shard.grad.full_tensor().tolist() == pytest.approx([0.0, 0.8])
    finally:
        dist.destroy_process_group()


def test_the_balance_loss_of_marked_targets_does_not_depend_on_the_split():
    """Rows with other shares of targets: 12 of 16 in one, 2 in the others."""
    weights = torch.zeros(4, 17, dtype=torch.float64)
    weights[0, 5:], weights[1:, -2:] = 1.0, 1.0
    tokens, results = torch.randint(11, (4, 17)), []
    for rows in (4, 1):
        torch.manual_seed(0)
        mixture = partial(interleaved_moe, num_experts=4, balance=PerSequence(1.0))
        net = Transformer(12, depth=1, width=16, context=16, num_heads=2, mlp=mixture).double()
        sums = accumulate(net, CLM(), Batch(tokens, weights=weights).split(rows), torch.Tensor.backward)
        results.append((net.blocks[0].mlp.router.linear.weight.grad, sums.means()))
    (gradient, whole), (other_gradient, split) = results
    assert torch.allclose(gradient, other_gradient, rtol=1e-9, atol=1e-12)
    for name in ("total", "loss", "balance/0", "load/0"):
        assert torch.allclose(whole[name], split[name], rtol=1e-9), name


@pytest.mark.parametrize("rows", [3, 4, 12])
def test_padded_rows_in_parts_of_like_length_make_the_same_step(rows):
    lengths = torch.tensor([3, 16, 5, 16, 2, 9, 4, 7, 16, 2, 3, 6])
    tokens = torch.randint(11, (12, 16), generator=torch.Generator().manual_seed(0))
    real = torch.arange(16) < lengths[:, None]
    batch = Batch(tokens, real=real, weights=real.float(), samples=torch.arange(12))
    parts = micro_batches(batch, rows)
    assert sum(part.tokens.numel() for part in parts) < (1 if rows < 12 else 1.01) * tokens.numel()
    rows_of = [zip(part.samples, part.tokens, part.real, strict=True) for part in parts]
    tokens_by_sample = {int(i): row[keep].tolist() for triples in rows_of for i, row, keep in triples}
    assert tokens_by_sample == {i: tokens[i, : lengths[i]].tolist() for i in range(12)}
    results = []
    for split in ([batch], parts):
        net = model()
        sums = accumulate(net, CLM(), split, torch.Tensor.backward)
        results.append((net.norm.weight.grad, sums.means()["ce"].item()))
    (gradient, loss), (other_gradient, other_loss) = results
    assert torch.allclose(gradient, other_gradient, atol=1e-4) and loss == pytest.approx(other_loss, abs=1e-5)
    left = dataclasses.replace(batch, real=real.flip(1), tokens=tokens.flip(1))
    assert all(part.tokens.shape[1] == 16 for part in micro_batches(left, 3)), "padding in front is left alone"


def test_norms_that_were_read_before_give_the_same_gradients():
    results = []
    for is_read in (False, True):
        weight = torch.nn.Parameter(torch.zeros(2))
        weight.grad = torch.tensor([30.0, 40.0])
        norms = read_numbers(gradient_norms([weight])) if is_read else None
        results.append((normalize_gradients([weight], 7.0, 2, 1.0, norms=norms), weight.grad.tolist()))
    assert results[0] == results[1] and results[0][0] == pytest.approx(100 / 7)
