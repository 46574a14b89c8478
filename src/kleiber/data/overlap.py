"""How many validation documents are training documents too, by the hashes of documents, and what is said about that.

Memory is that of the hashes of the validation documents, of which at most SAMPLE are looked for: those of the lowest
hashes, which are a random sample of the distinct documents.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

from kleiber.data.sources import Document
from kleiber.data.splits import document_hash, document_hashes
from kleiber.types import Json

Hashes = UInt64[np.ndarray, "_ 2"]  # the hash and the normalized hash of each document

SAMPLE = 1 << 22  # validation documents that are looked for
AT_ONCE = 1 << 20  # training documents that are compared in one step
SHARE = 0.01  # of the validation documents: more than that is a warning
FEW = 5  # validation documents: fewer are a warning
NO_TEXT = document_hash([""])


def hash_documents(documents: Iterable[Document]) -> Hashes:
    """Returns the hash and the normalized hash of each document."""
    return np.array([document_hashes(document) for document in documents], np.uint64).reshape(-1, 2)


def count_shared(train: Hashes, held_out: Hashes) -> Json:
    """Returns how many of the held-out documents with text are training documents too.

    documents   held-out documents that were looked for
    exact       those that are equal to a training document, but for white space around them
    normalized  those that are equal to one but for case and any white space
    """
    held_out = held_out[held_out[:, 0] != NO_TEXT]
    if len(held_out) > SAMPLE:
        held_out = held_out[held_out[:, 1] <= np.partition(held_out[:, 1], SAMPLE)[SAMPLE]]
    counts: Json = {"documents": len(held_out)}
    for column, name in enumerate(("exact", "normalized")):
        distinct, places = np.unique(held_out[:, column], return_inverse=True)
        shared = np.zeros(len(distinct), bool)
        for begin in range(0, len(train), AT_ONCE):
            shared |= np.isin(distinct, train[begin : begin + AT_ONCE, column])
        counts[name] = int(shared[places].sum())
    return counts


def describe_overlap(shared: Json, unit: str = "document") -> str:
    """Returns the counts of `count_shared` in a sentence; `unit` is what is counted, such as "row"."""
    total, exact, normalized = (shared[key] for key in ("documents", "exact", "normalized"))
    if not normalized:
        return f"none of {total:,} validation {unit}{'s' * (total != 1)} is a training {unit} too"
    return (
        f"{exact:,} of {total:,} validation {unit}s ({_percent(exact, total)}) are training {unit}s too, "
        f"{normalized:,} ({_percent(normalized, total)}) if case and white space are ignored"
    )


def overlap_warning(shared: Json, unit: str = "document") -> str | None:
    """Returns the sentence and the fix where the validation loss misleads.

    It does where documents are shared, and where there are few of them, so that the loss is that of their texts alone.
    """
    if shared["normalized"] <= SHARE * shared["documents"]:
        if shared["documents"] >= FEW:
            return None
        count = f"only {shared['documents']} {unit}{'s' * (shared['documents'] != 1)}"
        return (
            f"validation has {count}, so its loss says little about other texts: put more of them into a folder named "
            "validation, with data.splits=files"
        )
    return (
        f"{describe_overlap(shared, unit)}. The validation loss is partly that of text that was trained on: remove it "
        "from the validation files of data.path, or remove these files, so that kleiber cuts a validation split"
    )


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(1, total):.3g}%"
