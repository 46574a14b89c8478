"""What a text consists of: how long its documents are, how many repeat others, their languages, and samples of them."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator

from kleiber.data.splits import duplicate_groups, minhash, text_hash
from kleiber.types import Json

FIRST = 5000  # documents among which near duplicates are looked for, and whose languages are identified
BEGINNING = 1000  # characters of a document from which its language is identified
WORD = re.compile(r"[^\W\d_]+")
SAMPLES, SHOWN = 3, 300  # documents that are shown, and characters of each


class Audit:
    """What else `kleiber data` says of a text. This one says nothing; extensions offer others under AUDITS."""

    def add(self, text: str) -> None:
        """Reads a document."""

    def summary(self) -> Json:
        """What the JSON file of the command has besides."""
        return {}

    def lines(self) -> list[str]:
        """What the terminal shows besides."""
        return []

    def page(self, path: str, first: str) -> str:
        """An HTML page about the text at `path`, of which `first` is the first line in the terminal."""
        raise NotImplementedError


class Survey:
    """Counts of documents that pass through `watch`.

    limit      bytes after which the documents were cut off; None where all of them pass
    num_bytes  of all documents
    words      of all documents
    longest    bytes of the longest document
    repeated   documents that are equal to an earlier one
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.documents, self.num_bytes, self.words, self.longest, self.repeated = 0, 0, 0, 0, 0
        self._hashes: set[int] = set()
        self._first: list[str] = []
        self._samples: list[tuple[int, str]] = []  # those of the lowest hashes

    def watch(self, documents: Iterator[str]) -> Iterator[str]:
        """Yields the documents."""
        for text in documents:
            size, number = len(text.encode("utf-8", "replace")), text_hash(text)
            self.documents, self.num_bytes = self.documents + 1, self.num_bytes + size
            self.words += sum(1 for _ in WORD.finditer(text))
            self.longest = max(self.longest, size)
            self.repeated += number in self._hashes
            if number not in self._hashes:
                self._samples = sorted([*self._samples, (number, text[:SHOWN])])[:SAMPLES]
                self._hashes.add(number)
            if len(self._first) < FIRST:
                self._first.append(text)
            yield text

    def near_duplicates(self) -> int:
        """Returns how many of the first 5000 documents repeat an earlier one, or nearly so (see `splits`)."""
        numbers: dict[int, int] = {}
        first = [numbers.setdefault(text_hash(text), i) for i, text in enumerate(self._first)]
        groups = duplicate_groups(minhash(text) for text in self._first)
        return len(first) - len({groups[i] for i in first})

    def languages(self) -> dict[str, float] | None:
        """Returns the shares of the languages of the first 5000 documents; None without the package py3langid."""
        if importlib.util.find_spec("py3langid") is None:
            return None
        from py3langid import classify

        texts = [text[:BEGINNING] for text in self._first if any(map(str.isalpha, text[:BEGINNING]))]
        counts = Counter(classify(text)[0] for text in texts)
        return {language: count / len(texts) for language, count in counts.most_common()}

    def to_json(self) -> Json:
        """Returns the survey as `kleiber data --json` writes it."""
        return {
            "documents": self.documents,
            "bytes": self.num_bytes,
            "words": self.words,
            "cut_off": self.limit is not None and self.num_bytes >= self.limit,
            "longest": self.longest,
            "duplicates": {"exact": self.repeated, "near": self.near_duplicates(), "near_of": len(self._first)},
            "languages": self.languages(),
            "samples": [text for _, text in self._samples],
        }


def survey_lines(survey: Json) -> list[str]:
    """Returns the lines that the terminal shows."""
    mean, duplicates, languages = (
        survey["bytes"] / max(1, survey["documents"]),
        survey["duplicates"],
        survey["languages"],
    )
    lines = ["these are the first documents; --max-bytes sets how much is read"] if survey["cut_off"] else []
    lines += [
        f"length: {mean:,.0f} bytes on average, {survey['longest']:,} the longest",
        f"duplicates: {duplicates['exact']:,} documents are equal to an earlier one; of the first "
        f"{duplicates['near_of']:,}, {duplicates['near']:,} are equal or nearly so",
    ]
    if languages is None:
        lines.append("languages: pip install 'kleiber[languages]' identifies them")
    elif languages:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(languages.items())[:5])
        lines.append(f"languages of the first {duplicates['near_of']:,} documents: {shares}")
    return [*lines, *(f"sample: {text!r}" for text in survey["samples"])]
