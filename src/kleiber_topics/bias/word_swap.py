"""Swaps the words of two groups in a text, such as those for men and women, and keeps grammar and case.

Nouns and names are swapped by paired lists (`word_lists`). The pronouns her and his have two counterparts each: her is
his in front of a noun ("her cat") and him elsewhere ("saw her"), and his is her or hers. The part of speech is decided
by the next word alone: a word of `FUNCTION_WORDS`, a punctuation mark or the end of the text begins no noun phrase. On
the sentences of WinoBias, whose counterparts are in the data, that rule is wrong for 57 of 831 "her" (7 %) and for 1 of
148 "his". What it gets wrong are verbs, adverbs and second objects behind an object ("saw her run", "gave her money"),
of which WinoBias has more than ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kleiber_topics.bias.word_lists import function_words

WORD = re.compile(r"[^\W\d_]+")
NEXT = re.compile(r"\s+([^\W\d_]+)")
PRONOUNS = {
    "he": "she", "she": "he", "him": "her", "hers": "his", "himself": "herself", "herself": "himself",
}  # fmt: skip
# By pronoun: its counterpart in front of a noun, and elsewhere.
AMBIGUOUS = {"her": ("his", "him"), "his": ("her", "hers")}
FUNCTION_WORDS = function_words()


class WordSwap:
    """Replaces each word of either group by its counterpart.

    pairs     words of the first group with those of the second one; "he" and the other pronouns are swapped as well
    names     pairs of given names, which are swapped only where they begin with a capital letter
    pronouns  whether the English pronouns of men and women are swapped
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str]], names: Sequence[tuple[str, str]] = (), pronouns: bool = True
    ) -> None:
        self.words: dict[str, str] = dict(PRONOUNS) if pronouns else {}
        self.names: dict[str, str] = {}
        for table, listed in ((self.words, pairs), (self.names, names)):
            for first, second in listed:
                table |= {first.lower(): second.lower(), second.lower(): first.lower()}
        self.ambiguous = AMBIGUOUS if pronouns else {}
        self.first_group = {first.lower() for first, _ in pairs} | (
            {"he", "him", "his", "himself"} if pronouns else set()
        )
        self.first_group |= {first.lower() for first, _ in names}

    def swap(self, text: str) -> str:
        """The counterfactual of a text; the text itself where it has no word of the lists."""
        return WORD.sub(lambda match: self._counterpart(match[0], text, match.end()), text)

    def counts(self, text: str) -> tuple[int, int]:
        """How many words of the first and of the second group a text has."""
        groups = [self.group(token) for token in WORD.findall(text)]
        return groups.count(0), groups.count(1)

    def group(self, token: str) -> int:
        """0 for a word of the first group, 1 for one of the second, and -1 for any other."""
        lower = token.lower()
        if lower in self.words or lower in self.ambiguous or (lower in self.names and token[0].isupper()):
            return 0 if lower in self.first_group else 1
        return -1

    def _counterpart(self, token: str, text: str, end: int) -> str:
        lower = token.lower()
        if lower in self.ambiguous:
            before_noun, elsewhere = self.ambiguous[lower]
            return match_case(token, before_noun if precedes_noun(text, end) else elsewhere)
        if lower in self.words:
            return match_case(token, self.words[lower])
        if lower in self.names and token[0].isupper():
            return match_case(token, self.names[lower])
        return token


def precedes_noun(text: str, end: int) -> bool:
    """Whether a noun phrase may begin behind position `end`: there is a word, and it is no function word."""
    following = NEXT.match(text, end)
    return following is not None and following[1].lower() not in FUNCTION_WORDS


def match_case(original: str, counterpart: str) -> str:
    """A word in the case of the original: UPPER, Capitalized or lower."""
    if len(original) > 1 and original.isupper():
        return counterpart.upper()
    return counterpart.capitalize() if original[0].isupper() else counterpart
