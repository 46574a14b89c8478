"""Lists of words: pairs of words of two groups, and words that may be associated with them. Imports no torch.

The package has the lists `gender` and `names` (pairs) and `occupations`, as files in `data/words`. A file of the user's
has one entry a line, the parts of which are separated by a comma; lines that begin with # are comments.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "words"
PACKAGED = ("gender", "names", "occupations")


def read_entries(name: str, key: str) -> tuple[tuple[str, ...], ...]:
    """The entries of a list, each as its parts.

    name  of a list of the package, or path of a file
    key   of the config or command line that names the list, for errors

    Raises ValueError for a name that is neither, and for a list without entries.
    """
    path = FOLDER / f"{name}.txt" if name in PACKAGED else Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"{key}={name} must be {', '.join(PACKAGED)}, or a file with an entry a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    entries = tuple(
        tuple(part.strip() for part in line.split(",")) for line in lines if line and not line.startswith("#")
    )
    if not entries:
        raise ValueError(f"{key}={name} has no entries: write one a line")
    return entries


def read_pairs(name: str, key: str) -> list[tuple[str, str]]:
    """The pairs of words of a list: of the first group and of the second one.

    Raises ValueError for an entry that is not two words, and for a word in two entries.
    """
    entries, words = read_entries(name, key), set[str]()
    for entry in entries:
        if len(entry) != 2 or not all(part.isalpha() for part in entry):
            raise ValueError(f"{key}={name}: the entry {','.join(entry)} must be two words, as in man,woman")
        for part in entry:
            if part.lower() in words:
                raise ValueError(f"{key}={name}: the word {part} is in two entries; each word may be in one")
            words.add(part.lower())
    return [(first, second) for first, second in entries]


def read_words(name: str, key: str) -> list[str]:
    """The words of a list in lower case: the first part of each entry."""
    return [entry[0].lower() for entry in read_entries(name, key)]


@cache
def occupations() -> dict[str, float]:
    """The share of women in each occupation of the package's list."""
    return {job: int(percent) / 100 for job, percent in read_entries("occupations", "")}


def function_words() -> frozenset[str]:
    """Words that begin no noun phrase."""
    lines = (FOLDER / "function_words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(token for line in lines if not line.startswith("#") for token in line.split())
