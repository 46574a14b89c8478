"""The text of a store: nested sizes, n-grams in common, and documents cut into chunks."""

import numpy as np
import pytest
import torch
from topics.retrieval.stores import random_text, windows

from kleiber.data.tokenizers import Bytes
from kleiber.types.batch import Batch
from kleiber_topics.retrieval.datastore import (
    choose_windows,
    cut_chunks,
    cut_windows,
    n_gram_hashes,
    overlap,
    read_sizes,
)

NONE = np.empty(0, np.uint64)


def test_n_grams_in_common_are_those_of_equal_tokens():
    ours, theirs = np.array([5, 6, 7, 8, 9]), np.array([1, 6, 7, 8, 2, 5, 6, 7])
    found = overlap(n_gram_hashes(ours, 3), np.unique(n_gram_hashes(theirs, 3)))
    assert found.tolist() == n_gram_hashes(np.array([5, 6, 7, 8]), 3).tolist()
    assert len(n_gram_hashes(ours, 6)) == 0 and len(overlap(n_gram_hashes(ours, 3), NONE)) == 0


def test_a_smaller_store_is_a_part_of_a_larger_one():
    text = windows([random_text(896, 0)])
    large = choose_windows(text, [100, 400], 8, NONE, True)
    small = choose_windows(text, [100], 8, NONE, True)
    numbers = [window.number for window in large.windows]
    assert [window.number for window in small.windows] == numbers[: large.ends[0]]
    assert large.tokens(0) == small.tokens(0) == 128 and large.tokens(1) == 416
    assert len(set(numbers)) == len(numbers) and numbers[large.ends[0] :] == sorted(numbers[large.ends[0] :])


def test_a_text_that_is_too_short_gives_all_of_it():
    store = choose_windows(windows([random_text(100, 0)]), [1000, 2000], 8, NONE, True)
    assert store.sizes == [1000] and store.tokens(0) == 100


def test_windows_that_overlap_are_left_out_and_counted():
    text = random_text(320, 0)
    evaluated = np.unique(n_gram_hashes(np.array([*text[40:60].encode()]), 12))
    kept = choose_windows(windows([text]), [1000], 12, evaluated, True)
    assert kept.left_out == 1 and kept.tokens(0) == 288 and len(kept.shared) == 9
    whole = choose_windows(windows([text]), [1000], 12, evaluated, False)
    assert whole.left_out == 0 and whole.tokens(0) == 320 and len(whole.shared) == 9


def test_windows_are_without_padding_and_of_one_document():
    tokens = torch.arange(12).view(2, 6)
    batch = Batch(
        tokens,
        real=torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool),
        weights=torch.tensor([[1.0, 1, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
        segments=torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]),
    )
    cut = [(window.ids.tolist(), scored.tolist(), window.number) for window, scored in cut_windows(batch, [4, 9])]
    assert cut == [
        ([0, 1, 2], [False, True, False], 4),
        ([3, 4, 5], [False, True, True], 4),
        ([6, 7, 8], [False, True, True], 9),
    ]


def test_chunks_are_pieces_of_documents_also_across_windows():
    documents = ["first document, which is longer than a window of it", "second", "third one"]
    store = choose_windows(windows(documents), [1000], 8, NONE, True)
    chunks = cut_chunks(store, Bytes(), 20)
    texts = [Bytes().decode(chunk.tolist()) for chunk in chunks.ids]
    assert texts == [documents[0][:20], documents[0][20:40], documents[0][40:], "second", "third one"]
    assert list(chunks.ends) == [5]


def test_sizes_are_quantities_in_ascending_order():
    assert read_sizes(["2K", 3000]) == [2000, 3000]
    with pytest.raises(ValueError, match="ascending"):
        read_sizes([])
