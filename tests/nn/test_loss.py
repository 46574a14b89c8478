"""The chunked loss against a plain one, over the product of its options, and its memory."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kleiber.nn.heads import LMHead
from kleiber.nn.loss import chunk_rows, cross_entropy, log_probs, target_weights
from kleiber.types.batch import Batch

ROWS, DIM, VOCAB = 37, 6, 11
OPTIONS = list(itertools.product((1.0, 0.25), (None, 2.0), (0.0, 0.1), (False, True), (5, 256)))


def problem(multiplier=1.0, soft_cap=None, weighted=False):
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    head = LMHead(nn.Parameter(torch.randn(VOCAB, DIM, dtype=torch.float64)), multiplier, soft_cap)
    weights = torch.rand(ROWS, dtype=torch.float64) * (torch.rand(ROWS) > 0.4) if weighted else None
    return hidden, head, torch.randint(VOCAB, (ROWS,)), weights


def plain(hidden, head, targets, weights, z_loss):
    logits = head(hidden)
    ce = F.cross_entropy(logits, targets, reduction="none")
    w = torch.ones_like(ce) if weights is None else weights
    return (w * (ce + z_loss * logits.logsumexp(-1).square())).sum(), (w * ce).sum()


@pytest.mark.parametrize("multiplier, soft_cap, z_loss, weighted, chunk", OPTIONS)
def test_value_and_gradients_equal_the_plain_loss(multiplier, soft_cap, z_loss, weighted, chunk):
    hidden, head, targets, weights = problem(multiplier, soft_cap, weighted)
    total, ce = cross_entropy(hidden, head, targets, weights, z_loss, chunk)
    expected, expected_ce = plain(hidden, head, targets, weights, z_loss)
    torch.testing.assert_close((total, ce), (expected, expected_ce), atol=1e-9, rtol=1e-9)
    ours = torch.autograd.grad(3 * total, (hidden, head.weight))
    torch.testing.assert_close(ours, torch.autograd.grad(3 * expected, (hidden, head.weight)), atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("soft_cap, z_loss, weighted", itertools.product((None, 2.0), (0.0, 0.1), (False, True)))
def test_gradcheck(soft_cap, z_loss, weighted):
    hidden, head, targets, weights = (
        part[:7] if isinstance(part, torch.Tensor) else part for part in problem(0.5, soft_cap, weighted)
    )
    check = lambda h, w: cross_entropy(h, LMHead(w, 0.5, soft_cap), targets, weights, z_loss, 4).total  # noqa: E731
    assert torch.autograd.gradcheck(check, (hidden.detach().requires_grad_(), head.weight))


@pytest.mark.parametrize("multiplier, soft_cap, chunk", itertools.product((1.0, 0.25), (None, 2.0), (5, 256)))
def test_log_probs_equal_the_plain_ones(multiplier, soft_cap, chunk):
    hidden, head, targets, _ = problem(multiplier, soft_cap)
    ours = log_probs(hidden, head, targets, chunk)
    expected = head(hidden).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)
    grad = torch.randn(ROWS, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (hidden, head.weight), grad) for y in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


def test_single_precision_agrees_to_1e_6():
    hidden, head, targets, _ = problem()
    exact = cross_entropy(hidden, head, targets).total
    single = LMHead(nn.Parameter(head.weight.detach().float()))
    torch.testing.assert_close(cross_entropy(hidden.float(), single, targets).total.double(), exact, atol=0, rtol=1e-6)


def test_bf16_autocast_gives_fp32_sums_and_gradients_near_the_exact_ones():
    hidden, head, targets, _ = problem()
    single, h = LMHead(nn.Parameter(head.weight.detach().float())), hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total = cross_entropy(h, single, targets).total
    total.backward()
    assert total.dtype == torch.float32 and single.weight.grad is not None
    exact = torch.autograd.grad(cross_entropy(hidden, head, targets).total, head.weight)[0]
    torch.testing.assert_close(single.weight.grad.double(), exact, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("loss", [cross_entropy, log_probs])
def test_in_bf16_the_multiplier_is_one_of_the_rows(loss):
    torch.manual_seed(0)
    rows, matrix, targets = torch.randn(12, 8), nn.Parameter(torch.randn(11, 8)), torch.randint(11, (12,))

    def results(multiplier, factor):
        hidden = (rows * factor).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(hidden, LMHead(matrix, multiplier), targets, chunk=5)
            value = value.total if loss is cross_entropy else value.sum()
        return value, *torch.autograd.grad(value, (hidden, matrix))

    (value, of_rows, of_matrix), (expected, of_scaled, of_same) = results(0.3, 1.0), results(1.0, 0.3)
    assert torch.equal(value, expected) and torch.equal(of_matrix, of_same)
    torch.testing.assert_close(of_rows, 0.3 * of_scaled)


def test_a_tied_matrix_gets_both_gradients():
    table = nn.Parameter(torch.randn(VOCAB, DIM, dtype=torch.float64))
    ids, targets = torch.randint(VOCAB, (2, 5)), torch.randint(VOCAB, (2, 5))
    ours = torch.autograd.grad(cross_entropy(table[ids], LMHead(table), targets).total, table)[0]
    expected = F.cross_entropy((table[ids] @ table.T).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(ours, torch.autograd.grad(expected, table)[0])


def test_never_more_than_a_chunk_of_logits_and_no_gradient_work_when_off(monkeypatch):
    from kleiber.nn import loss

    hidden, head, targets, weights = problem(weighted=True)
    rows, sizes = [], []
    logits, add = loss._Chunk.logits, loss._Gradients.add
    monkeypatch.setattr(loss._Chunk, "logits", lambda self, r, w: rows.append(len(r)) or logits(self, r, w))
    monkeypatch.setattr(loss._Gradients, "add", lambda self, *a: sizes.append(1) or add(self, *a))
    with torch.no_grad():
        cross_entropy(hidden, head, targets, weights, chunk=8)
    assert max(rows) <= 8 and sum(rows) == int((weights > 0).sum()) and not sizes
    assert not cross_entropy(hidden.detach(), LMHead(nn.Parameter(head.weight, False)), targets).total.requires_grad
    cross_entropy(hidden, head, targets, chunk=8)
    assert len(sizes) == 5


def test_no_row_of_weight_gives_a_loss_of_zero_with_gradients():
    hidden, head, targets, _ = problem()
    total = cross_entropy(hidden, head, targets, torch.zeros(ROWS)).total
    grads = torch.autograd.grad(total, (hidden, head.weight))
    assert total == 0 and all(grad.abs().max() == 0 for grad in grads)


def test_a_chunk_of_no_rows_is_refused():
    hidden, head, targets, _ = problem()
    with pytest.raises(ValueError, match="chunk=0"):
        log_probs(hidden, head, targets, chunk=0)


def test_a_target_weighs_the_product_of_its_weight_its_segment_and_whether_it_is_real():
    tokens = torch.arange(8).reshape(2, 4)
    weights = torch.tensor([[9.0, 0.5, 2.0, 1.0], [9.0, 3.0, 1.0, 1.0]])
    segments = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    real = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert target_weights(Batch(tokens)) is None
    inside, present = torch.tensor([[1.0, 0, 1], [1, 1, 1]]), torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    assert torch.equal(target_weights(Batch(tokens, segments=segments)), inside)
    assert torch.equal(target_weights(Batch(tokens, real=real)), present)
    every = Batch(tokens, weights=weights, segments=segments, real=real)
    assert torch.equal(target_weights(every), weights[:, 1:] * inside * present)


@pytest.mark.parametrize(
    ("device", "vocab", "rows"), [("cpu", 128_256, 256), ("meta", 128_256, 2048), ("meta", 2**22, 256)]
)
def test_a_chunk_has_the_rows_that_suit_the_device(device, vocab, rows):
    assert chunk_rows(torch.empty(vocab, 1, device=device)) == rows
