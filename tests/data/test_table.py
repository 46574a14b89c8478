"""Tables: their splits, what may be held out, and what a column of labels holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from labelled_rows import reviews, row_texts
from tables import folder, jsonl

from kleiber.data.batches import HeldOutRows
from kleiber.data.dataset import standard_names
from kleiber.data.labelled import Labelled, LabelledRows


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
    splits = ["train", "validation_matched", "validation_mismatched", "test_matched"]
    assert standard_names(splits, "mnli") == {"train": "train", "validation": "validation_matched"}


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
