"""Two ranks compute what one process does: Fisher information, reference gradients, penalties."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kleiber.objectives.clm import CLM
from kleiber.retention.agem import AGEM
from kleiber.retention.ewc import raw_fisher
from kleiber.retention.lwf import LwF

from .toys import NEW, TASKS, learned


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
    penalty = lwf.penalty(net, NEW.gather(share), 4)
    return [*fisher.values(), *reference, penalty.total.detach() * len(share) / 8]


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    *same, penalty = numbers(rank, 2)
    dist.all_reduce(penalty)
    torch.save([*same, penalty], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_are_one_process(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    for rank in range(2):
        for one, two in zip(numbers(), torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)
