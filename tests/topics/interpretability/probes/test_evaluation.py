"""Probes find a planted feature where it is and not the control, and every key has its effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.routing.moe_text import Rows
from evals.small_models import subject_on_rows, tiny
from evals.subjects import subject_on_tables
from torch import Tensor, nn

from kleiber.nn.heads import LMHead
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model
from kleiber_topics.interpretability.probes.evaluation import Probes, means_of_texts

TEXT = "ab, cd 12! Efg 345 h-i. " * 40


class Text(Rows):
    """Rows of a text."""

    def __init__(self, length: int = 32) -> None:
        ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int64)
        starts = np.arange(0, len(ids) - length - 1, 17)[:40]
        self.tokens = np.stack([ids[start : start + length + 1] for start in starts])
        self.num_tokens = self.num_bytes = self.tokens.size

    def gather(self, index: np.ndarray, epoch: int = 0) -> Batch:
        return Batch(torch.from_numpy(self.tokens[index]))


class Block(nn.Module):
    def forward(self, stream: Tensor) -> Tensor:
        """Keeps whether a token is a letter, in the first channel, and nothing that tells which token it is."""
        kept = torch.zeros_like(stream)
        kept[..., 0] = stream[..., 0]
        return kept


class Letters(Model):
    """An embedding with random channels beside one that is 1 for letters, which its only block keeps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.width, self.context = 272, 16, 32
        vectors = torch.randn(272, 16, generator=torch.Generator().manual_seed(0))
        vectors[:, 0] = torch.tensor([float(i < 256 and chr(i).isascii() and chr(i).isalpha()) for i in range(272)])
        self.embedding = nn.Embedding(272, 16, _weight=vectors)
        self.blocks = nn.ModuleList([Block()])
        self.head = LMHead(nn.Parameter(torch.randn(272, 16)))

    def forward(self, batch: Batch, caches: None = None) -> Output:
        return Output(self.blocks[0](self.embedding(batch.tokens)))


def test_probes_find_the_planted_feature_and_not_the_control():
    table = [{"text": character * 3, "label": int(character.isalpha())} for character in "abcdefghij0123456789!?" * 4]
    case = replace(subject_on_tables(Letters(), letters=table), rows=7)
    scores = Probes(texts=len(table)).evaluate(case).scores["letters"]
    assert scores["label/layer1/accuracy"].value == 1.0
    assert scores["label/layer1/control"].value < 0.8 and scores["label/layer1/selectivity"].lo > 0.1
    assert scores["label/layer0/control"].value == 1.0, "random vectors tell the types apart, so a probe memorizes them"
    tokens = Probes(features=["character_class"]).evaluate(subject_on_rows(Letters(), Text())).scores["text"]
    letters = np.isin(Text().tokens[:, :-1], [ord(c) for c in "abcdEfghi"])
    assert tokens["character_class/layer1/accuracy"].value == pytest.approx(
        max(tokens["character_class/majority"].value, letters.mean() + 0.2), abs=0.2
    )
    assert tokens["character_class/layer0/accuracy"].value == 1.0
    assert tokens["character_class/layer0/selectivity"].value == pytest.approx(0, abs=0.02)


def test_means_of_texts():
    assert means_of_texts(np.array([True, False, True]), np.array([0, 0, 3])).tolist() == [0.5, 1.0]


@pytest.mark.slow
def test_the_keys_have_their_effect(monkeypatch):
    monkeypatch.setattr("kleiber_topics.interpretability.probes.evaluation.ITERATIONS", 3)
    case = subject_on_rows(tiny("dense"), Rows(0, 250, rows=24))
    small = {"texts": 20, "length": 6, "features": ["next_class"]}
    scores = Probes(**small).evaluate(case).scores["text"]
    assert set(scores) >= {f"next_class/layer{layer}/selectivity" for layer in range(3)}

    def changed(metric: str = "next_class/layer1/accuracy", **keys: object) -> bool:
        other = Probes(**{**small, **keys}).evaluate(case).scores["text"]
        return metric not in other or other[metric] != scores[metric]

    assert changed(features=["position_in_word"]) and changed(texts=16) and changed(length=4) and changed(layers=[0, 2])
    assert changed(training=0.7) and changed(penalty=1.0) and changed(seed=1)
    assert changed("next_class/majority", texts=10)
    table = [{"text": "ab" * (i % 3 + 1), "label": i % 2, "kind": i % 3} for i in range(12)]
    on_table = subject_on_tables(tiny("lstm"), rows=table)
    assert "kind/layer0/accuracy" in Probes(label="kind").evaluate(on_table).scores["rows"]
    assert Probes().evaluate(replace(on_table, limit=8)).scores["rows"]["label/majority"].n == 4
    with pytest.raises(ValueError, match=r"layers=3 must be <= 2"):
        Probes(layers=[3]).check(tiny("dense"))
