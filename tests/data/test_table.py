"""Tables: their splits, what may be held out, and what a column of labels holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_rows import reviews, row_texts
from tables import folder, jsonl

from kleiber.data.batches import HeldOutRows
from kleiber.data.dataset import standard_splits
from kleiber.data.labelled import Labelled, LabelledRows


def test_classes_by_name_and_several_classes(tmp_path: Path, cache: Path) -> None:
    named = [{"text": "x", "label": ("sun", "rain", "")[i % 3]} for i in range(9)]
    corpus = Labelled(folder(tmp_path / "n", train=named, validation=named)).prepare(16)
    assert corpus.label_names == ["rain", "sun"] and len(corpus.train) == 6
    assert isinstance(corpus.train, LabelledRows) and corpus.train.labels[:2].tolist() == [1, 0]
    several = [{"text": "x", "label": ["sun", "wind"][: i % 3]} for i in range(6)]
    corpus = Labelled(folder(tmp_path / "s", train=several, validation=several)).prepare(16)
    assert (corpus.kind, corpus.label_names, corpus.metric) == ("multi", ["sun", "wind"], "micro_f1")
    assert isinstance(corpus.train, LabelledRows) and corpus.train.labels[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    gaps = [{"text": "x", "label": [["sun", None], [None], None, []][i % 4]} for i in range(8)]
    rows = Labelled(folder(tmp_path / "g", train=gaps, validation=gaps)).prepare(16).train
    assert isinstance(rows, LabelledRows) and rows.labels.tolist() == [[1], [0]] * 2  # sun, and what has none


def test_whole_numbers_with_gaps_are_classes_in_csv_too(tmp_path: Path, cache: Path) -> None:
    def written(name: str, labels: list[str]) -> str:
        (tmp_path / name).write_text("text,label\n" + "".join(f"no. {i},{label}\n" for i, label in enumerate(labels)))
        return str(tmp_path / name)

    corpus = Labelled(written("gaps.csv", ["", "2", "7"] * 20)).prepare(32)
    assert (corpus.kind, corpus.label_names) == ("single", ["2", "7"])
    held = corpus.validation["gaps"]
    assert isinstance(held, HeldOutRows) and len(corpus.train) + len(held) == 40
    assert Labelled(written("scores.csv", ["", "2", "7.5"] * 20)).prepare(32).kind == "regression"


def test_indicators_and_splits_without_labels_are_refused(tmp_path: Path, cache: Path) -> None:
    hot = [{"text": "x", "label": [i % 2, 1, 0]} for i in range(6)]
    with pytest.raises(ValueError, match=r"data\.label=label: .*\[0, 1, 0\]"):
        Labelled(folder(tmp_path / "hot", train=hot, validation=hot)).prepare(16)
    hidden = [{"text": "x", "label": -1}] * 4
    for empty in ("train", "validation"):
        path = folder(tmp_path / empty, **{"train": reviews(4), "validation": reviews(4), empty: hidden})
        with pytest.raises(ValueError, match=f"{empty} split"):
            Labelled(path).prepare(32)


def test_without_validation_the_test_split_is_scored_and_else_a_twentieth_is_held_out(
    tmp_path: Path, cache: Path
) -> None:
    corpus = Labelled(folder(tmp_path / "t", train=reviews(), test=reviews(6))).prepare(32)
    assert (len(corpus.train), len(corpus.validation["t"]), corpus.test) == (40, 6, {})
    twice = [*reviews(60), *reviews(60)]
    corpus = Labelled(jsonl(tmp_path / "lone.jsonl", twice)).prepare(64)
    held = corpus.validation["lone"]
    assert isinstance(held, HeldOutRows)
    texts = []
    for rows in (corpus.train, held.samples):
        assert isinstance(rows, LabelledRows)
        texts.append({row_texts(rows, i)[0] for i in range(len(rows))})
    assert len(held) == 6 and not texts[0] & texts[1] and len(texts[0] | texts[1]) == 60
    again = Labelled(jsonl(tmp_path / "same.jsonl", twice)).prepare(64)
    assert again.hash == corpus.hash


def test_the_validation_split_of_mnli_is_the_matched_one() -> None:
    splits: Any = {name: name for name in ("train", "validation_matched", "validation_mismatched", "test_matched")}
    assert standard_splits(splits, "mnli") == {"train": "train", "validation": "validation_matched"}


def test_part_of_a_sorted_table_still_has_all_classes(tmp_path: Path, cache: Path) -> None:
    table = [{"text": f"{i:04d}", "label": int(i >= 500)} for i in range(1000)]
    corpus = Labelled(folder(tmp_path / "t", train=table, validation=table), max_bytes=400).prepare(32)
    rows, held = corpus.train, corpus.validation["t"]
    assert isinstance(rows, LabelledRows) and len(rows) == 100
    assert 0.3 < rows.labels.mean() < 0.7
    first = held.first(60)
    labels = first.gather(np.arange(len(first))).labels
    assert len(first) == 10 and labels is not None and 0 < labels.float().mean() < 1
    assert first.num_tokens == 60 and first.num_bytes == 40
    longer = held.first(120)
    assert np.array_equal(longer.gather(np.arange(10)).tokens, first.gather(np.arange(10)).tokens)


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        ([[1, 0], [0, 1]], r"\[1, 0, 1\]"),
        ([[0.1, 0.2], [0.3, 0.4]], "lists"),
        ([{"a": 1}, {"a": 2}], "Value"),
        ([[[1]], [[2]]], "List"),
        ([1, -1], r"\[1\].*\[-1\]"),
    ],
)
def test_columns_that_only_look_like_labels_are_refused(tmp_path: Path, cache: Path, labels, value) -> None:
    rows = [{"text": "x", "label": labels[i % 2]} for i in range(6)]
    with pytest.raises(ValueError, match=f"data.label=label.*{value}"):
        Labelled(folder(tmp_path / "t", train=rows, validation=rows)).prepare(16)
