"""Documents are cut at a number of bytes, and between words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kleiber.data.sources import chunks, limit_bytes
from kleiber.data.tokenizers import BPE


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, ["abcd", "", "é!"]), (3, ["abc"]), (4, ["abcd"]), (5, ["abcd", "", ""]), (6, ["abcd", "", "é"])],
)
def test_documents_are_cut_at_a_number_of_bytes(limit: int | None, expected: list[str]) -> None:
    """A character of several bytes is left out where only a part of it fits."""
    documents = limit_bytes([["ab", "cd"], [""], ["é", "!"]], limit)
    assert ["".join(document) for document in documents] == expected


def test_chunks_join_to_the_text_and_have_the_ids_of_the_whole_text(bpe: BPE, tiny: str) -> None:
    text = Path(tiny).read_text()
    pieces = list(chunks([text[:7000], text[7000:]], size=1000))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1000
    assert np.concatenate(bpe.encode_many(pieces)).tolist() == bpe.encode(text)
    assert [len(piece) for piece in chunks(["x" * 2500], size=1000)] == [1000, 1000, 500]
