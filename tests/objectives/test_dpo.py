"""Preferences: the loss begins at ln 2, and its gradient is that of the paper against the frozen reference."""

from __future__ import annotations

import copy
import logging
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tables import folder

from kleiber.adapters.lora import DoRA, LoRA
from kleiber.data.corpus import TextCorpus
from kleiber.data.preference import Preference, PreferenceCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.evals.task_scores import Runtime
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.nn.routers.hash import Random
from kleiber.nn.window import WindowAttention
from kleiber.objectives import dpo
from kleiber.objectives.dpo import DPO, answer_log_probs, wins
from kleiber.objectives.reference import fingerprint
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples

LN2 = math.log(2)


def model(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(272, depth=2, width=32, context=64, **options)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch) -> PreferenceCorpus:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    table = [{"prompt": f"{i}", "chosen": "good" * (i % 3 + 1), "rejected": "bad" * (i % 2 + 1)} for i in range(10)]
    return Preference(folder(tmp_path / "t", train=table, validation=table[:4])).prepare(64)


def by_hand(net, side: Batch) -> torch.Tensor:
    """log pi(answer) of each row, a row and a token at a time."""
    sums = []
    assert side.real is not None and side.weights is not None
    for ids, real, weights in zip(side.tokens, side.real, side.weights, strict=True):
        ids, marks = ids[real], weights[real]
        logits = net.head(net(Batch(ids[None, :-1])).hidden)[0].log_softmax(-1)
        sums.append(sum(logits[t, ids[t + 1]] for t in range(len(ids) - 1) if marks[t + 1] > 0))
    return torch.stack(sums)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_it_begins_at_ln_2(corpus, tmp_path, noise) -> None:
    objective, net = DPO(corpus, noise=noise), model()
    objective.begin(net, corpus, tmp_path / "stage")
    for samples in (corpus.train, corpus.validation["t"]):
        loss = objective(net, samples.gather(np.arange(len(samples))))
        assert (loss.total / loss.tokens).item() == pytest.approx(LN2, abs=1e-6)
        assert loss.tokens == len(samples)


