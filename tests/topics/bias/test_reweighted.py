"""Weights by hand, and windows whose tokens carry those of their documents."""

import json
from pathlib import Path

import numpy as np
import pytest

from kleiber.data.mixture_corpus import MixtureCorpus
from kleiber.data.text import Text
from kleiber_topics.bias.reweighted import Reweighted, document_weights

ROWS = ["the nurse and she"] * 6 + ["the nurse and he"] * 2 + ["the cook and he"] * 3 + ["rain"] * 5


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "text").mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"text": text}) for text in ROWS]
        (tmp_path / "text" / f"{split}-00000-of-00001.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "text")


def by_document(data: Reweighted, cache: Path, context: int = 20) -> list[float]:
    """The weight of each document, read off the samples."""
    train = data.prepare(context, cache).train
    batch = train.gather(np.arange(len(train)))
    tokens, weights = batch.tokens[:, :-1].flatten().numpy(), batch.weights[:, :-1].flatten().numpy()
    return [round(float(weights[at]), 6) for at in np.flatnonzero(tokens == 256)]


def test_groups_have_equal_weights_within_each_attribute(folder, tmp_path):
    weights = by_document(Reweighted(Text(folder), attributes="occupations"), tmp_path)
    assert weights[:11] == [round(8 / 12, 6)] * 6 + [2.0] * 2 + [1.0] * 3 and set(weights[11:]) == {1.0}
    assert by_document(Reweighted(Text(folder), attributes="occupations", max_weight=1.5), tmp_path)[6] == 1.5


def test_without_attributes_groups_have_equal_weights_over_all_documents(folder, tmp_path):
    weights = by_document(Reweighted(Text(folder)), tmp_path)
    assert weights[:11] == [round(11 / 12, 6)] * 6 + [1.1] * 5


def test_weights_keep_their_sum_and_follow_the_windows_of_every_epoch(folder, tmp_path):
    cells = [("a", 0)] * 3 + [("a", 1)] + [("b", 1)] * 4 + [("", -1)]
    weights = document_weights(cells)
    assert weights.sum() == pytest.approx(len(cells)) and weights[:4].tolist() == pytest.approx([2 / 3] * 3 + [2.0])
    train = Reweighted(Text(folder)).prepare(20, tmp_path).train
    for epoch in (0, 1):
        batch = train.gather(np.array([0, 3]), epoch)
        for row, row_weights in zip(batch.tokens.tolist(), batch.weights.tolist(), strict=True):
            text = bytes(i if i < 256 else 0 for i in row).decode()
            start = 0
            for part in text.split("\0"):
                inside = set(np.round(row_weights[start + 1 : start + len(part)], 4))
                assert inside <= {round(11 / 12, 4), 1.1, 1.0} and len(inside) <= 1
                start += len(part) + 1


def test_names_are_words_of_the_groups_unless_switched_off(tmp_path):
    rows = [{"text": f"{name} sat {n}"} for name, count in (("Tom", 40), ("Lily", 80)) for n in range(count)]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Text(str(tmp_path / "n.jsonl"))
    assert set(by_document(Reweighted(data), tmp_path)) != {1.0}
    with pytest.raises(ValueError, match=r"data\.words=gender: no document of n has a word of the lists"):
        Reweighted(data, names=False).prepare(16, tmp_path)


def test_what_has_no_documents_to_weigh_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"data\.separator=none leaves no mark"):
        Reweighted(Text(folder), separator="none").prepare(16, tmp_path)
    two = MixtureCorpus({"builtin/occupations": 0.5, folder: 0.5}, max_bytes="5K")
    with pytest.raises(ValueError, match=r"has several texts"):
        Reweighted(two).prepare(16, tmp_path)
