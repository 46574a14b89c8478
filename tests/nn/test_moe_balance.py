"""The balance loss: its bounds, its formula, and its independence of batching."""

import pytest
import torch
import torch.nn.functional as F

from kleiber.nn.moe import Global, PerSequence, assignments, load_balance_loss


def hits_of(chosen, num_experts, real=None):
    counted = None if real is None else real.unsqueeze(-1).expand_as(chosen)
    return assignments(chosen, num_experts, counted, torch.float32)


def loss(balance, scores, chosen, real=None):
    return balance(scores, hits_of(chosen, scores.shape[-1], real), real)


def random_routing(batch=3, time=6, experts=4, k=2):
    scores = torch.randn(batch, time, experts).softmax(-1)
    return scores, scores.topk(k, -1).indices


@pytest.mark.parametrize("balance", [PerSequence(), Global()])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_is_one_a_token_when_uniform_and_experts_over_k_at_worst(k, balance):
    batch, time, experts = 2, 8, 4
    uniform = torch.full((batch, time, experts), 1 / experts)
    turns = ((torch.arange(time)[:, None] + torch.arange(k)) % experts).expand(batch, time, k)
    assert float(loss(balance, uniform, turns)) == pytest.approx(batch * time)
    assert hits_of(turns, experts).sum(0).tolist() == [batch * time * k / experts] * experts
    first = torch.arange(k).expand(batch, time, k)
    collapsed = F.one_hot(torch.zeros(batch, time, dtype=torch.long), experts).float()
    assert float(loss(balance, collapsed, first)) == pytest.approx(batch * time * experts / k)


def test_per_sequence_equals_the_formula_written_out():
    scores, chosen = random_routing()
    total = 0.0
    for s in range(3):
        for e in range(4):
            total += 6 * 4 * float((chosen[s] == e).sum()) / 12 * float(scores[s, :, e].mean())
    assert float(loss(PerSequence(), scores, chosen)) == pytest.approx(total, rel=1e-5)


def test_global_equals_the_formula_written_out():
    scores, chosen = random_routing()
    total = sum(18 * 4 * float((chosen == e).sum()) / 36 * float(scores[..., e].mean()) for e in range(4))
    assert float(loss(Global(), scores, chosen)) == pytest.approx(total, rel=1e-5)


def test_real_tokens_alone_count_and_sequences_add_up():
    scores, chosen = random_routing()
    real = torch.arange(6) < torch.tensor([[6], [4], [0]])
    whole = loss(PerSequence(), scores, chosen, real)
    cut = [loss(PerSequence(), scores[i : i + 1, :n], chosen[i : i + 1, :n]) for i, n in ((0, 6), (1, 4))]
    torch.testing.assert_close(whole, sum(cut))
    assert hits_of(chosen, 4, real).sum() == 2 * 10


def test_global_is_another_loss_on_half_a_batch_and_per_sequence_is_not():
    scores, chosen = random_routing(batch=4)
    for balance, same in ((PerSequence(), True), (Global(), False)):
        halves = loss(balance, scores[:2], chosen[:2]) + loss(balance, scores[2:], chosen[2:])
        assert (abs(float(halves - loss(balance, scores, chosen))) < 1e-4) == same


def test_global_shares_are_those_of_all_ranks(monkeypatch):
    scores, chosen = random_routing(batch=4)
    everything = hits_of(chosen, 4).sum(0)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda counts: counts.copy_(everything))
    ranks = sum(loss(Global(), scores[i : i + 2], chosen[i : i + 2]) for i in (0, 2))
    monkeypatch.undo()
    torch.testing.assert_close(ranks, loss(Global(), scores, chosen))


def test_scores_get_a_gradient_and_counts_do_not():
    scores, chosen = random_routing()
    scores.requires_grad_()
    hits = hits_of(chosen, 4)
    (grad,) = torch.autograd.grad(PerSequence()(scores, hits, None), scores)
    torch.testing.assert_close(grad, (4 * hits / 12)[:, None].expand_as(grad))


def test_scopes_have_names():
    assert load_balance_loss("global", 0.1) == Global(0.1) and load_balance_loss() == PerSequence(0.01)