@pytest.mark.slow
@pytest.mark.parametrize(("loss_name", "noise"), [("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0), ("ipo", 0.2)])
def test_loss_and_gradient_are_those_of_a_direct_reference(corpus, tmp_path, loss_name, noise) -> None:
    objective, old, net = DPO(corpus, beta=0.3, loss=loss_name, noise=noise), model(0), model(1)
    objective.begin(old, corpus, tmp_path / "stage")
    batch = corpus.train.gather(np.arange(6))
    loss = objective(net, batch)
    loss.total.backward()
    twin = copy.deepcopy(net)
    twin.zero_grad()
    ratios, lengths = [], []
    for side in (batch, batch.counterpart):
        with torch.no_grad():
            before = by_hand(old, side)
        ratios.append(by_hand(twin, side) - before)
        lengths.append(side.weights.sum(1))
    d = ratios[0] - ratios[1]
    means = ratios[0] / lengths[0] - ratios[1] / lengths[1]
    if loss_name == "sigmoid":
        right, wrong = -F.logsigmoid(0.3 * d), -F.logsigmoid(-0.3 * d)
    else:
        right, wrong = (means - 1 / 0.6) ** 2, (means + 1 / 0.6) ** 2
    wanted = (1 - noise) * right + noise * wrong
    wanted.sum().backward()
    assert torch.allclose(loss.total, wanted.sum(), rtol=1e-5)
    assert loss.metrics["margin"].item() == pytest.approx(0.3 * d.sum().item(), abs=1e-4)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)  # type: ignore[arg-type]


ADAPTED = {
    "dense": (model, LoRA(rank=2)),
    "magnitudes": (model, DoRA(rank=2)),
    "experts": (
        partial(model, mlp=partial(MoE, num_experts=4)),
        LoRA(rank=2, targets=["attention", "experts", "router"]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTED)
def test_without_its_adapter_a_model_is_the_frozen_start_to_the_bit(corpus, tmp_path, kind) -> None:
    """And so are loss and gradients those of a reference that was asked before."""
    make, adapter = ADAPTED[kind]
    start, net = make(), make()
    adapter.apply(net, 0)
    for name, parameter in net.named_parameters():
        if "lora_b" in name:  # 0 until trained
            torch.nn.init.normal_(parameter, std=0.1)
    off, before = DPO(corpus, reference="adapter_off"), DPO(corpus)
    off.begin(start, corpus, tmp_path / "off")
    assert corpus.train.reference is None and corpus.validation["t"].samples.reference is not None
    batch = corpus.train.gather(np.arange(6))
    with torch.no_grad():
        wanted = answer_log_probs(start, batch)[0]
        assert not torch.equal(answer_log_probs(net, batch)[0], wanted)
        assert torch.equal(off._reference(net, batch, wanted), wanted)
    found = off(net, batch)
    found.total.backward()
    trained = {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    net.zero_grad()
    before.begin(start, corpus, tmp_path / "start")
    expected = before(net, corpus.train.gather(np.arange(6)))
    expected.total.backward()
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    for name, gradient in trained.items():
        assert torch.allclose(gradient, net.get_parameter(name).grad, atol=1e-5), name


def test_losses_equal_those_of_trl() -> None:
    """What trl 1.16.0 gives (DPOTrainer._compute_loss) for the same log-ratios, answers of 5, 3 and 5 tokens."""
    ratios = torch.tensor(
        [[-2.135085924, 1.200123005], [-2.058463331, -0.24074958], [1.669809843, -3.193854533]], dtype=torch.float64
    )
    lengths = torch.tensor([[5.0, 5.0], [3.0, 3.0], [5.0, 5.0]], dtype=torch.float64)
    toy = PreferenceCorpus("toy", "", "", Bytes(), Samples(), {})
    for objective, wanted in (
        (DPO(toy, 0.1), 0.713717184), (DPO(toy, 0.5), 1.057383040), (DPO(toy, 0.1, noise=0.1), 0.712752989),
        (DPO(toy, 0.1, loss="ipo"), 26.586803100),
    ):  # fmt: skip
        assert objective.preference(ratios, lengths).mean().item() == pytest.approx(wanted, abs=1e-7)


def test_a_squared_loss_is_not_in_nats() -> None:
    toy = PreferenceCorpus("toy", "", "", Bytes(), Samples(), {})
    units = [DPO(toy, loss=name).metrics["loss"].unit for name in ("sigmoid", "ipo")]
    assert units == ["nats per pair", "per pair"]


def test_any_split_into_micro_batches_gives_the_same_sum(corpus, tmp_path) -> None:
    objective, net = DPO(corpus), model(1)
    objective.begin(model(0), corpus, tmp_path / "stage")
    batch = corpus.train.gather(np.arange(9))
    whole, parts = objective(net, batch), [objective(net, part) for part in batch.split(2)]
    assert torch.allclose(sum(part.total for part in parts), whole.total, rtol=1e-5)  # type: ignore[arg-type]
    assert sum(int(part.tokens) for part in parts) == 9


def test_what_is_drawn_for_a_sample_is_drawn_alike_in_any_micro_batch(corpus) -> None:
    net = model(1, mlp=partial(MoE, num_experts=4, k=2, router=Random))
    batch = corpus.train.gather(np.arange(9))
    with torch.no_grad():
        whole, parts = (torch.cat([answer_log_probs(net, p)[0] for p in batch.split(rows)]) for rows in (9, 2))
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-5)


def test_a_reference_rounds_as_the_model_that_trains_does(corpus, tmp_path) -> None:
    """Or a run in bf16 begins with margins that are its rounding, and they lean to one side."""
    batch, net = None, model()
    for number in (1, 2):  # and what was asked in one precision does not serve the other
        with Runtime(autocast=True).precision(torch.device("cpu")) if number == 2 else nullcontext():
            objective = DPO(corpus)
            objective.begin(net, corpus, tmp_path / "stage")
            batch = corpus.train.gather(np.arange(10))
            assert torch.allclose(answer_log_probs(net, batch)[0], batch.reference, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(answer_log_probs(net, batch)[0], batch.reference, atol=1e-4)


def test_asking_changes_nothing(corpus, tmp_path) -> None:
    net = model().train()
    before = fingerprint(net)
    DPO(corpus).begin(net, corpus, tmp_path / "stage")
    assert fingerprint(net) == before and net.training
    assert fingerprint(model(1)) != before
    with torch.no_grad():
        wanted = torch.stack([by_hand(net, corpus.train.gather(np.arange(10)))])
    assert np.allclose(corpus.train.reference[:, 0], wanted.numpy(), atol=1e-4)


def test_without_a_reference_a_step_cannot_be_taken_and_a_score_can(corpus) -> None:
    objective, net = DPO(corpus), model()
    batch = corpus.train.gather(np.arange(4))
    assert objective(net, batch).total.isnan()
    scorer = objective.scorer()
    with torch.no_grad():
        loss = scorer.add(net, batch)
    assert (loss.total / 4).item() == pytest.approx(LN2)
    assert scorer.compute()["reward_accuracy"] == 0.5


def test_scores_of_pairs(corpus, tmp_path) -> None:
    objective, net = DPO(corpus, beta=0.2), model(1)
    objective.begin(model(0), corpus, tmp_path / "stage")
    scorer = objective.scorer()
    with torch.no_grad():
        for rows in (np.arange(4, 10), np.arange(4)):
            scorer.add(net, corpus.train.gather(rows))
        batch = corpus.train.gather(np.arange(10))
        now = torch.stack([by_hand(net, batch), by_hand(net, batch.counterpart)], 1)
    found, ratios = scorer.compute(), now - batch.reference
    assert found["accuracy"] == (now[:, 0] > now[:, 1]).double().mean()
    assert found["reward_accuracy"] == (ratios[:, 0] > ratios[:, 1]).double().mean()
    assert found["margin"] == pytest.approx(0.2 * (ratios[:, 0] - ratios[:, 1]).mean().item(), abs=1e-4)
    assert found["longer_accuracy"] == pytest.approx(batch.labels.mean().item())
    assert wins(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0, 0.5, 1]


@pytest.mark.slow
def test_it_warns_when_the_loss_stays_at_ln_2(corpus, tmp_path, caplog) -> None:
    batch, net = None, model()
    for lr, told in ((0.0, True), (0.1, False)):
        objective = DPO(corpus)
        objective.begin(model(), corpus, tmp_path / "stage")
        batch = corpus.train.gather(np.arange(2))
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for step in range(dpo.PATIENCE + 5):
                for part in objective.prepare_step(net, batch.split(1)):  # more passes than steps
                    objective(net, part).total.backward()
                assert told is False or bool(caplog.records) == (step >= dpo.PATIENCE)
                optimizer.step()
                optimizer.zero_grad()
        assert ("0.6931" in caplog.text) == told and len(caplog.records) <= 1


def test_what_has_no_pairs_is_refused(corpus) -> None:
    with pytest.raises(ValueError, match="data=wikitext"):
        DPO(TextCorpus("wikitext", "", "", Bytes(), Samples(), {}))
    with pytest.raises(ValueError, match="objective=dpo needs a causal model"):
        DPO(corpus).check(model(causal=False))
    with pytest.raises(ValueError, match="bidirectional"):
        DPO(corpus)(model(causal=False), corpus.train.gather(np.array([0])))
    with pytest.raises(ValueError, match="objective=dpo"):
        DPO(corpus)(model(), Batch(torch.zeros(1, 8, dtype=torch.long)))


def test_models_of_the_same_weights_that_answer_otherwise_have_references_of_their_own(corpus, tmp_path) -> None:
    kinds = {"plain": {}, "cap": {"soft_cap": 0.5}, "window": {"attention": partial(WindowAttention, window=4)}}
    weights = model().state_dict()
    for name, options in kinds.items():
        objective, net = DPO(corpus), model(**options)
        assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
        objective.begin(net, corpus, tmp_path / name)
        loss = objective(net, corpus.train.gather(np.arange(9)))
        assert (loss.total / loss.tokens).item() == pytest.approx(LN2, abs=1e-5), name
