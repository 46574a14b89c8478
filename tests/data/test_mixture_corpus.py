"""Mixtures of files, and a text that is repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kleiber.data.batches import stream
from kleiber.data.mixture_corpus import MixtureCorpus, Repeated
from kleiber.data.text import Text


def test_a_mixture_of_files(tmp_path: Path, cache: Path, tiny: str) -> None:
    other = tmp_path / "letters.txt"
    other.write_text("abcdefghij" * 500)
    corpus = MixtureCorpus({tiny: 0.75, str(other): 0.25}).prepare(16)
    assert set(corpus.validation) == {"tiny", "letters"}
    batch = next(stream(corpus.train, 0, 0, 20))
    assert sum("abc" in corpus.tokenizer.decode(row.tolist()) for row in batch.tokens) == 5


@pytest.mark.parametrize(
    "name",
    ["builtin/dogs", "builtin", "no/file.txt"],
)
def test_an_unknown_part_is_refused(name: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=name):
        MixtureCorpus({name: 1.0}).prepare(16)


def test_repeated_text_has_other_masks_in_every_epoch(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("\n".join(f"line {i} of a text" for i in range(400)))
    train = Repeated(Text(str(text)), unique=320).prepare(64, tmp_path).train
    first, again = (train.gather(np.array([2, 3]), epoch) for epoch in (0, 1))
    assert (first.tokens == again.tokens).all() and not set(first.samples.tolist()) & set(again.samples.tolist())
