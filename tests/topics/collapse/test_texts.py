"""Units are words for bytes and tokens otherwise; pieces of a text join to the text, and repeats are marked."""

from itertools import pairwise

import torch

from kleiber.data.tokenizers import Bytes
from kleiber.types.tokenizer import Tokenizer
from kleiber_topics.collapse.texts import counts_words, mark_repeats, read_texts, repeated_units, split


class Letters(Tokenizer):
    """Tokens of two letters each."""

    def __init__(self) -> None:
        self.token_bytes = torch.full((300,), 2).numpy()

    def decode(self, ids):
        return "".join(f"{chr(97 + i % 26)}{i // 26}" for i in ids)


def ids(text: str) -> torch.Tensor:
    return torch.tensor(Bytes().encode(text), dtype=torch.long)


def test_units_are_words_and_punctuation_for_bytes_and_tokens_otherwise():
    assert counts_words(Bytes()) and not counts_words(Letters())
    assert split(Bytes(), ids("The cat's  x=1.\n--")) == ["The", "cat", "'", "s", "x", "=", "1", ".", "-", "-"]
    assert split(Bytes(), ids("the end of the sen")) == ["the", "end", "of", "the"], "the last word may be cut"
    assert split(Bytes(), ids("the end. ")) == ["the", "end", "."] and split(Bytes(), ids("aaaa")) == []
    assert split(Letters(), torch.tensor([3, 260])) == [3, 260]


def test_texts_have_their_units_and_strings():
    rows = torch.stack([ids("ab cd "), ids("ef gh ")])
    texts = read_texts(Bytes(), rows[:, :2], rows[:, 2:])
    assert texts.strings == [" cd ", " gh "] and texts.units == [["cd"], ["gh"]]


def test_a_unit_is_repeated_if_a_4gram_with_it_occurred_before():
    assert repeated_units(list("abcdxabcdy")) == [False] * 5 + [True] * 4 + [False]
    assert repeated_units(list("aaaaa")) == [False] + [True] * 4
    assert repeated_units(list("abc")) == [False] * 3


def test_pieces_join_to_the_text():
    for text in ("we go on. we go on. we go on.", " x", "", "  ", "Où\nallons-nous? Où allons-nous?"):
        pieces = mark_repeats(Bytes(), ids(text))
        assert "".join(piece for piece, _ in pieces) == text
        flags = [flag for _, flag in pieces]
        assert all(a != b for a, b in pairwise(flags)), "neighbors are joined"
    assert mark_repeats(Bytes(), ids("we go on. we go on.")) == [("we go on. ", False), ("we go on.", True)]
    assert mark_repeats(Letters(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 5])) == [
        ("a0b0c0d0", False),
        ("a0b0c0d0", True),
        ("f0", False),
    ]
