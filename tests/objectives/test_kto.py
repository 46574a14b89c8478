"""KTO: it begins at half the weight, its gradient is the paper's, and the point is that of a step however split."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import folder

from kleiber.data.corpus import TextCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.data.unpaired import Unpaired, UnpairedCorpus
from kleiber.models.transformer import Transformer
from kleiber.objectives.kto import KTO, auc
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples


def model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(272, **{"depth": 2, "width": 32, "context": 64} | options)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch) -> UnpairedCorpus:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    table = [{"prompt": f"{i}", "completion": "word" * (i % 3 + 1) + str(i), "label": i % 3 > 0} for i in range(10)]
    found = Unpaired(folder(tmp_path / "t", train=table, validation=table[:4])).prepare(64)
    assert isinstance(found, UnpairedCorpus)
    return found


def by_hand(net, side: Batch) -> torch.Tensor:
    """log pi(answer) of each row, a row and a token at a time."""
    sums = []
    assert side.real is not None and side.weights is not None
    for ids, real, weights in zip(side.tokens, side.real, side.weights, strict=True):
        ids, marks = ids[real], weights[real]
        logits = net.head(net(Batch(ids[None, :-1])).hidden)[0].log_softmax(-1)
        sums.append(sum(logits[t, ids[t + 1]] for t in range(len(ids) - 1) if marks[t + 1] > 0))
    return torch.stack(sums)  # type: ignore[arg-type]


def gains(net, old, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """r of the answers, and of the mismatched ones."""
    with torch.no_grad():
        before = [by_hand(old, side) for side in (batch, batch.counterpart)]
    own, other = (by_hand(net, side) for side in (batch, batch.counterpart))
    return own - before[0], other - before[1]


def test_it_begins_at_half_the_weight(corpus, tmp_path) -> None:
    objective, net = KTO(corpus, desirable=1.0, undesirable=2.0), model()
    objective.begin(net, corpus, tmp_path / "stage")
    batch = corpus.train.gather(np.arange(10))
    for one in (batch, *objective.prepare_step(net, [batch])):
        loss = objective(net, one)
        wanted = torch.where(batch.labels > 0.5, 0.5, 1.0).sum().item()
        assert loss.total.item() == pytest.approx(wanted, abs=1e-5) and loss.tokens == 10


@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True])
def test_loss_and_gradient_are_those_of_a_direct_reference(corpus, tmp_path, far) -> None:
    """Whether the model has come to like the mismatched answers more, or (z = 0) less."""
    objective, old, net = KTO(corpus, 0.3, 1.5, 0.5), model(0).double(), model(1).double()
    if far:
        old, net = net, old
    objective.begin(old, corpus, tmp_path / "stage")
    batch = corpus.train.gather(np.arange(6))
    (ready,) = objective.prepare_step(net, [batch])
    loss = objective(net, ready)
    loss.total.backward()
    twin = copy.deepcopy(net)
    twin.zero_grad()
    own, other = gains(twin, old, batch)
    z = max(0.0, other.mean().item())
    signs = [1 if label > 0.5 else -1 for label in batch.labels]
    wanted = sum(
        (1.5 if sign > 0 else 0.5) * (1 - 1 / (1 + torch.exp(-0.3 * sign * (r - z))))
        for r, sign in zip(own, signs, strict=True)
    )
    assert isinstance(wanted, torch.Tensor)
    wanted.backward()
    assert loss.metrics["point"].item() / 6 == pytest.approx(z, abs=1e-4)
    assert loss.total.item() == pytest.approx(wanted.item(), abs=1e-4)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_both_signs_of_the_point_are_met(corpus) -> None:
    """By the models of the test above: without the bound at 0 it would see no difference."""
    batch = corpus.train.gather(np.arange(6))
    with torch.no_grad():
        found = [gains(model(a), model(b), batch)[1].mean().item() for a, b in ((1, 0), (0, 1))]
    assert min(found) < 0 < max(found)


@pytest.mark.slow
def test_any_split_into_micro_batches_and_ranks_gives_the_same_sum(corpus, tmp_path, monkeypatch) -> None:
    objective, net = KTO(corpus), model(1)
    objective.begin(model(0), corpus, tmp_path / "stage")
    if gains(net, model(0), corpus.train.gather(np.arange(9)))[1].mean() < 0:
        net = model(0)
        objective.begin(model(1), corpus, tmp_path / "other")
    batch = corpus.train.gather(np.arange(9))
    (whole,) = objective.prepare_step(net, [batch])
    wanted = objective(net, whole)
    assert wanted.metrics["point"] > 0
    parts = [objective(net, part) for part in objective.prepare_step(net, batch.split(2))]
    for name in ("ce", "accuracy", "margin", "point"):
        found = sum(part.metrics[name] for part in parts)
        assert found.item() == pytest.approx(wanted.metrics[name].item(), abs=1e-4)  # type: ignore[union-attr]
    told: list[torch.Tensor] = []  # what each rank adds, and then, asked again, what all have added

    def all_reduce(total: torch.Tensor, op: object) -> None:
        told.append(total.clone())
        total.copy_(sum(told[:2]))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    for share in (*batch.split(5), *batch.split(5)):
        (rank,) = objective.prepare_step(net, [share])
    torch.testing.assert_close(rank.reference[:, 1], whole.reference[: len(rank), 1], atol=1e-4, rtol=1e-5)


def test_scores_are_those_of_all_answers(corpus, tmp_path) -> None:
    objective, old, net = KTO(corpus, 0.2), model(0), model(1)
    objective.begin(old, corpus, tmp_path / "stage")
    scorer = objective.scorer()
    with torch.no_grad():
        for rows in (np.arange(4, 10), np.arange(4)):
            scorer.add(net, corpus.train.gather(rows))
        batch = corpus.train.gather(np.arange(10))
        own, other = gains(net, old, batch)
    found, z, good = scorer.compute(), max(0.0, other.mean().item()), batch.labels > 0.5
    margin = 0.2 * torch.where(good, own - z, z - own)
    assert found["point"] == pytest.approx(z, abs=1e-4)
    assert found["loss"] == pytest.approx((1 - margin.sigmoid()).mean().item(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((margin > 0).double().mean().item())
    pairs = [float(a > b) for a in own[good] for b in own[~good]]
    assert found["auc"] == pytest.approx(np.mean(pairs))
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, 3.0])).item() == pytest.approx(3.5 / 6)


def test_without_a_reference_a_step_cannot_be_taken_and_a_score_can(corpus) -> None:
    objective, net = KTO(corpus), model()
    batch = corpus.train.gather(np.arange(10))
    assert objective(net, batch).total.isnan()
    scorer = objective.scorer()
    with torch.no_grad():
        scorer.add(net, batch)
    assert scorer.compute()["loss"] == pytest.approx(0.5) and scorer.compute()["auc"] == 0.5


@pytest.mark.slow
def test_it_learns_which_letter_is_liked(tmp_path, monkeypatch) -> None:
    """X stands in every good answer and in no bad one; held-out answers are told apart."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)

    def answer(i: int) -> dict:
        word = draw.choice(list("abcd"), 6)
        if i % 2:
            word[draw.integers(6)] = "X"
        return {"prompt": "say", "completion": "".join(word), "label": bool(i % 2)}

    tables = {"train": [answer(i) for i in range(64)], "validation": [answer(i) for i in range(32)]}
    corpus = Unpaired(folder(tmp_path / "t", **tables)).prepare(64)
    objective, net = KTO(corpus), model()
    objective.begin(net, corpus, tmp_path / "stage")
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(12):
        (batch,) = objective.prepare_step(net, [corpus.train.gather((np.arange(16) + 16 * step) % 64)])
        loss = objective(net, batch)
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()
    scorer = objective.scorer()
    with torch.no_grad():
        scorer.add(net, corpus.validation["t"].gather(np.arange(32)))
    found = scorer.compute()
    assert found["auc"] > 0.9 and found["loss"] < 0.5


def test_what_has_no_verdicts_is_refused(corpus) -> None:
    with pytest.raises(ValueError, match="data=wikitext"):
        KTO(TextCorpus("wikitext", "", "", Bytes(), Samples(), {}))
    with pytest.raises(ValueError, match="bidirectional"):
        KTO(corpus)(model(causal=False), corpus.train.gather(np.array([0])))
    with pytest.raises(ValueError, match="objective=kto"):
        KTO(corpus)(model(), Batch(torch.zeros(1, 8, dtype=torch.long)))
