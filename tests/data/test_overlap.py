"""Documents of the validation text that are training documents are counted, and many of them are a warning."""

from __future__ import annotations

import numpy as np
import pytest

from kleiber.data import overlap as module
from kleiber.data.overlap import count_shared, describe_overlap, hash_documents, overlap_warning


def shared(train: list[str], held_out: list[str]) -> dict[str, int]:
    return count_shared(hash_documents([[text] for text in train]), hash_documents([[text] for text in held_out]))


def test_equal_documents_and_those_that_differ_in_case_and_white_space_are_counted() -> None:
    train = ["Alpha beta", "gamma", "delta", ""]
    held_out = ["Alpha beta", "  Alpha beta\n", "alpha  BETA", "gamma ray", "", " \n"]
    assert shared(train, held_out) == {"documents": 4, "exact": 2, "normalized": 3}
    assert shared(train, []) == {"documents": 0, "exact": 0, "normalized": 0}
    assert shared([], ["a"]) == {"documents": 1, "exact": 0, "normalized": 0}


def test_a_document_in_pieces_has_the_hashes_of_the_whole() -> None:
    text = "  Über 3\n\n words \t and more  "
    for size in (1, 2, 5):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert np.array_equal(hash_documents([pieces]), hash_documents([[text]]))


def test_of_many_documents_a_sample_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 400)
    monkeypatch.setattr(module, "AT_ONCE", 64)
    counts = shared([f"document {i}" for i in range(500)], [f"document {i}" for i in range(2000)])
    assert 400 <= counts["documents"] <= 401 and 70 <= counts["exact"] <= 130


def test_few_validation_documents_are_a_warning() -> None:
    none, enough = ({"documents": n, "exact": 0, "normalized": 0} for n in (1, 5))
    assert "1 row," in str(overlap_warning(none, "row")) and overlap_warning(enough) is None


def test_more_than_a_hundredth_is_a_warning() -> None:
    few, many = ({"documents": 200, "exact": n, "normalized": n} for n in (2, 3))
    assert overlap_warning(few) is None and "data.path" in str(overlap_warning(many, "row"))
    assert "3 of 200 validation rows (1.5%)" in describe_overlap(many, "row")
