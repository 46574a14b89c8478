"""Rules that hold texts out of training: by the hash of each text, and by groups of near duplicates.

Both depend on the content alone, so a data set has the same splits on every machine, and equal texts are in
the same split.

Near duplicates are found by MinHash (Broder 1997) over shingles of five words, with 24 hashes in 8 bands of 3: texts
that share a band are in one group. A pair with Jaccard similarity J is found with probability 1 - (1 - J^3)^8: 0.997 at
0.8, 0.85 at 0.6, 0.01 at 0.1.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from jaxtyping import Int, Integer, UInt64

HELD_OUT_SHARE = 0.05  # of the distinct texts, for each split that a data set lacks
GROUP_SHARE = 0.04  # of the groups of near duplicates, for validation and test each
NO_TEXT = 2**64 - 1  # the hash of None, above all others
SPACE = b" \t\n\r\x0b\x0c"
SHINGLE, BANDS, ROWS = 5, 8, 3
WORD = re.compile(r"\w+")
PRIMES = np.array([1, 0x100000001B3, 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], np.uint64)
MULTIPLIERS = (np.arange(1, BANDS * ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def text_hash(text: str) -> int:
    """Returns a 64-bit hash of a text, without the white space around it."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest(), "big")


class StrippedHash:
    """The `text_hash` of a text whose pieces are never in memory together."""

    def __init__(self) -> None:
        self._digest, self._space, self._has_begun = hashlib.blake2b(digest_size=8), "", False

    def update(self, piece: str) -> None:
        """Adds the next piece."""
        text = self._space + piece if self._has_begun else piece.lstrip()
        stripped = text.rstrip()
        self._digest.update(stripped.encode("utf-8", "replace"))
        self._has_begun = self._has_begun or bool(stripped)
        self._space = text[len(stripped) :]

    def value(self) -> int:
        """Returns the hash of the pieces so far."""
        return int.from_bytes(self._digest.digest(), "big")


def document_hash(document: Iterable[str]) -> int:
    """Returns the `text_hash` of a document in pieces."""
    exact = StrippedHash()
    for piece in document:
        exact.update(piece)
    return exact.value()


def document_hashes(document: Iterable[str]) -> tuple[int, int]:
    """Returns the `text_hash` of a document in pieces, and a hash that does not depend on case and white space."""
    exact, normalized = StrippedHash(), xxhash.xxh3_64()
    for piece in document:
        exact.update(piece)
        normalized.update(piece.lower().encode("utf-8", "replace").translate(None, SPACE))
    return exact.value(), normalized.intdigest()


def split_by_hash(texts: Iterable[str | None], held_out: int) -> Int[np.ndarray, "_"] | None:
    """Returns the number of the held-out split that each text goes to, or `held_out` for the training split.

    None goes to the training split. Returns None where there are too few distinct texts to leave one for training.
    """
    hashes = np.fromiter((NO_TEXT if text is None else text_hash(text) for text in texts), np.uint64)
    distinct = np.unique(hashes[hashes < NO_TEXT])
    limits = split_limits(distinct, held_out)
    return None if limits is None else np.searchsorted(limits, hashes, "left")


def split_limits(distinct: UInt64[np.ndarray, "_"], held_out: int) -> UInt64[np.ndarray, "_"] | None:
    """Returns the largest hash of each held-out split, given the sorted hashes of the distinct texts.

    Each of the `held_out` splits gets 5 % of the distinct texts, those of the lowest hashes, and at least one; so equal
    texts go to the same split. Returns None where there are too few texts to leave one for training.
    """
    if len(distinct) <= held_out:
        return None
    count = max(1, round(HELD_OUT_SHARE * len(distinct)))
    return distinct[[count * (split + 1) - 1 for split in range(held_out)]]


@dataclass(frozen=True)
class HashSplit:
    """Assigns texts to splits by their hashes.

    names   the held-out splits, and then the split of all other texts
    limits  the largest hash of each held-out split
    """

    names: tuple[str, ...]
    limits: tuple[int, ...] = ()

    def __call__(self, text: str) -> str:
        return self.of_document([text])

    def of_document(self, document: Iterable[str]) -> str:
        """Returns the split of a document in pieces."""
        return self.names[bisect.bisect_left(self.limits, document_hash(document))] if self.limits else self.names[0]


def minhash(text: str) -> Integer[np.ndarray, "bands"] | None:
    """Returns a 64-bit value for each band; None for a text of fewer than five words, which has no near duplicate."""
    words = np.fromiter((zlib.crc32(token.encode()) for token in WORD.findall(text.lower())), np.uint64)
    if len(words) < SHINGLE:
        return None
    shingles = (np.lib.stride_tricks.sliding_window_view(words, SHINGLE) * PRIMES).sum(axis=1, dtype=np.uint64)
    mixed = shingles[:, None] * MULTIPLIERS
    least = (mixed ^ (mixed >> np.uint64(29))).min(axis=0).reshape(BANDS, ROWS)
    return least[:, 0] + least[:, 1] * PRIMES[1] + least[:, 2] * PRIMES[2]


def duplicate_groups(signatures: Iterable[Integer[np.ndarray, "bands"] | None]) -> list[int]:
    """Returns for each text the number of the first text of its group, by union-find over equal bands."""
    parent: list[int] = []
    first_with: dict[tuple[int, int], int] = {}
    for i, bands in enumerate(signatures):
        parent.append(i)
        for band, value in enumerate([] if bands is None else bands.tolist()):
            other = _root(parent, first_with.setdefault((band, value), i))
            root = _root(parent, i)
            parent[max(root, other)] = min(root, other)
    return [_root(parent, i) for i in range(len(parent))]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def split_by_group(texts: list[str]) -> Iterator[str]:
    """Returns the split of each text: 4 % of the groups of near duplicates go to validation, and 4 % to test.

    The hash of the first text of a group decides. A group of more than a hundredth of all text goes to train, because
    it would dominate any other split.
    """
    group = duplicate_groups(minhash(text) for text in texts)
    size = np.bincount(group, weights=[len(text) for text in texts], minlength=len(texts))
    place = {i: zlib.crc32(texts[i].encode("utf-8", "replace")) / 2**32 for i in set(group)}
    small = [i for i in sorted(place, key=lambda i: (place[i], i)) if size[i] <= max(0.01 * size.sum(), 10_000)]
    held_out = [i for i in small if place[i] < 2 * GROUP_SHARE]
    split = {i: "validation" if place[i] < GROUP_SHARE else "test" for i in held_out}
    for name, i in zip(("validation", "test"), [i for i in small if i not in split], strict=False):
        if name not in split.values():  # too little text for this split to get any by its hash
            split[i] = name
    return (split.get(i, "train") for i in group)
