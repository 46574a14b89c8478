"""Two ranks compute what one process does: Fisher information, reference gradients, penalties."""

from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kleiber.models.transformer import Transformer
from kleiber.nn.moe import Global, interleaved_moe
from kleiber.objectives.clm import CLM
from kleiber.retention.agem import AGEM
from kleiber.retention.ewc import raw_fisher
from kleiber.retention.lwf import LwF
from kleiber.retention.replay import Replay
from kleiber.training.step import step_counts
from kleiber.types.contracts import Task

from .toys import CONTEXT, NEW, OLD, TASKS, VOCAB, learned


def numbers(rank=0, world=1):
    """What the methods say of one model; of the penalty, this rank's share of a batch of eight."""
    import numpy as np

    net = learned()
    lwf, agem = LwF(source="real"), AGEM(7)
    for method in (lwf, agem):
        method.begin_stage(net, TASKS, 3)
        method.data(NEW, TASKS, CLM())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05
    fisher = raw_fisher(net, TASKS[0], 9, 0)
    reference = agem.reference_gradient(net, list(net.parameters()), 4)
    share = np.arange(8)[rank * 8 // world : (rank + 1) * 8 // world]
    batch = NEW.gather(share)
    _, [(_, counts)] = step_counts(net, CLM(), [batch], [lwf], 4)
    return [*fisher.values(), *reference, lwf.penalty(net, batch, 4, counts).value.detach()]


class Other(CLM):
    """An objective of another class, whose text is not mixed with that of the stage."""


def pass_over_few_samples(rank):
    """The methods on fewer samples than ranks, with a balance loss that counts over all ranks."""
    import numpy as np

    torch.manual_seed(0)
    mixture = partial(interleaved_moe, num_experts=4, balance=Global())
    net = Transformer(VOCAB, depth=1, width=16, context=CONTEXT, num_heads=2, mlp=mixture)
    agem, replay, tasks = AGEM(1), Replay(0.1), [Task("old", Other(), OLD, OLD)]
    for method in (agem, replay):
        method.begin_stage(net, tasks, 0)
        method.data(NEW, tasks, CLM())
    agem.reference_gradient(net, list(net.parameters()), 0)
    raw_fisher(net, tasks[0], 3, 0)
    batch, losses = NEW.gather(np.arange(4 * rank, 4 * rank + 4)), []
    for step in range(6):
        _, [(_, counts)] = step_counts(net, CLM(), [batch], [replay], step)
        losses.append(replay.penalty(net, batch, step, counts).value.item())
    assert 0 < losses.count(0.0) < 6, "some steps draw no sample on this rank"


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    *same, penalty = numbers(rank, 2)
    dist.all_reduce(penalty)
    pass_over_few_samples(rank)
    torch.save([*same, penalty], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_are_one_process(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    for rank in range(2):
        for one, two in zip(numbers(), torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)
