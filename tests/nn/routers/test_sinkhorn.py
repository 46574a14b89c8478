"""The transport plan of Sinkhorn routing: its sums, its effect on the load, and padding."""

import torch
import torch.nn.functional as F

from kleiber.nn.mup import Site
from kleiber.nn.routers.sinkhorn import Sinkhorn
from kleiber.types.batch import Batch

SITE = Site(16)


def batch_of(rows: int, time: int, real=None) -> Batch:
    return Batch(torch.randint(50, (rows, time)), real=real)


def test_the_plan_of_sinkhorn_evens_the_load_in_training_alone():
    router, x = Sinkhorn(SITE, 8, 2, iterations=30), torch.randn(400, 16)
    x[:, 0] += 2
    router.linear.weight.data[0, 0] += 2
    training = F.one_hot(router(x, batch_of(4, 100)).experts, 8).sum((0, 1)).float()
    evaluation = F.one_hot(router.eval()(x).experts, 8).sum((0, 1)).float()
    assert float(training.max()) < 0.7 * float(evaluation.max())
    plan = router.plan(router.linear(x).detach().view(4, 100, 8), None).exp()
    torch.testing.assert_close(plan.sum(2), torch.ones(4, 100))
    torch.testing.assert_close(plan.sum(1), torch.full((4, 8), 100 / 8), atol=0.5, rtol=0.05)


def test_padding_does_not_move_the_plan():
    router = Sinkhorn(SITE, 4, 2)
    logits = torch.randn(1, 6, 4)
    real = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(router.plan(logits, real)[:, :4], router.plan(logits[:, :4], None))


def test_weights_are_sigmoids_of_the_chosen_logits_in_training_and_evaluation():
    router, x = Sinkhorn(SITE, 8, 2), torch.randn(12, 16)
    for routing in (router(x, batch_of(3, 4)), router.eval()(x)):
        torch.testing.assert_close(routing.weights, routing.logits.gather(1, routing.experts).sigmoid())
    assert torch.equal(routing.experts, routing.logits.topk(2).indices)
