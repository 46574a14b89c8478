"""A corpus, prepared from sources and a tokenizer: what a stage trains on and what it is scored on.

The hash of a corpus is that of its content (token files and tokenizer), independent of paths, dates and downloads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kleiber.config.stages import quantity
from kleiber.data.cache import Source, cache_root, digest
from kleiber.data.sampler import Joined
from kleiber.data.token_files import TokenFile, TrainWindows, ValidationWindows, token_files
from kleiber.data.tokenizers.byte_level import Bytes
from kleiber.types.contracts import HeldOut, Samples, Tokenizer

Blend = Callable[[list[Samples]], Samples]


@dataclass
class TextCorpus:
    """Prepared text. `validation` and `test` are by domain; num_tokens and num_bytes are the unique training text."""

    name: str
    config: str
    hash: str
    tokenizer: Tokenizer
    train: Samples
    validation: dict[str, HeldOut]
    test: dict[str, HeldOut] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    num_bytes: int = 0


def end_to_end(windows: list[Samples]) -> Samples:
    """All samples of all sources, each once an epoch."""
    return windows[0] if len(windows) == 1 else Joined(windows)


def prepare(
    name: str,
    config: str,
    sources: list[Source],
    tokenizer: str,
    vocab_size: int | None,
    context: int,
    cache: Path | None,
    blend: Blend = end_to_end,
) -> TextCorpus:
    """Tokenise what is not in the cache, and cut it into samples of `context` + 1 tokens."""
    if context < 1:
        raise ValueError(f"model.context={context}: a window needs at least one token")
    root = cache_root(cache)
    chosen = choose_tokenizer(tokenizer, vocab_size, sources, root)
    read = {source.name: token_files(source, chosen, root) for source in sources}
    files = {domain: splits for domain, (splits, _) in read.items()}
    windows: list[Samples] = [TrainWindows(splits["train"], context, domain) for domain, splits in files.items()]
    unique = [splits["train"] for splits in files.values()]
    return TextCorpus(
        name=name,
        config=config,
        hash=digest([chosen.hash, [[file.sha256 for file in splits.values()] for splits in files.values()]]),
        tokenizer=chosen,
        train=blend(windows),
        validation=_scored(files, "validation", context, chosen),
        test=_scored(files, "test", context, chosen),
        manifest={domain: manifest for domain, (_, manifest) in read.items()},
        num_tokens=sum(len(file.ids) for file in unique),
        num_bytes=sum(file.num_bytes for file in unique),
    )


def _scored(
    files: dict[str, dict[str, TokenFile]], split: str, context: int, tokenizer: Tokenizer
) -> dict[str, HeldOut]:
    scored: dict[str, HeldOut] = {
        domain: ValidationWindows(splits[split], context, tokenizer) for domain, splits in files.items()
    }
    return {domain: windows for domain, windows in scored.items() if len(windows)}


def choose_tokenizer(tokenizer: str, vocab_size: int | None, sources: list[Source], root: Path) -> Tokenizer:
    """`bytes`, `bpe` (trained on the training text, 4096 entries unless told otherwise), or a hub name or folder.

    Raises ValueError for a vocabulary size that the tokenizer would not use.
    """
    if tokenizer != "bpe" and vocab_size is not None:
        raise ValueError(f"data.vocab_size={vocab_size} means nothing to data.tokenizer={tokenizer}: leave it out")
    if tokenizer == "bytes":
        return Bytes()
    if tokenizer == "bpe":
        from kleiber.data.tokenizers.byte_level import trained

        return trained(sources, 4096 if vocab_size is None else vocab_size, root)
    from kleiber.data.tokenizers.pretrained import pretrained

    return pretrained(tokenizer)


def as_bytes(value: int | float | str | None, key: str = "data.max_bytes") -> int | None:
    """A number of bytes, written as a number or as `20M`; None stays None."""
    if value is None:
        return None
    try:
        return max(1, round(quantity(value)))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


@dataclass(frozen=True)
class Unknown:
    """A corpus without texts: nothing to train on and no domain to score, so weights from it bring no earlier task."""

    tokenizer: str

    def prepare(self, context: int) -> TextCorpus:
        from kleiber.data.tokenizers.pretrained import pretrained

        tokenizer = pretrained(self.tokenizer)
        return TextCorpus("unknown", "", tokenizer.hash, tokenizer, train=Joined([]), validation={})
