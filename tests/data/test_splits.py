"""Held-out texts depend on their content alone, and equal or nearly equal texts are in the same split."""

from __future__ import annotations

import numpy as np
import pytest

from kleiber.data.splits import document_hash, duplicate_groups, minhash, split_by_group, split_by_hash, text_hash


def test_equal_texts_are_in_the_same_split_and_each_split_gets_a_twentieth() -> None:
    texts = [f"text {i}" for i in range(400)]
    split = split_by_hash(texts * 2, 2)
    assert split is not None and (split[:400] == split[400:]).all()
    assert np.bincount(split[:400]).tolist() == [20, 20, 360]
    order = np.random.default_rng(0).permutation(400)
    shuffled = split_by_hash([texts[i] for i in order], 2)
    assert shuffled is not None and (shuffled == split[order]).all()


@pytest.mark.parametrize(("texts", "held_out"), [(["a", "b", "a"], 2), (["a", " a\n"], 1), ([], 1)])
def test_too_few_distinct_texts_are_not_split(texts: list[str], held_out: int) -> None:
    assert split_by_hash(texts, held_out) is None
    assert split_by_hash([*texts, "another", "and one more"], held_out) is not None


@pytest.mark.parametrize("text", [" \n a  b\tc \n\n", "", "  ", "x", "caf\u00e9 \ud800 \u2003end\u2003"])
def test_the_hash_of_a_document_in_pieces_is_that_of_its_text(text: str) -> None:
    for size in (1, 2, 3):
        assert document_hash(text[i : i + size] for i in range(0, len(text), size)) == text_hash(text)


def test_near_duplicates_are_one_group() -> None:
    texts = [" ".join(f"word{(i * 37 + k * k) % 1009}" for k in range(80)) for i in range(0, 4000, 1009)]
    texts += [texts[0].replace("word5 ", "other "), texts[0] + " and a last remark", "short"]
    group = duplicate_groups(minhash(text) for text in texts)
    assert group[4] == group[5] == group[0] == 0 or group[-2] == group[-3] == 0
    assert group[-1] == len(texts) - 1


@pytest.mark.slow
def test_splits_keep_groups_together_and_are_not_empty() -> None:
    texts = [" ".join(f"w{(i * 7919 + k * (i + 3)) % 5003}" for k in range(40)) for i in range(600)]
    copies = [text + " with an ending of its own" for text in texts]
    names = list(split_by_group(texts + copies))
    assert names[:600] == names[600:]
    assert 0.01 < names.count("validation") / 1200 < 0.08 and 0.01 < names.count("test") / 1200 < 0.08
    assert set(split_by_group(["one", "two", "three"])) == {"train", "validation", "test"}
