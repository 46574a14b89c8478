"""A tokenizer without files: what separates its documents, and what it puts in front of a prompt."""

from __future__ import annotations

import pytest

from kleiber.types.tokenizer import Separator, Tokenizer


class Letters(Tokenizer):
    """Letters as their code points, with four special tokens."""

    name, hash = "letters", "letters/1"
    eos, bos, mask = 1, 2, 3
    specials = {"</s>": 1, "<s>": 2, "<mask>": 3, "<sep>": 4}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_many_texts_are_encoded_as_one_by_one() -> None:
    assert [ids.tolist() for ids in Letters().encode_many(["a", "", "bc"])] == [[97], [], [98, 99]]
    assert Tokenizer.bos is None and Tokenizer.cls == -1


def test_documents_follow_the_end_of_text_unless_another_separator_is_set() -> None:
    letters = Letters()
    assert letters.separator == Separator(1) and letters.separator_texts == ["</s>"]
    assert letters.encode_prompt("ab") == [97, 98] and letters.data_hash == letters.hash
    assert letters.with_separator(None) is letters and letters.with_separator("auto") is letters


def test_without_a_separator_a_prompt_begins_as_with_the_end_of_text() -> None:
    letters = Letters().with_separator("none")
    assert letters.separator == Separator() and letters.separator_texts == [] and letters.begin == letters.eos
    assert letters.with_separator([]).separator == Separator() and letters.encode_prompt("a") == [97]


CHOICES = {
    ("bos",): [2], ("eos",): [1], ("<sep>",): [4], ("bos", "eos"): [2, 1], ("<s>", "<sep>"): [2, 4]
}  # fmt: skip


@pytest.mark.parametrize(("choice", "ids"), CHOICES.items())
def test_a_separator_is_set_by_name_or_by_the_text_of_a_token(choice: tuple[str, ...], ids: list[int]) -> None:
    letters = Letters()
    assert letters.with_separator(choice[0]).separator.ids == ids[:1]
    changed = letters.with_separator(choice)
    assert changed.separator.ids == ids and letters.separator.ids == [1]
    assert changed.with_separator(changed.separator_texts).separator == changed.separator
    assert changed.encode_prompt("a") == ([97] if ids[0] == letters.eos else [ids[0], 97])


def test_every_separator_has_its_own_hash() -> None:
    letters = Letters()
    choices = ["none", "eos", "bos", "<sep>", ["<s>", "</s>"], ["<s>", "<sep>"]]
    assert len({letters.with_separator(choice).data_hash for choice in choices}) == len(choices)
    assert letters.with_separator("eos").data_hash == letters.data_hash
    assert letters.with_separator("bos").hash == letters.hash


@pytest.mark.parametrize("choice", ["<mask>", "x", ["none"], ["<s>", "</s>", "<s>"], ["bos", "cls"], ""])
def test_an_impossible_separator_is_refused_by_name(choice: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"data\.separator="):
        Letters().with_separator(choice)


def test_begin_needs_a_begin_token() -> None:
    letters = Letters()
    letters.bos = None
    with pytest.raises(ValueError, match=r"data\.separator=bos"):
        letters.with_separator("bos")
    letters.cls = 9
    assert letters.with_separator("bos").separator == Separator(9)
