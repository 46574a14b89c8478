"""Answers alone are learnt, each token alike, and a packed row is what its samples are one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tables import folder

from kleiber.data.corpus import TextCorpus
from kleiber.data.instruct import Conversations, Instruct, InstructCorpus, PackedConversations
from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.nn.window import WindowAttention
from kleiber.objectives.clm import next_token_inputs
from kleiber.objectives.sft import SFT
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples

ANSWERS = InstructCorpus("toy", "", "", Bytes(), Samples(), {}, num_answers=1)


def model(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(272, depth=2, width=32, context=128, **options)


@pytest.fixture
def train(tmp_path: Path, monkeypatch) -> PackedConversations:
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    table = [{"question": f"{i}+{i}?", "answer": "so " * (i % 5) + f"{2 * i}"} for i in range(12)]
    made = Instruct(folder(tmp_path / "t", train=table, validation=table)).prepare(128).train
    assert isinstance(made, PackedConversations)
    return made


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": lambda site, **o: WindowAttention(site, window=16, **o)}, {"mlp": lambda site: MoE(site, 4, 2)}],
)
def test_packed_logits_are_the_unpacked_ones(train: PackedConversations, options) -> None:
    net = model(**options).eval()
    batch = train.gather(np.arange(len(train)))
    with torch.no_grad():
        packed = net.head(net(next_token_inputs(batch)).hidden)
        for row, members in enumerate(train.rows):
            at = 0
            for i in members:
                ids = torch.from_numpy(train.samples.row(i)[0])[None]
                alone = net.head(net(Batch(ids[:, : 128 if at == 0 else None])).hidden)[0]
                length = min(ids.shape[1], packed.shape[1] - at)
                assert torch.allclose(packed[row, at : at + length], alone[:length], atol=1e-5)
                at += ids.shape[1]
    assert max(len(members) for members in train.rows) > 1


def test_packed_loss_and_gradient_are_those_of_the_samples(train: PackedConversations) -> None:
    objective, found = SFT(ANSWERS), []
    loose: Conversations = train.samples
    for batch in (train.gather(np.arange(len(train))), loose.gather(np.arange(len(loose)))):
        net = model()
        loss = objective(net, batch)
        (loss.total / loss.tokens).backward()
        found.append((loss, [p.grad for p in net.parameters()]))
    (packed, ours), (alone, theirs) = found
    assert packed.tokens == alone.tokens == loose.num_answers
    assert torch.allclose(packed.total, alone.total, rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]


def test_every_answer_token_weighs_the_same_and_nothing_else_does(train: PackedConversations) -> None:
    net, batch = model(), train.samples.gather(np.array([0, 4]))  # answers of 2 and of 14 tokens
    loss = SFT(ANSWERS)(net, batch)
    logits = net.head(net(next_token_inputs(batch)).hidden)
    each = F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none").view(2, -1)
    assert batch.weights is not None
    answers = batch.weights[:, 1:] > 0
    assert answers.sum(1).tolist() == [2, 14]
    assert torch.allclose(loss.total, each[answers].sum(), rtol=1e-5) and loss.tokens == 16
    # ... and however the batch is split, the step is that of its 16 tokens, not of two means.
    parts = [SFT(ANSWERS)(net, part) for part in batch.split(1)]
    mean = sum(p.total for p in parts) / sum(p.tokens for p in parts)
    assert torch.allclose(mean, each[answers].mean(), rtol=1e-5)
    assert not torch.allclose(mean, torch.stack([p.total / p.tokens for p in parts]).mean(), rtol=1e-3)


def test_the_question_has_no_gradient_of_its_own(train: PackedConversations) -> None:
    batch = train.samples.gather(np.array([3]))
    net, seen = model(), []
    net.norm.register_forward_hook(lambda *call: (call[-1].retain_grad(), seen.append(call[-1]))[1])
    SFT(ANSWERS)(net, batch).total.backward()
    assert batch.weights is not None
    assert (seen[0].grad.abs().sum(-1) > 0).equal(batch.weights[:, 1:] > 0)


def test_what_marks_no_answers_and_what_reads_ahead_are_refused(train: PackedConversations) -> None:
    with pytest.raises(ValueError, match="data=wikitext"):
        SFT(TextCorpus("wikitext", "", "", Bytes(), Samples(), {}))
    with pytest.raises(ValueError, match="objective=sft"):
        SFT(ANSWERS)(model(), Batch(torch.zeros(1, 8, dtype=torch.long)))
    with pytest.raises(ValueError, match="objective=sft needs a causal model"):
        SFT(ANSWERS).check(model(causal=False))
