"""Labelled texts: rows say what the table says, nothing is lost without being counted, and errors name the columns."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import folder, jsonl

from kleiber.data.labelled import Labelled, LabelledRows, shortened
from kleiber.data.padding import Held
from kleiber.data.sampler import stream
from kleiber.data.sources.text import known_splits


def reviews(count: int = 40) -> list[dict]:
    return [{"text": f"{i} " + "ab" * (i % 9), "label": i % 2} for i in range(count)]


def said(rows: LabelledRows, i: int, begin: int = 256, eos: int = 256) -> list[str]:
    """The texts of a row, without what stands around them."""
    ids = rows.row(i).tolist()
    assert ids[0] == begin and ids[-1] == eos
    pieces, piece = [], []
    for token in ids[1:]:
        if token == eos:
            pieces.append(bytes(piece).decode("utf-8", "replace"))
            piece = []
        else:
            piece.append(token)
    return pieces


def test_rows_say_what_the_table_says(tmp_path: Path, cache: Path) -> None:
    table = reviews()
    corpus = Labelled(folder(tmp_path / "t", train=table, validation=table[:7])).prepare(64)
    rows = corpus.train
    assert isinstance(rows, LabelledRows) and (corpus.kind, corpus.num_classes, corpus.name) == ("single", 2, "t")
    assert [(said(rows, i), int(rows.labels[i])) for i in range(len(rows))] == [
        ([r["text"]], r["label"]) for r in table
    ]
    assert corpus.num_bytes == sum(len(r["text"].encode()) for r in table)
    assert corpus.num_tokens == corpus.num_bytes + 2 * len(table)
    assert len(corpus.validation["t"]) == 7


def test_a_share_of_the_training_rows_is_drawn_and_smaller_shares_lie_within_larger_ones(tmp_path, cache) -> None:
    table, path = reviews(), folder(tmp_path / "t", train=reviews(), validation=reviews(7))

    def kept(share: float, seed: int = 0):
        corpus = Labelled(path, share=share, seed=seed).prepare(64)
        rows = corpus.train
        found = {said(rows, i)[0]: int(rows.labels[i]) for i in range(len(rows))}
        assert len(corpus.validation["t"]) == 7
        assert corpus.num_tokens == rows.num_tokens == sum(len(text.encode()) + 2 for text in found)
        assert all(found[r["text"]] == r["label"] for r in table if r["text"] in found)
        return corpus.hash, set(found)

    (whole, _), (tenth, few), (half, some) = kept(1.0), kept(0.1), kept(0.5)
    assert len(few) == 4 and len(some) == 20 and few < some and len({whole, tenth, half}) == 3
    assert kept(0.1, seed=1)[1] != few and kept(0.001)[1] < few and len(kept(0.001)[1]) == 1
    with pytest.raises(ValueError, match=r"data\.share=0"):
        Labelled(path, share=0.0)


def test_padding_goes_to_a_multiple_of_eight_and_never_past_the_context(tmp_path: Path, cache: Path) -> None:
    rows = Labelled(folder(tmp_path / "t", train=reviews(), validation=reviews(4))).prepare(20).train
    batch = rows.gather(np.array([0, 1]))
    assert batch.tokens.shape == (2, 8) and batch.real is not None
    assert batch.real.sum(1).tolist() == [4, 6]
    assert rows.gather(np.array([0, 8])).tokens.shape == (2, 20)
    alone, among = rows.gather(np.array([3]), epoch=2), rows.gather(np.array([8, 3]), epoch=2)
    assert alone.tokens[0].tolist() == among.tokens[1, : alone.tokens.shape[1]].tolist()
    assert alone.samples is not None and alone.samples.tolist() == [2 * 40 + 3]


def test_pairs_of_texts_lose_the_end_of_the_longer_one(tmp_path: Path, cache: Path) -> None:
    table = [{"a": "x" * 4, "b": "yz" * 20, "label": i % 2} for i in range(6)]
    corpus = Labelled(folder(tmp_path / "t", train=table, validation=table), text=["a", "b"]).prepare(20)
    assert isinstance(corpus.train, LabelledRows)
    assert said(corpus.train, 0) == ["xxxx", "yz" * 6 + "y"]
    assert corpus.train.truncated == 6
    assert corpus.train.num_tokens == 6 * 20 and corpus.num_bytes == 6 * 17


def test_the_longest_text_is_cut_first() -> None:
    lengths = np.random.default_rng(0).integers(0, 30, (200, 3))
    for room in (0, 1, 17, 40, 100):
        kept = shortened(lengths, room)
        assert (kept <= lengths).all()
        for before, after in zip(lengths.tolist(), kept.tolist(), strict=True):
            slow = list(before)
            while sum(slow) > room:  # a token at a time, from the longest
                slow[int(np.argmax(slow))] -= 1
            assert sum(after) == sum(slow) and sorted(after) == sorted(slow)


def test_rows_without_label_are_left_out_and_rows_without_text_stay(tmp_path: Path, cache: Path, caplog) -> None:
    table = [*reviews(10), {"text": "hidden", "label": -1}, {"text": "none", "label": None}, {"text": None, "label": 1}]
    with caplog.at_level(logging.INFO):
        corpus = Labelled(folder(tmp_path / "t", train=table, validation=reviews(4))).prepare(32)
    assert len(corpus.train) == 11
    rows = corpus.train
    assert isinstance(rows, LabelledRows) and said(rows, 10) == [""]
    assert "2 without a label left out, 1 without text" in caplog.text
    assert "0 45.5%, 1 54.5%; the largest class alone scores 54.5%" in caplog.text


def test_a_split_whose_labels_are_all_hidden_is_no_split(tmp_path: Path, cache: Path) -> None:
    hidden = [{"text": "a", "label": -1.0} for _ in range(3)]
    scores = [{"text": f"{i}", "label": i / 2 - 1} for i in range(9)]
    corpus = Labelled(folder(tmp_path / "t", train=scores, validation=scores, test=hidden)).prepare(32)
    assert corpus.test == {} and corpus.kind == "regression"
    assert len(corpus.train) == 9  # where others are not -1, it is a quantity
    assert (corpus.center, corpus.scale) == (pytest.approx(1.0), pytest.approx(np.std(np.arange(9) / 2)))


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
        (tmp_path / name).write_text("text,label\n" + "".join(f"no. {i},{one}\n" for i, one in enumerate(labels)))
        return str(tmp_path / name)

    corpus = Labelled(written("gaps.csv", ["", "2", "7"] * 20)).prepare(32)
    assert (corpus.kind, corpus.label_names) == ("single", ["2", "7"])
    held = corpus.validation["gaps"]
    assert isinstance(held, Held) and len(corpus.train) + len(held) == 40
    assert Labelled(written("scores.csv", ["", "2", "7.5"] * 20)).prepare(32).kind == "regression"


def test_indicators_are_no_classes_and_splits_without_labels_are_named(tmp_path: Path, cache: Path) -> None:
    hot = [{"text": "x", "label": [i % 2, 1, 0]} for i in range(6)]
    with pytest.raises(ValueError, match=r"data.label=label: the row \[0, 1, 0\] names a class twice"):
        Labelled(folder(tmp_path / "hot", train=hot, validation=hot)).prepare(16)
    hidden = [{"text": "x", "label": -1}] * 4
    for splits, told in ((("train", "validation"), "score"), (("validation", "train"), "train")):
        path = folder(tmp_path / told, **dict(zip(splits, (reviews(4), hidden), strict=True)))
        with pytest.raises(ValueError, match=f"no rows to {told} on have a label"):
            Labelled(path).prepare(32)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text": "nope"}, r"data.text=nope: .* it has text, label"),
        ({"text": ["text", "b"]}, r"data.text=b: .* it has text, label"),
        ({"label": "nope"}, r"data.label=nope: .* it has text, label"),
        ({"text": "label", "label": "text"}, r"data.text=label: .* holds int64, not text"),
        ({"text": []}, r"data.text=\[\]"),
        ({"metric": "pearson"}, r"data.metric=pearson does not score single labels: take one of accuracy, f1"),
    ],
)
def test_what_is_wrong_names_the_columns(tmp_path: Path, cache: Path, options: dict, told: str) -> None:
    path = folder(tmp_path / "t", train=reviews(), validation=reviews(4))
    with pytest.raises(ValueError, match=told):
        Labelled(path, **options).prepare(32)


def test_one_class_and_too_short_a_context_are_refused(tmp_path: Path, cache: Path) -> None:
    one = [{"text": "x", "label": 1}] * 5
    with pytest.raises(ValueError, match="there are 1 classes"):
        Labelled(folder(tmp_path / "o", train=one, validation=one)).prepare(32)
    with pytest.raises(ValueError, match=r"model.context=2 leaves no room"):
        Labelled(folder(tmp_path / "t", train=reviews(), validation=reviews(4))).prepare(2)


def test_without_validation_the_test_split_is_scored_and_else_a_twentieth_is_held_out(
    tmp_path: Path, cache: Path
) -> None:
    corpus = Labelled(folder(tmp_path / "t", train=reviews(), test=reviews(6))).prepare(32)
    assert (len(corpus.train), len(corpus.validation["t"]), corpus.test) == (40, 6, {})
    twice = [*reviews(60), *reviews(60)]
    corpus = Labelled(jsonl(tmp_path / "lone.jsonl", twice)).prepare(64)
    held = corpus.validation["lone"]
    assert isinstance(held, Held) and isinstance(held.samples, LabelledRows) and isinstance(corpus.train, LabelledRows)
    texts = [{said(rows, i)[0] for i in range(len(rows))} for rows in (corpus.train, held.samples)]
    assert len(held) == 6 and not texts[0] & texts[1] and len(texts[0] | texts[1]) == 60
    again = Labelled(jsonl(tmp_path / "same.jsonl", twice)).prepare(64)
    assert again.hash == corpus.hash


def test_of_mnli_the_matched_split_is_scored() -> None:
    splits: Any = {name: name for name in ("train", "validation_matched", "validation_mismatched", "test_matched")}
    assert known_splits(splits, "mnli") == {"train": "train", "validation": "validation_matched"}


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


def test_a_batch_may_straddle_epochs_of_rows_of_any_length(tmp_path: Path, cache: Path) -> None:
    rows = Labelled(folder(tmp_path / "t", train=reviews(), validation=reviews(4))).prepare(64).train
    seen = {}
    for _, batch in zip(range(10), stream(rows, seed=0, batch_samples=12), strict=False):
        assert batch.samples is not None and batch.real is not None
        for sample, ids, real in zip(batch.samples.tolist(), batch.tokens, batch.real, strict=True):
            assert isinstance(rows, LabelledRows) and ids[real].tolist() == rows.row(sample % 40).tolist()
            seen[sample] = True
    assert len(seen) == 120


def test_a_vocabulary_is_trained_on_the_texts(tmp_path: Path, cache: Path) -> None:
    table = [{"text": "the same words " * 3, "label": i % 2} for i in range(30)]
    corpus = Labelled(folder(tmp_path / "t", train=table, validation=table), tokenizer="bpe", vocab_size=270).prepare(
        64
    )
    assert corpus.tokenizer.name == "bpe" and corpus.num_tokens < 0.8 * corpus.num_bytes


@pytest.mark.parametrize(
    ("path", "options", "shape"),
    [
        ("glue", {"config": "cola", "text": "sentence"}, (8551, 1043, 2, "single")),
        ("glue", {"config": "stsb", "text": ["sentence1", "sentence2"]}, (5749, 1500, 1, "regression")),
        ("super_glue", {"config": "cb", "text": ["premise", "hypothesis"]}, (250, 56, 3, "single")),
        ("trec", {"label": "fine_label"}, (5452, 500, 50, "single")),
        ("dbpedia_14", {"text": ["title", "content"]}, (5600, 2000, 14, "single")),
    ],
)
def test_known_tasks(shared: Path, cache: Path, path: str, options: dict, shape: tuple) -> None:
    corpus = Labelled(str(shared / "data" / path), **options).prepare(128)
    held = next(iter(corpus.validation.values()))
    assert (len(corpus.train), len(held), corpus.num_classes, corpus.kind) == shape


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([[1, 0], [0, 1]], "every row is one of indicators"),
        ([[0.1, 0.2], [0.3, 0.4]], "lists of fractions"),
        ([{"a": 1}, {"a": 2}], "give a column of classes"),
        ([[[1]], [[2]]], "give a column of classes"),
        ([1, -1], r"1 classes .*\[-1\] are negative, so they count as missing"),
    ],
)
def test_columns_that_only_look_like_labels_are_refused(tmp_path: Path, cache: Path, labels, told) -> None:
    rows = [{"text": "x", "label": labels[i % 2]} for i in range(6)]
    with pytest.raises(ValueError, match=f"data.label=label.*{told}"):
        Labelled(folder(tmp_path / "t", train=rows, validation=rows)).prepare(16)


def test_the_f1_of_two_classes_is_none_of_three(tmp_path: Path, cache: Path) -> None:
    rows = [{"text": "x", "label": i % 3} for i in range(6)]
    path = folder(tmp_path / "t", train=rows, validation=rows)
    with pytest.raises(ValueError, match=r"data.metric=f1 .* here are 3: take macro_f1"):
        Labelled(path, metric="f1").prepare(16)
    assert Labelled(path, metric="macro_f1").prepare(16).metric == "macro_f1"
