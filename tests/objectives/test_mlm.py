import pytest
import torch

from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.objectives.mlm import MLM, uniform
from kleiber.types.batch import Batch


def batch(rows: int = 64, time: int = 257, start: int = 0) -> Batch:
    return Batch(tokens=torch.randint(0, 256, (rows, time)), samples=torch.arange(start, start + rows))


def test_eighty_ten_ten_of_fifteen_percent():
    rows = batch(400)
    hidden, targets = MLM(Bytes()).corrupt(rows)
    n = targets.sum().item()
    assert n / targets.numel() == pytest.approx(0.15, abs=0.005)
    masked = (hidden == Bytes.mask) & targets
    same = (hidden == rows.tokens) & targets
    assert masked.sum().item() / n == pytest.approx(0.8, abs=0.015)
    assert same.sum().item() / n == pytest.approx(0.1, abs=0.015)
    assert torch.equal(hidden[~targets], rows.tokens[~targets])


def test_masks_belong_to_the_sample_and_not_to_the_batch():
    rows, objective = batch(8), MLM(Bytes())
    _, whole = objective.corrupt(rows)
    parts = [objective.corrupt(part)[1] for part in rows.split(3)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, MLM(Bytes(), seed=1).corrupt(rows)[1])
    assert not torch.equal(whole, objective.corrupt(batch(8, start=8))[1])


def test_padding_and_tokens_without_weight_are_never_targets():
    rows = batch(16)
    rows.real = torch.ones_like(rows.tokens, dtype=torch.bool)
    rows.real[:, 100:] = False
    rows.weights = torch.ones(rows.tokens.shape)
    rows.weights[:, :50] = 0
    _, targets = MLM(Bytes(), mask_share=0.9).corrupt(rows)
    assert not targets[:, 100:].any() and not targets[:, :50].any() and targets[:, 50:100].any()


def test_the_targets_are_counted_without_a_forward_pass():
    net = Transformer(Bytes().vocab_size, depth=1, width=16, context=256, num_heads=2, causal=False)
    rows = batch(8)
    assert MLM(Bytes()).targets(net, rows) == MLM(Bytes())(net, rows).tokens > 0


def test_uniform_numbers_are_uniform_and_streams_are_independent():
    samples = torch.arange(2000)
    a, b = uniform(samples, 100, 3, 0).flatten(), uniform(samples, 100, 3, 1).flatten()
    assert a.min() >= 0 and a.max() < 1
    assert a.mean().item() == pytest.approx(0.5, abs=0.003)
    assert a.var().item() == pytest.approx(1 / 12, abs=0.001)
    for x, y in ((a, b), (a[:-1], a[1:]), (a[:-100], a[100:])):
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1].item()) < 0.01


def test_padded_rows_have_the_same_targets_in_any_micro_batch():
    torch.manual_seed(0)
    net = Transformer(Bytes().vocab_size, depth=1, width=16, context=32, num_heads=2, causal=False)
    lengths = torch.tensor([9, 20, 24, 32, 5, 17])
    rows = Batch(torch.randint(0, 256, (6, 32)), torch.arange(32) < lengths[:, None], samples=torch.arange(6))
    objective = MLM(Bytes(), mask_share=0.5)
    whole = objective(net, rows)
    for size in (1, 2, 4):
        parts = [objective(net, cut(part)) for part in rows.split(size)]
        assert sum(float(part.tokens) for part in parts) == float(whole.tokens)
        assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-5)


def cut(part: Batch) -> Batch:
    """Without the columns that are padding in all rows, as a smaller batch comes."""
    assert part.real is not None
    width = int(part.real.sum(1).max())
    return part.map(lambda t: t[:, :width] if t.dim() == 2 else t)
