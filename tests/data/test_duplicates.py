"""Repeated documents are removed from the training text, and near ones where that is asked; the first one stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kleiber.data.corpus import TextCorpus
from kleiber.data.duplicates import Deduplicated, document_starts, first_of_each, without_duplicates
from kleiber.data.mixture_corpus import MixtureCorpus
from kleiber.data.text import Text
from kleiber.data.token_files import TrainWindows
from kleiber.data.tokenizers import Bytes


def training_text(corpus: TextCorpus) -> str:
    assert isinstance(corpus.train, TrainWindows)
    assert corpus.num_tokens == len(corpus.train.file.ids)
    return corpus.tokenizer.decode(np.asarray(corpus.train.file.ids).tolist())


def test_duplicates_of_any_text_are_removed_and_the_first_one_stays(
    text: Text, lines: list[str], tmp_path: Path
) -> None:
    corpus = text.prepare(64, tmp_path)
    plain = training_text(corpus)
    without = Deduplicated(text, "exact").prepare(64, tmp_path)
    exact, near = training_text(without), training_text(Deduplicated(text, "near").prepare(64, tmp_path))
    assert [plain.count(line) for line in lines[3:6]] == [2, 2, 2]
    assert [exact.count(line) for line in lines[3:6]] == [1, 1, 2] and exact.count("Indeed.") == 1
    assert near.count("Indeed.") == 0 and len(near) < len(exact) < len(plain)
    assert without.hash != corpus.hash and without.config.endswith("without exact duplicates")
    assert len(training_text(Deduplicated(text, max_bytes=1000).prepare(64, tmp_path))) <= 1000


def test_near_duplicates_are_those_with_most_words_in_common() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    assert first_of_each(["a b", "c", " a b ", "c"], "exact") == [0, 1]
    assert first_of_each([words, "something else", f"{words} more"], "near") == [0, 1]
    assert first_of_each([words, "something else", f"{words} more"], "exact") == [0, 1, 2]


def test_documents_begin_at_their_separator() -> None:
    tokenizer = Bytes()
    mark = tokenizer.eos
    ids = np.array([mark, 97, 98, mark, 99])
    assert document_starts(ids, tokenizer).tolist() == [0, 3]
    assert document_starts(ids, tokenizer.with_separator("none")).tolist() == [0]
    repeated = np.array([mark, 97, mark, 97, mark, 98])
    assert without_duplicates(repeated, tokenizer, "exact").tolist() == [mark, 97, mark, 98]


def test_text_that_has_no_documents_is_refused(text: Text, tiny: str, tmp_path: Path) -> None:
    parts = MixtureCorpus({text.path: 0.5, tiny: 0.5})
    with pytest.raises(ValueError, match="data=deduplicated needs one text"):
        Deduplicated(parts).prepare(64, tmp_path)
    with pytest.raises(ValueError, match="this text is a single one"):
        Deduplicated(Text(tiny)).prepare(64, tmp_path)
