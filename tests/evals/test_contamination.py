"""The share of items that stand in the training text: planted items, against a search in the text itself."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.planted import planted, subject
from evals.subjects import table

from kleiber.data.tokenizers import Bytes
from kleiber.evals import Pairs, contamination
from kleiber.evals.contamination import FEWEST, Contamination, N, item_texts, training_text
from kleiber.evals.measure import plan_measurements
from kleiber.types.batch import Batch
from kleiber.types.contracts import Samples


class Windows(Samples):
    """Windows of context + 1 bytes of a text, each beginning with the last byte of the one before."""

    def __init__(self, text: str, context: int = 16) -> None:
        ids = [Bytes.eos, *text.encode()]
        ids += [Bytes.eos] * (-(len(ids) - 1) % context)
        self.rows = np.lib.stride_tricks.sliding_window_view(np.array(ids), context + 1)[::context]

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: np.ndarray, epoch: int = 0) -> Batch:
        return Batch(torch.from_numpy(self.rows[index].copy()))


class Padded(Samples):
    """Two rows of unequal length."""

    padded = True

    def __len__(self) -> int:
        return 2

    def gather(self, index: np.ndarray, epoch: int = 0) -> Batch:
        rows = [list(b"the cat sat"), list(b"on the mat")]
        tokens = torch.tensor([row + [0] * (12 - len(row)) for row in rows])[torch.from_numpy(index)]
        return Batch(tokens, real=tokens != 0)


WORDS = [f"w{i}" for i in range(200)]


def text_of(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


def share(text: str, items: list[list[str]]) -> float:
    return contamination.contamination(Windows(text), Bytes(), {"t": items})["t"].value


def test_words_of_an_item_in_the_text_are_found():
    text = text_of(500, 0)
    words = text.split()
    long = " ".join(["new"] * 20 + words[100 : 100 + N] + ["new"] * 20)
    broken = " ".join(["new"] * 20 + words[100 : 99 + N] + ["new"] * 20)
    short = " ".join(words[300 : 300 + FEWEST])
    tiny = " ".join(words[300 : 299 + FEWEST])
    items = [[long], [broken], [short], [tiny], [broken, short], ["Not in it, " + short]]
    assert [share(text, [item]) for item in items] == [1, 0, 1, 0, 1, 0]
    assert share(text, items) == 0.5


def test_words_must_stand_there_in_order_and_in_one_document():
    assert share("one two three four", [["four three two one"]]) == 0
    documents = Windows("the cat sat down")
    documents.rows = Windows("the cat|sat down").rows.copy()
    documents.rows[documents.rows == ord("|")] = Bytes.eos
    assert next(training_text(documents, Bytes())).split() == ["the", "cat", "sat", "down"]


def test_case_and_punctuation_do_not_matter():
    assert share("The cat, which SAT on   the mat\nwas asleep.", [["the Cat which-sat on the mat (was) asleep!"]]) == 1


def test_the_size_of_the_pieces_does_not_matter(monkeypatch):
    """Against a search in the text itself, with pieces that end within words."""
    text = text_of(3000, 1)
    words = text.split()
    items = [[text_of(30, seed)] for seed in range(20)] + [[" ".join(words[i : i + 9])] for i in range(0, 2900, 97)]
    for tokens in (40, 1000, 1 << 20):
        monkeypatch.setattr(contamination, "TOKENS", tokens)
        monkeypatch.setattr(contamination, "OVERLAP", 100)
        assert share(text, items) == pytest.approx(np.mean([text.find(item) >= 0 for (item,) in items]))


def test_the_training_text_is_complete_and_documents_are_separated():
    text = text_of(300, 2)
    assert "".join(training_text(Windows(text), Bytes())).strip() == text
    joined = "".join(training_text(Padded(), Bytes()))
    assert re.findall(r"\w+", joined) == ["the", "cat", "sat", "on", "the", "mat"]


def test_all_texts_of_a_row_belong_to_the_item():
    row = {"a": "x", "b": ["y", {"c": "z", "d": 1}], "e": None, "f": 2.0}
    assert item_texts(row) == ["x", "y", "z"]


def test_contamination_stands_beside_the_scores_of_items():
    rows = [{"sentence_good": "a b a b", "sentence_bad": "b b b b"}, {"sentence_good": "a a a a", "sentence_bad": "b"}]
    parts = [table("g/x", rows, "g"), table("g/y", rows[1:], "g")]
    model = planted(a=0.5, b=0.25)
    trained = replace(subject(model, []), train=Windows("here is a b a b once"))
    (measurement,) = plan_measurements({"pairs": Pairs()}, model, Bytes(), [], parts)
    scores = measurement.measure(trained).scores
    assert {name: of["contamination"].value for name, of in scores.items()} == {"g/x": 0.5, "g/y": 0.0, "g": 1 / 3}
    (measurement,) = plan_measurements({"pairs": Pairs()}, model, Bytes(), [], parts)
    assert all("contamination" not in of for of in measurement.measure(subject(model, [])).scores.values())


def test_the_training_text_is_read_once_for_all_evaluations(monkeypatch):
    calls = []
    monkeypatch.setattr(contamination, "training_text", lambda *_: calls.append(1) or iter(()))
    both = Contamination()
    both.sets = [table("t", [{"a": "x"}])]
    trained = replace(subject(planted(a=0.5), []), train=Windows("a b c"))
    for _ in range(2):
        assert both.add_to({"t": {}, "u": {}}, trained)["t"]["contamination"].value == 0
    assert calls == [1]
