"""Probes find a planted feature where it is and not the control, equal scikit-learn's, and every key has its effect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.attribution.test_methods import tiny
from evals.routing.moe_text import Rows
from evals.subjects import subject_on_tables
from torch import Tensor, nn

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.evals.probes.evaluation import Probes, means_of_texts
from kleiber.evals.probes.features import character_class, control_labels, positions_in_word
from kleiber.evals.probes.probe import correct_on_held_out, fit_probe
from kleiber.models.transformer import LMHead
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch, Output
from kleiber.types.model import Model

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


def subject(model: Model, data: object = None) -> Subject:
    return Subject(model, Bytes(), CLM(), CLM(), [DataSet("text", lambda: data or Text(), of_run=True)])


def test_probes_find_the_planted_feature_and_not_the_control():
    table = [{"text": character * 3, "label": int(character.isalpha())} for character in "abcdefghij0123456789!?" * 4]
    case = replace(subject_on_tables(Letters(), letters=table), rows=7)
    scores = Probes(texts=len(table)).evaluate(case).scores["letters"]
    assert scores["label/layer1/accuracy"].value == 1.0
    assert scores["label/layer1/control"].value < 0.8 and scores["label/layer1/selectivity"].lo > 0.1
    assert scores["label/layer0/control"].value == 1.0, "random vectors tell the types apart, so a probe memorizes them"
    tokens = Probes(features=["character_class"]).evaluate(subject(Letters())).scores["text"]
    letters = np.isin(Text().tokens[:, :-1], [ord(c) for c in "abcdEfghi"])
    assert tokens["character_class/layer1/accuracy"].value == pytest.approx(
        max(tokens["character_class/majority"].value, letters.mean() + 0.2), abs=0.2
    )
    assert tokens["character_class/layer0/accuracy"].value == 1.0
    assert tokens["character_class/layer0/selectivity"].value == pytest.approx(0, abs=0.02)


def test_the_probe_is_the_logistic_regression_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    vectors = random.normal(size=(80, 5))
    labels = (vectors @ random.normal(size=(5, 3)) + random.normal(size=(80, 3))).argmax(1)
    weights = fit_probe(torch.from_numpy(vectors), torch.from_numpy(labels), 3, 0.01)
    expected = linear.LogisticRegression(C=1 / (0.01 * 80), tol=1e-8, max_iter=1000).fit(vectors, labels)
    logits = torch.from_numpy(vectors) @ weights[:-1] + weights[-1]
    assert np.allclose(logits.softmax(1), expected.predict_proba(vectors), atol=1e-3)


def test_held_out_items_are_not_trained_on():
    vectors = torch.tensor([[0.0], [1.0], [0.1], [0.9], [0.0], [1.0]])
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    training = torch.tensor([True, True, True, True, False, False])
    assert correct_on_held_out(vectors, labels, training, 0.01).tolist() == [False, False]
    assert means_of_texts(np.array([True, False, True]), np.array([0, 0, 3])).tolist() == [0.5, 1.0]


def test_features_and_controls():
    assert [character_class(c) for c in "a1 .é\x00"] == [0, 1, 2, 3, 0, 4]
    assert positions_in_word(["ab", " c", "d", " ", "x"]).tolist() == [2, 1, 2, 0]
    types, labels = np.array([5, 5, 7, 9, 7]), np.array([0, 1, 1, 1, 0])
    control = control_labels(types, labels, 0)
    assert control[0] == control[1] and control[2] == control[4]
    assert any((control_labels(types, labels, seed) != control).any() for seed in range(1, 5))


def test_the_keys_have_their_effect(monkeypatch):
    monkeypatch.setattr("kleiber.evals.probes.probe.ITERATIONS", 3)
    case = subject(tiny("dense"), Rows(0, 250, rows=24))
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


def test_figures_are_drawn():
    results = Probes(texts=8, length=4, features=["next_class"]).evaluate(subject(tiny("dense"), Rows(0, 250)))
    scores = {name: {key: vars(score) for key, score in each.items()} for name, each in results.scores.items()}
    assert set(Probes().figures({"scores": scores}, None)) == {"probes_text"}
