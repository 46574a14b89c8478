"""Labelled texts: rows say what the table says, nothing is lost without being counted, and errors name the columns."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from labelled_rows import reviews, row_texts
from tables import folder, jsonl

from kleiber.data.batches import stream
from kleiber.data.labelled import Labelled, LabelledRows, truncate_longest


def test_rows_have_the_texts_and_labels_of_the_table(tmp_path: Path, cache: Path) -> None:
    table = reviews()
    corpus = Labelled(folder(tmp_path / "t", train=table, validation=table[:7])).prepare(64)
    rows = corpus.train
    assert isinstance(rows, LabelledRows) and (corpus.kind, corpus.num_classes, corpus.name) == ("single", 2, "t")
    assert [(row_texts(rows, i), int(rows.labels[i])) for i in range(len(rows))] == [
        ([r["text"]], r["label"]) for r in table
    ]
    assert corpus.num_bytes == sum(len(r["text"].encode()) for r in table)
    assert corpus.num_tokens == corpus.num_bytes + 2 * len(table)
    assert len(corpus.validation["t"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokenizer", "ends"),
    [
        ("models/stories260K", (1, 2)),
        ("tokenizers/gpt2", (50256, 50256)),
        ("tokenizers/bert-base-uncased", (101, 102)),
    ],
)
def test_a_row_begins_as_the_tokenizer_has_it(tokenizer: str, ends: tuple, shared: Path, tmp_path: Path, cache) -> None:
    path = folder(tmp_path / "t", train=reviews(), validation=reviews(7))
    rows = Labelled(path, tokenizer=str(shared / "data" / tokenizer)).prepare(64).train
    assert {(int(rows.row(i)[0]), int(rows.row(i)[-1])) for i in range(len(rows))} == {ends}


def test_a_share_of_the_training_rows_is_drawn_and_smaller_shares_lie_within_larger_ones(tmp_path, cache) -> None:
    table, path = reviews(), folder(tmp_path / "t", train=reviews(), validation=reviews(7))

    def kept(share: float, seed: int = 0):
        corpus = Labelled(path, share=share, seed=seed).prepare(64)
        rows = corpus.train
        labels = {row_texts(rows, i)[0]: int(rows.labels[i]) for i in range(len(rows))}
        assert len(corpus.validation["t"]) == 7
        assert corpus.num_tokens == rows.num_tokens == sum(len(text.encode()) + 2 for text in labels)
        assert all(labels[r["text"]] == r["label"] for r in table if r["text"] in labels)
        return corpus.hash, set(labels)

    (whole, _), (tenth, few), (half, some) = kept(1.0), kept(0.1), kept(0.5)
    assert len(few) == 4 and len(some) == 20 and few < some and len({whole, tenth, half}) == 3
    assert kept(0.1, seed=1)[1] != few and kept(0.001)[1] < few and len(kept(0.001)[1]) == 1


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
    assert row_texts(corpus.train, 0) == ["xxxx", "yz" * 6 + "y"]
    assert corpus.train.truncated == 6
    assert corpus.train.num_tokens == 6 * 20 and corpus.num_bytes == 6 * 17


def test_the_longest_text_is_cut_first() -> None:
    lengths = np.random.default_rng(0).integers(0, 30, (200, 3))
    for room in (0, 1, 17, 40, 100):
        kept = truncate_longest(lengths, room)
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
    assert isinstance(rows, LabelledRows) and row_texts(rows, 10) == [""]
    counts = corpus.manifest["t"]["splits"]["train"]
    assert (counts["without_label"], counts["without_text"], counts["of_class"]) == (2, 1, [5, 6])
    assert "0 45.5%, 1 54.5%; predicting 1, the largest class of these rows, scores 54.5%" in caplog.text


def test_a_split_whose_labels_are_all_hidden_is_left_out(tmp_path: Path, cache: Path) -> None:
    hidden = [{"text": "a", "label": -1.0} for _ in range(3)]
    scores = [{"text": f"{i}", "label": i / 2 - 1} for i in range(9)]
    corpus = Labelled(folder(tmp_path / "t", train=scores, validation=scores, test=hidden)).prepare(32)
    assert corpus.test == {} and corpus.kind == "regression"
    assert len(corpus.train) == 9  # where others are not -1, it is a quantity
    assert (corpus.center, corpus.scale) == (pytest.approx(1.0), pytest.approx(np.std(np.arange(9) / 2)))


@pytest.mark.parametrize(
    ("options", "setting", "values"),
    [
        ({"text": "nope"}, "data.text=nope", "text, label"),
        ({"text": ["text", "b"]}, "data.text=b", "text, label"),
        ({"label": "nope"}, "data.label=nope", "text, label"),
        ({"text": "label", "label": "text"}, "data.text=label", "int64"),
        ({"text": []}, r"data.text=\[\]", ""),
        ({"metric": "pearson"}, "data.metric=pearson", "accuracy, f1, macro_f1, mcc"),
    ],
)
def test_errors_name_the_columns(tmp_path: Path, cache: Path, options: dict, setting: str, values: str) -> None:
    path = folder(tmp_path / "t", train=reviews(), validation=reviews(4))
    with pytest.raises(ValueError, match=f"{setting}.*{values}"):
        Labelled(path, **options).prepare(32)


def test_one_class_and_too_short_a_context_are_refused(tmp_path: Path, cache: Path) -> None:
    same = [{"text": "x", "label": 1}] * 5
    with pytest.raises(ValueError, match=r"data\.label=label.* 1 \(\[1\]\)"):
        Labelled(folder(tmp_path / "o", train=same, validation=same)).prepare(32)
    with pytest.raises(ValueError, match=r"model\.context=2"):
        Labelled(folder(tmp_path / "t", train=reviews(), validation=reviews(4))).prepare(2)


def test_a_batch_may_straddle_epochs_of_rows_of_any_length(tmp_path: Path, cache: Path) -> None:
    rows = Labelled(folder(tmp_path / "t", train=reviews(), validation=reviews(4))).prepare(64).train
    samples = {}
    for _, batch in zip(range(10), stream(rows, seed=0, batch_samples=12), strict=False):
        assert batch.samples is not None and batch.real is not None
        for sample, ids, real in zip(batch.samples.tolist(), batch.tokens, batch.real, strict=True):
            assert isinstance(rows, LabelledRows) and ids[real].tolist() == rows.row(sample % 40).tolist()
            samples[sample] = True
    assert len(samples) == 120


def test_a_vocabulary_is_trained_on_the_texts(tmp_path: Path, cache: Path) -> None:
    table = [{"text": "the same words " * 3, "label": i % 2} for i in range(30)]
    corpus = Labelled(folder(tmp_path / "t", train=table, validation=table), tokenizer="bpe", vocab_size=270).prepare(
        64
    )
    assert corpus.tokenizer.name == "bpe" and corpus.num_tokens < 0.8 * corpus.num_bytes


@pytest.mark.slow
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


def test_f1_is_refused_for_three_classes(tmp_path: Path, cache: Path) -> None:
    rows = [{"text": "x", "label": i % 3} for i in range(6)]
    path = folder(tmp_path / "t", train=rows, validation=rows)
    with pytest.raises(ValueError, match=r"data.metric=f1 .*3.*data.metric=macro_f1"):
        Labelled(path, metric="f1").prepare(16)
    assert Labelled(path, metric="macro_f1").prepare(16).metric == "macro_f1"


def test_rows_of_validation_that_were_trained_on_are_a_warning(tmp_path: Path, cache: Path) -> None:
    """FAULTS 99."""
    table = reviews(40)
    same = Labelled(folder(tmp_path / "same", train=table, validation=table)).prepare(32)
    assert same.manifest["same"]["overlap"] == {"documents": 40, "exact": 40, "normalized": 40}
    (warning,) = same.reading.warnings
    assert "40 of 40 validation rows (100%)" in warning and "data.path" in warning
    held_out = Labelled(jsonl(tmp_path / "one.jsonl", reviews(200))).prepare(32)
    assert held_out.manifest["one"]["overlap"]["exact"] == 0 and held_out.reading.warnings == ()
