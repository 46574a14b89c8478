"""Reward models: the loss begins at ln 2, its gradient is that of pairs taken one by one, and padding has no say."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import folder

from kleiber.data.corpus import TextCorpus
from kleiber.data.preference import Preference, PreferenceCorpus
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.nn.routers.hash import Random
from kleiber.objectives.reward import Reward
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples

LETTERS = list("abcdefgh")


def model(objective: Reward, trained: bool = True, **options) -> Transformer:
    """Its head is away from 0, as if trained, unless told otherwise."""
    torch.manual_seed(0)
    made = Transformer(272, **{"depth": 2, "width": 32, "context": 64} | options)
    for name, count in objective.outputs.items():
        made.add_head(name, count)
        if trained:
            torch.nn.init.normal_(made.heads[name].weight)
            torch.nn.init.normal_(made.heads[name].bias)
    return made


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch) -> PreferenceCorpus:
    """Answers of many lengths; the last one fills a row beyond what the model reads."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    table = [{"prompt": f"{i}", "chosen": "good" * (i % 3 + 1), "rejected": "bad" * (i % 2 + 1)} for i in range(9)]
    table.append({"prompt": "9", "chosen": "long" * 30, "rejected": "short"})
    return Preference(folder(tmp_path / "t", train=table, validation=table[:4])).prepare(64)


def by_hand(net: Transformer, objective: Reward, side: Batch) -> torch.Tensor:
    """The reward of each row, read alone without padding: w h / width-multiplier + b at its last token."""
    head, found = net.heads[objective.head], []
    assert side.real is not None
    for ids, real in zip(side.tokens, side.real, strict=True):
        hidden = net(Batch(ids[real][None, : net.context])).hidden[0, -1]
        found.append(hidden @ head.weight[0] * head.multiplier + head.bias[0])
    return torch.stack(found)


@pytest.mark.parametrize("center", [0.0, 0.5])
def test_it_begins_at_ln_2(corpus, center) -> None:
    objective = Reward(corpus, center)
    net = model(objective, trained=False)
    for samples in (corpus.train, corpus.validation["t"]):
        loss = objective(net, samples.gather(np.arange(len(samples))))
        assert (loss.total / loss.tokens).item() == pytest.approx(math.log(2), abs=1e-6)
        assert loss.tokens == len(samples)
        assert loss.metrics["accuracy"] == len(samples) / 2, "ties"


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_a_direct_reference(corpus, center) -> None:
    objective = Reward(corpus, center)
    net = model(objective).double()
    twin, batch = copy.deepcopy(net), corpus.train.gather(np.arange(10))
    loss = objective(net, batch)
    loss.total.backward()
    chosen, rejected = (by_hand(twin, objective, side) for side in (batch, batch.counterpart))
    ranking = torch.log(1 + torch.exp(rejected - chosen))
    (ranking + center * (chosen + rejected) ** 2).sum().backward()
    wanted = (ranking + center * (chosen + rejected) ** 2).sum()
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-9)
    assert loss.metrics["ce"].item() == pytest.approx(ranking.sum().item(), rel=1e-9)
    assert loss.metrics["margin"].item() == pytest.approx((chosen - rejected).sum().item(), rel=1e-9)
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9)


def test_padding_and_the_other_rows_have_no_say(corpus) -> None:
    """A row longer than the context is read alike in every batch."""
    objective = Reward(corpus)
    net, batch = model(objective), corpus.train.gather(np.arange(10))
    assert batch.tokens.shape[1] == 65 and batch.real[9].all()
    with torch.no_grad():
        together, _ = objective.score_pairs(net, batch)
        alone = torch.cat([objective.score_pairs(net, corpus.train.gather(np.array([i])))[0] for i in range(10)])
        for side in (batch, batch.counterpart):
            side.tokens = side.tokens.where(side.real, 7)
        changed, _ = objective.score_pairs(net, batch)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(changed, together, atol=1e-6, rtol=0)


def test_any_split_into_micro_batches_gives_the_same_sum(corpus) -> None:
    objective = Reward(corpus, 0.1)
    net = model(objective, mlp=partial(MoE, num_experts=4, k=2, router=Random))
    batch = corpus.train.gather(np.arange(10))
    whole, parts = objective(net, batch), [objective(net, part) for part in batch.split(3)]
    assert sum(int(part.tokens) for part in parts) == 10
    for name in ("ce", "accuracy", "margin", "reward_chosen", "reward_rejected"):
        assert sum(part.metrics[name] for part in parts).item() == pytest.approx(  # type: ignore[union-attr]
            whole.metrics[name].item(), abs=1e-4
        )


def test_scores_are_those_of_all_pairs(corpus) -> None:
    objective = Reward(corpus)
    net, scorer = model(objective), objective.scorer()
    with torch.no_grad():
        for rows in (np.arange(4, 10), np.arange(4)):
            scorer.add(net, corpus.train.gather(rows))
        batch = corpus.train.gather(np.arange(10))
        chosen, rejected = (by_hand(net, objective, side) for side in (batch, batch.counterpart))
    found = scorer.compute()
    assert found["accuracy"] == (chosen > rejected).double().mean()
    assert found["margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-4)
    assert found["longer_accuracy"] == pytest.approx(batch.labels.mean().item())


@pytest.mark.slow
def test_it_learns_which_letter_is_liked(tmp_path, monkeypatch) -> None:
    """X stands somewhere in every chosen answer and in no rejected one; it is found in pairs that were not trained."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)

    def pair() -> dict[str, str]:
        chosen, rejected = draw.choice(LETTERS, (2, 8))
        chosen[draw.integers(8)] = "X"
        return {"prompt": "say", "chosen": "".join(chosen), "rejected": "".join(rejected)}

    path = folder(tmp_path / "t", train=[pair() for _ in range(128)], validation=[pair() for _ in range(64)])
    corpus = Preference(path).prepare(64)
    objective = Reward(corpus)
    net = model(objective, trained=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(24):
        loss = objective(net, corpus.train.gather((np.arange(16) + 16 * step) % 128))
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()
    scorer = objective.scorer()
    with torch.no_grad():
        scorer.add(net, corpus.validation["t"].gather(np.arange(64)))
    found = scorer.compute()
    assert found["accuracy"] > 0.9 and found["longer_accuracy"] == 0.5 and found["margin"] > 0


def test_what_has_no_pairs_is_refused(corpus) -> None:
    with pytest.raises(ValueError, match="data=wikitext"):
        Reward(TextCorpus("wikitext", "", "", Bytes(), Samples(), {}))
    objective = Reward(corpus)
    with pytest.raises(ValueError, match="objective=reward"):
        objective(model(objective), Batch(torch.zeros(1, 8, dtype=torch.long)))
