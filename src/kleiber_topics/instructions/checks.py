"""Rules that verify whether a text follows an instruction, by the names of IFEval (Zhou et al. 2023, arXiv:2311.07911).

Implemented are the instructions whose check is a rule about words, sentences, lines, letters or the end of a text. An
argument that is null is missing, as in tables, where all rows have all arguments as columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from kleiber.types import Json

WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-(?!-))[ \t]*\S", re.MULTILINE)  # not a word in bold, and no rule
QUOTES = "\"' "  # and spaces
RELATIONS = ("less than", "at least")

Check = Callable[[str, Json], bool]  # a text that is not empty and the arguments of the instruction


def has_word(text: str, phrase: str) -> bool:
    """Whether a word or phrase occurs, in letters of either case and not as a part of another word."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def count_sentences(text: str) -> int:
    """Number of sentences, the last of which need not have a mark at its end."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + (WORD.search(rest) is not None)


def related(count: int, arguments: Json, name: str) -> bool:
    """Whether a count is in the relation to the argument `name`. Raises ValueError for another relation."""
    relation = arguments["relation"]
    if relation not in RELATIONS:
        raise ValueError(f"relation={relation} must be one of {', '.join(RELATIONS)}")
    return count < arguments[name] if relation == "less than" else count >= arguments[name]


def is_quoted(text: str) -> bool:
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def ends_with(text: str, phrase: str) -> bool:
    """Whether a text ends with a phrase, in letters of either case and whatever quotes end either."""
    return text.rstrip(QUOTES).lower().endswith(phrase.strip().rstrip(QUOTES).lower())


CHECKS: Mapping[str, Check] = {
    "keywords:existence": lambda text, wanted: all(has_word(text, keyword) for keyword in wanted["keywords"]),
    "keywords:forbidden_words": lambda text, wanted: (
        not any(has_word(text, each) for each in wanted["forbidden_words"])
    ),
    "length_constraints:number_words": lambda text, wanted: related(len(WORD.findall(text)), wanted, "num_words"),
    "length_constraints:number_sentences": lambda text, wanted: related(count_sentences(text), wanted, "num_sentences"),
    "detectable_format:number_bullet_lists": lambda text, wanted: len(BULLET.findall(text)) == wanted["num_bullets"],
    "change_case:english_lowercase": lambda text, _: text == text.lower() and has_letter(text),
    "change_case:english_capital": lambda text, _: text == text.upper() and has_letter(text),
    "startend:end_checker": lambda text, wanted: ends_with(text, wanted["end_phrase"]),
    "startend:quotation": lambda text, _: is_quoted(text),
    "punctuation:no_comma": lambda text, _: "," not in text,
}


def has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def follows(text: str, name: str, arguments: Json) -> bool:
    """Whether a text follows the instruction `name`; an empty text follows none.

    Raises ValueError for an instruction without a check here, and for arguments that it lacks.
    """
    if name not in CHECKS:
        raise ValueError(f"instruction_id_list: {name} has no check here; those with one are {', '.join(CHECKS)}")
    text = text.strip()
    try:
        return bool(text) and CHECKS[name](text, arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"kwargs of {name}: {dict(arguments)} lack a value ({error})") from None
