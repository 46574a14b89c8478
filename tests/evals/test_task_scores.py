"""Scores of tasks: the mean of all samples however ranks divide them, and bits per byte where they have a meaning."""

import math

import numpy as np
import pytest
import torch
from retention.toys import NEW, OLD, Language, learned

from kleiber.evals.task_scores import Runtime, bits_per_byte, bytes_per_target, held_out_loss, score_task, score_tasks
from kleiber.objectives.clm import CLM
from kleiber.types.contracts import Objective, Task

CPU = torch.device("cpu")


def test_the_held_out_loss_is_that_of_all_samples_and_the_mode_is_restored():
    net = learned().train()
    batches = [OLD.gather(np.arange(start, start + 4)) for start in (0, 4)]
    sums = held_out_loss(net, CLM(), batches, CPU)
    whole = CLM()(net, OLD.gather(np.arange(8)))
    assert sums.means()["ce"].item() == pytest.approx((whole.total / whole.tokens).item(), rel=1e-5)
    assert net.training and not sums.values["total"].requires_grad


def test_bits_per_byte_are_nats_over_the_bits_of_a_nat_and_the_bytes_of_a_token():
    assert bits_per_byte(math.log(2), 1.0) == 1.0
    assert bits_per_byte(3 * math.log(2), 4.0) == pytest.approx(0.75)


def test_a_loss_per_byte_has_a_meaning_for_unpadded_likelihoods_alone():
    assert bytes_per_target(CLM(), OLD) == OLD.num_bytes / OLD.num_tokens
    assert bytes_per_target(Objective(), OLD) is None
    padded = Language(1, rows=3)
    padded.padded = True
    assert bytes_per_target(CLM(), padded) is None


@pytest.mark.slow
def test_scores_are_named_by_prefix_task_and_metric():
    net, tasks = learned(), [Task("old", CLM(), OLD), Task("new", CLM(), NEW)]
    scores = score_tasks(net, tasks, None, 16, Runtime(), "val_ema")
    assert set(scores) == {f"val_ema/{task}/{name}" for task in ("old", "new") for name in ("loss", "bits_per_byte")}
    loss = scores["val_ema/old/loss"]
    assert loss.value == pytest.approx(score_task(net, tasks[0], None, 3, Runtime())["loss"].value, rel=1e-6)
    assert (loss.unit, loss.better, loss.label) == ("nats per token", "lower", "loss on old, averaged weights")


def test_ranks_divide_samples_unless_there_are_fewer_samples_than_ranks():
    assert Runtime(1, 2).share(OLD) == (1, 2)
    assert Runtime(1, len(OLD) + 1).share(OLD) == (0, 1)
