"""A corpus: the training and held-out samples of a stage, prepared from text or from the rows of a table.

The hash of a corpus is one of its content (token files and tokenizer). It does not depend on paths, dates or downloads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Integer

from kleiber.config.stages import Quantity, quantity
from kleiber.data.batches import ConcatSamples, HeldOutRows, RowSamples
from kleiber.data.cache import cache_root, digest
from kleiber.data.sources import NOTHING_READ, Reading, Source
from kleiber.data.token_files import TokenFile, TrainWindows, ValidationWindows, token_files, write_rows
from kleiber.data.tokenizers import Bytes, train_bpe
from kleiber.records.arrays import write_array
from kleiber.types import Json
from kleiber.types.contracts import Corpus, HeldOut, Samples
from kleiber.types.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_VOCABULARY = 4096  # entries of a trained tokenizer


@dataclass
class TextCorpus:
    """Prepared text.

    validation, test       held-out samples by domain
    manifest               manifest of the cached files of each domain
    num_tokens, num_bytes  of the unique training text
    reading                what was read of the files of the data
    """

    name: str
    config: str
    hash: str
    tokenizer: Tokenizer
    train: Samples
    validation: dict[str, HeldOut]
    test: dict[str, HeldOut] = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)
    num_tokens: int = 0
    num_bytes: int = 0
    reading: Reading = NOTHING_READ


def content_hashes(corpus: Corpus) -> dict[str, str]:
    """Returns a hash of the prepared files of each text of a corpus, by its name; of the corpus where it has no files.

    It does not depend on paths, dates or settings of the run, but on the tokenizer.
    """
    files = corpus.manifest if isinstance(corpus, TextCorpus) else {}
    hashes = {name: [file["sha256"] for file in manifest["files"].values()] for name, manifest in files.items()}
    return {name: digest(sums) for name, sums in hashes.items()} or {corpus.name: corpus.hash}


def concatenate(windows: list[Samples]) -> Samples:
    """Returns the samples of all sources as one set; an epoch contains each sample once."""
    return windows[0] if len(windows) == 1 else ConcatSamples(windows)


def prepare(
    name: str,
    config: str,
    sources: list[Source],
    tokenizer: str,
    vocab_size: int | None,
    context: int,
    cache: Path | None,
    combine: Callable[[list[Samples]], Samples] = concatenate,
    separator: str | Sequence[str] | None = None,
) -> TextCorpus:
    """Encodes the text that is not in the cache, and cuts it into samples of context + 1 tokens.

    cache      folder of the cache; None for the default one
    combine    makes one set of training samples of those of each source
    separator  tokens around every document (see `Tokenizer.with_separator`); None for those of the tokenizer

    Raises ValueError for a context below 1, a source with too little text, and a separator that the tokenizer lacks.
    """
    if context < 1:
        raise ValueError(f"model.context={context} must be >= 1")
    root = cache_root(cache)
    chosen = choose_tokenizer(tokenizer, vocab_size, sources, root, separator)
    encoded = {source.name: token_files(source, chosen, root) for source in sources}
    files = {domain: splits for domain, (splits, _) in encoded.items()}
    for domain, splits in files.items():
        if not len(splits["train"].ids):
            raise ValueError(f"the training split of {domain} has no text: choose data with text in that split")
    windows: list[Samples] = [TrainWindows(splits["train"], context, domain) for domain, splits in files.items()]
    train_files = [splits["train"] for splits in files.values()]
    return TextCorpus(
        name=name,
        config=config,
        hash=digest([chosen.data_hash, [[file.sha256 for file in splits.values()] for splits in files.values()]]),
        tokenizer=chosen,
        train=combine(windows),
        validation=_held_out(files, "validation", context, chosen),
        test=_held_out(files, "test", context, chosen),
        manifest={domain: manifest for domain, (_, manifest) in encoded.items()},
        num_tokens=sum(len(file.ids) for file in train_files),
        num_bytes=sum(file.num_bytes for file in train_files),
    )


def _held_out(
    files: dict[str, dict[str, TokenFile]], split: str, context: int, tokenizer: Tokenizer
) -> dict[str, HeldOut]:
    held_out: dict[str, HeldOut] = {
        domain: ValidationWindows(splits[split], context, tokenizer) for domain, splits in files.items()
    }
    return {domain: windows for domain, windows in held_out.items() if len(windows)}


@dataclass
class EncodedSplit:
    """The encoded rows of one split.

    ids      token ids of each row
    answers  for each row, 1 on the tokens of answers and 0 elsewhere; None where the samples do not need it
    arrays   other values of the rows, by the name of their file
    counts   what the manifest records about the split
    notes    what the manifest records about the whole data set
    texts    bytes of text that evaluations read, for each row; None where they read none
    """

    ids: list[Integer[np.ndarray, "_"]]
    counts: Json
    answers: list[Integer[np.ndarray, "_"]] | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    notes: Json = field(default_factory=dict)
    texts: list[Integer[np.ndarray, "_"]] | None = None

    def write(self, path: Path, dtype: np.dtype) -> None:
        """Writes the rows and arrays to files whose names begin with `path`."""
        write_rows(path, self.ids, dtype)
        if self.answers is not None:
            write_rows(path.with_name(f"{path.name}-answers"), self.answers, np.dtype(np.uint8))
        if self.texts is not None:
            write_rows(path.with_name(f"{path.name}-texts"), self.texts, np.dtype(np.uint8))
        for name, values in self.arrays.items():
            write_array(path.with_suffix(f".{name}.npy"), values)


class TableRows(RowSamples):
    """The samples of one split of a table."""

    def describe(self, counts: Json) -> str:
        """Returns a line for the log: what the split contains, and what was left out or cut."""
        raise NotImplementedError

    def explain_empty(self, split: str) -> str:
        """Returns why a split has no samples."""
        raise NotImplementedError


SomeRows = TypeVar("SomeRows", bound=TableRows)
SomeCorpus = TypeVar("SomeCorpus", bound=TextCorpus)


@dataclass(frozen=True)
class EncodedTable:
    """The encoded rows of the table at data.path, in a folder of the cache at `root`."""

    name: str
    path: str
    tokenizer: Tokenizer
    root: Path
    folder: Path
    manifest: Json
    reading: Reading = NOTHING_READ

    @property
    def checksums(self) -> list[str]:
        """The checksums of the files: equal content has equal checksums."""
        return [file["sha256"] for file in self.manifest["files"].values()]

    def samples(self, read: Callable[[Path], SomeRows]) -> dict[str, SomeRows]:
        """Returns the samples by split.

        read  loads a split from the path FOLDER/SPLIT without a suffix; its files add suffixes such as .bin

        Logs what each split contains. Raises ValueError for a training or validation split without samples.
        """
        samples = {name: read(self.folder / name) for name in self.manifest["splits"]}
        for name, split in samples.items():
            log.info("%s %s: %s", self.name, name, split.describe(self.manifest["splits"][name]))
            if name != "test" and len(split) == 0:
                raise ValueError(f"data.path={self.path}: {split.explain_empty(name)}")
        return samples

    def corpus(
        self,
        corpus_class: Callable[..., SomeCorpus],
        samples: Mapping[str, RowSamples],
        identity: list[object],
        train: Samples | None = None,
        **options: object,
    ) -> SomeCorpus:
        """Returns a `corpus_class` that holds the samples of all splits, the tokenizer and the manifest.

        samples   samples by split: train, validation and, where the data has one, test
        identity  JSON values that the hash of the corpus depends on, in addition to the tokenizer
        train     training samples that replace `samples["train"]`; None keeps those
        options   keyword arguments that only this `corpus_class` has
        """
        train = samples["train"] if train is None else train
        held_out = {split: HeldOutRows(rows) for split, rows in samples.items() if split != "train" and len(rows)}
        return corpus_class(
            name=self.name,
            config=self.manifest["config"],
            hash=digest([self.tokenizer.data_hash, *identity]),
            tokenizer=self.tokenizer,
            train=train,
            validation={self.name: held_out["validation"]},
            test={self.name: held_out["test"]} if "test" in held_out else {},
            manifest={self.name: self.manifest},
            num_tokens=train.num_tokens,
            num_bytes=train.num_bytes,
            reading=self.reading,
            **options,
        )


def choose_tokenizer(
    tokenizer: str,
    vocab_size: int | None,
    sources: list[Source],
    root: Path,
    separator: str | Sequence[str] | None = None,
) -> Tokenizer:
    """Returns the tokenizer of a corpus.

    tokenizer   `bytes`, `bpe` (trained on the training text), or a name on the Hugging Face hub, or a folder
    vocab_size  entries of `bpe`; None means 4096, and is the only value for other tokenizers
    sources     the texts on which `bpe` is trained
    root        folder of the cache
    separator   tokens around every document (see `Tokenizer.with_separator`); None for those of the tokenizer

    Raises ValueError for a vocabulary size with a tokenizer that is not trained, and for tokens that it does not have.
    """
    if tokenizer != "bpe" and vocab_size is not None:
        raise ValueError(
            f"data.vocab_size={vocab_size} applies to data.tokenizer=bpe only, not to {tokenizer}: remove it"
        )
    if tokenizer == "bytes":
        return Bytes().with_separator(separator)
    if tokenizer == "bpe":
        size = DEFAULT_VOCABULARY if vocab_size is None else vocab_size
        return train_bpe(sources, size, root).with_separator(separator)
    from kleiber.data.pretrained_tokenizer import load_pretrained

    return load_pretrained(tokenizer).with_separator(separator)


def parse_bytes(value: Quantity | None) -> int | None:
    """Returns data.max_bytes as an integer, from a number or text such as `20M`; None for None."""
    return None if value is None else max(1, round(quantity(value)))


@dataclass(frozen=True)
class Unknown:
    """The data of an imported model: a tokenizer, and no text to train on or to score.

    tokenizer  name on the Hugging Face hub, or a folder
    """

    tokenizer: str

    def prepare(self, context: int) -> TextCorpus:
        from kleiber.data.pretrained_tokenizer import load_pretrained

        tokenizer = load_pretrained(self.tokenizer)
        return TextCorpus("unknown", "", tokenizer.hash, tokenizer, train=ConcatSamples([]), validation={})
