"""Removal of duplicate documents from the training text: equal ones, or near duplicates too.

Lee et al. 2022, arXiv:2107.06499, measure what it does to models; Kandpal et al. 2022, arXiv:2202.06539, what it does
to memorized text. Near duplicates are those of `data.splits`: MinHash over shingles of five words. Held-out text stays
as it is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from kleiber.config.stages import Quantity
from kleiber.data.cache import FORMAT, cache_root, cached_folder, digest
from kleiber.data.corpus import TextCorpus
from kleiber.data.mixture_corpus import TextData
from kleiber.data.splits import duplicate_groups, minhash, text_hash
from kleiber.data.token_files import TokenFile, TrainWindows, map_file
from kleiber.records.progress import activity
from kleiber.records.regular_files import create
from kleiber.types import Json
from kleiber.types.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Method = Literal["exact", "near"]
Ids = Integer[np.ndarray, "_"]


@dataclass(frozen=True)
class Deduplicated:
    """The text of `data`, with the first document of each group of duplicates alone left in the training text.

    method     exact: equal documents, but for white space around them; near: MinHash over shingles of five words, which
               finds a pair of Jaccard similarity .8 with probability .997, and one of .5 with .66
    max_bytes  replaces that of `data`; null: leaves it as it is
    """

    data: TextData
    method: Method = "exact"
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Prepares `data` and removes duplicates. Raises ValueError for data that is not one text of documents."""
        data = self.data if self.max_bytes is None else replace(self.data, max_bytes=self.max_bytes)
        corpus = data.prepare(context, cache)
        file = training_file(corpus, "data=deduplicated")

        def remove(ids: Ids) -> Ids:
            return without_duplicates(ids, corpus.tokenizer, self.method)

        config = f"without {self.method} duplicates"
        return rewrite(corpus, context, cache, config, {"remove": self.method}, file, remove)


def training_file(corpus: TextCorpus, choice: str) -> TokenFile:
    """The token file of the training text. Raises ValueError, which names `choice`, where there is no such file."""
    if not isinstance(corpus.train, TrainWindows):
        raise ValueError(
            f"{choice} needs one text, such as data.data.domain=docs, and {corpus.name} is made of several: choose "
            "another data.data"
        )
    return corpus.train.file


def rewrite(
    corpus: TextCorpus,
    context: int,
    cache: Path | None,
    config: str,
    settings: Json,
    file: TokenFile,
    *changes: Callable[[Ids], Ids],
) -> TextCorpus:
    """The corpus with a changed training text, which is kept in the cache.

    config    what is added to the corpus' own config
    settings  of the changes, on which the name of the folder in the cache depends
    changes   functions from token ids to token ids, applied one after another
    """
    tokenizer = corpus.tokenizer
    identity = {"format": FORMAT, "text": file.sha256, "tokenizer": tokenizer.data_hash, **settings}

    def build(folder: Path) -> Json:
        """Writes the changed ids; returns their counts."""
        ids: Ids = np.asarray(file.ids)
        for change in changes:
            ids = change(ids)
        with create(folder / "train.bin") as changed:
            changed.write(np.ascontiguousarray(ids, file.ids.dtype).data)
        scale = file.num_bytes / max(1, file.counted_bytes)  # a lossy tokenizer counts fewer bytes than there are
        counted = int(tokenizer.token_bytes[ids].sum())
        return {"bytes": round(scale * counted), "counted_bytes": counted}

    name = f"{corpus.name}-rewritten-{tokenizer.name}"
    folder, manifest = cached_folder(cache_root(cache), name, identity, build)
    ids = map_file(folder / "train.bin", file.ids.dtype)
    sha256 = manifest["files"]["train.bin"]["sha256"]
    changed = TokenFile(ids, manifest["bytes"], manifest["counted_bytes"], sha256)
    log.info("%s, %s: %s training tokens of %s", corpus.name, config, f"{len(ids):,}", f"{len(file.ids):,}")
    return replace(
        corpus,
        config=f"{corpus.config}, {config}",
        hash=digest([corpus.hash, sha256]),
        train=TrainWindows(changed, context, corpus.name),
        manifest=corpus.manifest | {f"{corpus.name}-rewritten": manifest},
        num_tokens=len(ids),
        num_bytes=changed.num_bytes,
    )


def document_starts(ids: Ids, tokenizer: Tokenizer) -> Int[np.ndarray, "_"]:
    """Positions at which a document begins, with its separator; [0] where no token separates documents."""
    separator = tokenizer.separator
    if separator.before is not None:
        starts = np.flatnonzero(ids == separator.before)
    elif separator.after is not None:
        starts = np.flatnonzero(ids == separator.after) + 1
    else:
        starts = np.empty(0, np.int64)
    starts = starts[starts < len(ids)]
    return starts if len(starts) and starts[0] == 0 else np.concatenate([[0], starts])


def without_duplicates(ids: Ids, tokenizer: Tokenizer, method: Method) -> Ids:
    """The ids without documents that repeat an earlier one. Raises ValueError for a text that is one document."""
    starts = document_starts(ids, tokenizer)
    if len(starts) < 2:
        raise ValueError(f"duplicates={method} needs documents, and this text is a single one: choose other data")
    spans = list(itertools.pairwise([*starts.tolist(), len(ids)]))
    with activity(f"looking for {method} duplicates", len(spans), "documents") as work:
        texts = [tokenizer.decode(ids[begin:end].tolist()) for begin, end in work.track(spans)]
    kept = [spans[i] for i in first_of_each(texts, method)]
    return np.concatenate([ids[begin:end] for begin, end in kept])


def first_of_each(texts: Sequence[str], method: Method) -> list[int]:
    """The number of the first text of each group of duplicates, in order."""
    numbers: dict[int, int] = {}
    first = [numbers.setdefault(text_hash(text), i) for i, text in enumerate(texts)]
    distinct = [i for i, other in enumerate(first) if i == other]
    if method == "exact":
        return distinct
    groups = duplicate_groups(minhash(texts[i]) for i in distinct)
    return [distinct[i] for i, group in enumerate(groups) if i == group]
