"""A projected gradient never raises the reference loss to first order, and one that would not is left alone."""

import numpy as np
import pytest
import torch

from kleiber.objectives.clm import CLM
from kleiber.retention.agem import AGEM

from .toys import CONTEXT, NEW, OLD, TASKS, learned, model, train


def begun(rows=16):
    method = AGEM(rows)
    method.begin_stage(model(), TASKS, 3)
    method.data(NEW, TASKS, CLM())
    return method


def mean_gradient(net, batch):
    net.zero_grad()
    found = CLM()(net, batch)
    (found.total / found.tokens).backward()


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.slow
def test_the_projected_gradient_is_not_opposed_to_the_reference():
    net, method, met = learned(), begun(), 0
    for step in range(12):
        mean_gradient(net, NEW.gather(np.arange(8 * step, 8 * step + 8)))
        parameters = list(net.parameters())
        reference = flat(method.reference_gradient(net, parameters, step))
        before = flat([p.grad for p in parameters]).clone()
        opposed = method.gradients(net, step)["agem"].item()
        after = flat([p.grad for p in parameters])
        assert (before @ reference).item() < 0 if opposed else torch.equal(before, after)
        assert (after @ reference).item() >= -1e-5 * after.norm().item() * reference.norm().item()
        met += opposed
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.5 * parameter.grad
    assert met > 0, "the projection was never needed: the test says nothing"


@pytest.mark.slow
def test_the_reference_is_the_mean_gradient_of_this_steps_samples():
    net, method = learned(), begun(4)
    one, two, other = (flat(method.reference_gradient(net, list(net.parameters()), step)) for step in (5, 5, 6))
    assert torch.equal(one, two) and not torch.equal(one, other)
    everything = begun(4000)
    mean_gradient(net, OLD.gather(np.arange(len(OLD))))
    exact = flat([p.grad for p in net.parameters()])
    found = flat(everything.reference_gradient(net, list(net.parameters()), 0))
    assert (found - exact).norm() < 0.2 * exact.norm(), "many draws are the whole text"


def test_the_steps_own_gradient_is_untouched_where_they_agree():
    net, method = learned(), begun()
    mean_gradient(net, OLD.gather(np.arange(100)))
    before = flat([p.grad for p in net.parameters()]).clone()
    method.reference_gradient(net, list(net.parameters()), 0)
    assert torch.equal(before, flat([p.grad for p in net.parameters()]))
    assert train(learned(), NEW, 3, [begun()])["agem"] in (0.0, 1.0)


def test_the_extra_passes_are_those_over_the_reference_samples():
    net, method, rows = learned(), begun(16), []
    net.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    method.reference_gradient(net, list(net.parameters()), 0)
    assert method.extra_passes(8) == (0, sum(rows) / 8) == (0, 2)


@pytest.mark.slow
def test_reference_samples_are_those_of_its_memory():
    net, method = learned(), AGEM(4000, memory=10 * CONTEXT)
    method.begin_stage(model(), TASKS, 3)
    method.data(NEW, TASKS, CLM())
    mean_gradient(net, OLD.gather(np.arange(0, len(OLD), len(OLD) // 10)))
    kept = flat([p.grad for p in net.parameters()])
    found = flat(method.reference_gradient(net, list(net.parameters()), 0))
    assert (found - kept).norm() < 0.05 * kept.norm()
