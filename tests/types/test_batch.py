"""Batches, and sums of losses: a split into micro-batches loses nothing, and means are taken of sums."""

import pytest
import torch

from kleiber.types.batch import Batch, Loss, Sums


def batch(rows: int = 7) -> Batch:
    tokens = torch.arange(rows * 5).view(rows, 5)
    return Batch(
        tokens,
        real=tokens % 5 < 4,
        samples=torch.arange(rows),
        counterpart=Batch(tokens + 100, weights=torch.ones(rows, 5)),
    )


def test_micro_batches_have_all_rows_in_order():
    whole = batch()
    parts = whole.split(3)
    assert [len(part) for part in parts] == [3, 3, 1]
    for name in ("tokens", "real", "samples"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert whole.split(7) == [whole] and whole.split(100)[0] is whole


def test_a_function_reaches_every_tensor_and_leaves_out_absent_ones():
    whole = batch()
    first = whole.map(lambda tensor: tensor[:2])
    assert len(first) == 2 and first.weights is None and first.labels is None
    assert first.counterpart is not None and first.counterpart.weights is not None
    assert torch.equal(first.counterpart.tokens, whole.tokens[:2] + 100)
    assert first.counterpart.weights.shape == (2, 5) and len(whole) == 7


def test_a_batch_moves_to_a_device_with_its_counterpart():
    moved = batch().to("meta")
    assert moved.tokens.device.type == "meta" and moved.real is not None and moved.real.device.type == "meta"
    assert moved.counterpart is not None and moved.counterpart.tokens.device.type == "meta"


def loss(total: float, tokens: float, **metrics: torch.Tensor) -> Loss:
    return Loss(torch.tensor(total, requires_grad=True), torch.tensor(tokens), {"ce": torch.tensor(total), **metrics})


def test_means_are_those_of_all_tokens_and_not_of_the_parts():
    sums = Sums()
    sums.add(loss(6.0, 2.0))
    sums.add(loss(3.0, 7.0))
    means = sums.means()
    assert means["ce"].item() == pytest.approx(1.0) and means["tokens"].item() == 9.0
    assert not sums.values["total"].requires_grad


def test_counts_of_assignments_stay_counts():
    sums = Sums()
    for part in (torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])):
        sums.add(loss(1.0, 4.0, **{"load/0": part}))
    assert sums.means()["load/0"].tolist() == [3.0, 3.0]


def test_without_ranks_a_reduction_changes_nothing():
    sums = Sums()
    sums.add(loss(6.0, 2.0))
    before = dict(sums.values)
    assert sums.reduce() is sums and sums.values == before


def test_a_reduction_adds_up_the_ranks_exactly(monkeypatch):
    """Two ranks with the same sums: token counts beyond 2^24, which fp32 cannot count, are added in fp64."""
    sums = Sums()
    sums.add(
        Loss(torch.tensor(1.5), torch.tensor(2.0**24 + 1, dtype=torch.float64), {"load/0": torch.tensor([1.0, 2.0])})
    )
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat, op: flat.mul_(2))
    sums.reduce()
    assert sums.values["tokens"].item() == 2**25 + 2 and sums.values["total"].item() == 3.0
    assert sums.values["load/0"].tolist() == [2.0, 4.0] and sums.values["load/0"].dtype == torch.float32


def test_columns_are_those_of_every_token_wise_tensor_and_no_other():
    whole = batch()
    cut = whole.columns(-1)
    assert torch.equal(cut.tokens, whole.tokens[:, :4]) and cut.samples is whole.samples
    assert cut.real is not None and cut.real.shape == (7, 4)
    assert cut.counterpart is not None and cut.counterpart.tokens.shape == (7, 4)


def test_without_a_mask_every_token_is_real():
    whole = batch()
    assert whole.is_real is whole.real
    assert whole.counterpart is not None and bool(whole.counterpart.is_real.all())
    assert whole.counterpart.is_real.shape == whole.counterpart.tokens.shape


def test_a_gpu_copies_a_batch_from_pinned_memory(monkeypatch):
    pinned: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: sources.append(tensor) or tensor)
    rows = Batch(torch.zeros(2, 3, dtype=torch.long))
    batch = Batch(torch.ones(2, 3, dtype=torch.long), weights=torch.ones(2, 3), counterpart=rows)
    batch.to("cuda")
    assert len(sources) == 3
    assert all(any(source is copy for copy in pinned) for source in sources)
    batch.to("cpu")
    assert len(pinned) == 3, "a CPU needs none"
