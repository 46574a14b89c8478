"""What a column of labels holds, and columns that only look like one."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled_rows import reviews
from tables import folder

from kleiber.data.batches import HeldOutRows
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
