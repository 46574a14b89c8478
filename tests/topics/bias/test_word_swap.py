"""Counterfactuals of texts: grammar, case and names; twice swapped is the text again where no pronoun is ambiguous."""

import pytest

from kleiber_topics.bias.word_lists import read_pairs
from kleiber_topics.bias.word_swap import WordSwap, match_case

SWAP = WordSwap(read_pairs("gender", "k"), read_pairs("names", "k"))


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("She fed her cat.", "He fed his cat."),
        ("We saw her.", "We saw him."),
        ("I gave her the ball and her hat.", "I gave him the ball and his hat."),
        ("The ball is his. His hat, too.", "The ball is hers. Her hat, too."),
        ("It was hers; he hurt himself.", "It was his; she hurt herself."),
        ("MOM and Dad", "DAD and Mom"),
        ("The man's wife is a queen", "The woman's husband is a king"),
        ("Tom met Lily", "Lily met Tom"),
        ("a lily and the boyish heroes", "a lily and the boyish heroines"),
        ("nobody here", "nobody here"),
        ("to her", "to him"),
    ],
)
def test_a_text_is_swapped(text, swapped):
    assert SWAP.swap(text) == swapped


def test_a_second_swap_undoes_the_first():
    text = "Once, James and his mother met a waitress. She said that he lost his hat, and gave him the key of the Lady."
    assert SWAP.swap(text) != text and SWAP.swap(SWAP.swap(text)) == text


def test_names_and_pronouns_can_be_left_alone():
    assert WordSwap([("man", "woman")]).swap("Tom, a man, lost his hat") == "Tom, a woman, lost her hat"
    assert WordSwap([("cat", "dog")], pronouns=False).swap("She has a Cat") == "She has a Dog"


def test_the_words_of_each_group_are_counted():
    assert SWAP.counts("Tom and his mom saw her, a lily.") == (2, 2)
    assert SWAP.counts("it rains") == (0, 0)


def test_a_case_is_kept():
    assert [match_case(text, "her") for text in ("He", "HE", "he", "I")] == ["Her", "HER", "her", "Her"]
