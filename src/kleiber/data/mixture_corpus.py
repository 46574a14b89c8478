"""Data sets made of others: a mixture by fractions of tokens, and a subset that is read repeatedly.

A repeated subset is spread evenly over the data set. The beginning of a text alone is less varied, and its loss would
be higher even without repetition. Validation is that of the whole data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_args, runtime_checkable

from kleiber.config.stages import Quantity, quantity
from kleiber.data.builtin import Builtin, Domain
from kleiber.data.cache import digest
from kleiber.data.corpus import TextCorpus, parse_bytes, prepare
from kleiber.data.mixture import Mixture, SpreadSamples
from kleiber.data.named import find_named, names
from kleiber.data.sources import Source
from kleiber.data.text import Text, with_reading
from kleiber.types import Share, VocabSize
from kleiber.types.access import DataPath
from kleiber.types.contracts import Samples


@dataclass(frozen=True)
class MixtureCorpus:
    """A mixture of texts by fractions of tokens.

    parts      fraction of each part by name: builtin/docs, builtin/code, builtin/occupations (without bias), wikitext,
               tinystories, another one that an extension offers, or any data.path; null: 0.9 of builtin/docs and 0.1 of
               builtin/code
    tokenizer  of all parts; bpe is trained on all of them
    max_bytes  at most that much text of each part
    separator  `bos`, `eos` or a special token of the tokenizer, in front of every document; [A, B]: B after it; `none`;
               null or `auto`: the tokens that the tokenizer puts around a text
    """

    parts: Mapping[DataPath, Share] | None = None
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    max_bytes: Quantity | None = None
    separator: str | list[str] | None = None

    def fractions(self) -> dict[str, float]:
        """Returns the fraction of each part. The default is here because Hydra would merge a mapping in YAML."""
        return {"builtin/docs": 0.9, "builtin/code": 0.1} if self.parts is None else dict(self.parts)

    def sources(self) -> list[Source]:
        """Returns the source of each part. Raises ValueError for two parts of the same name."""
        sources = [self._source(name) for name in self.fractions()]
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            raise ValueError(f"data.parts: the parts must have different names: {', '.join(names)}")
        return sources

    def _source(self, part: str) -> Source:
        if part in (f"builtin/{domain}" for domain in get_args(Domain) if domain != "all"):
            domain: Domain = "docs" if part == "builtin/docs" else "code"
            return Builtin(domain, self.tokenizer, None, self.max_bytes).sources()[0]
        named = find_named(part)
        if named is not None:
            return named.text(parse_bytes(self.max_bytes))
        if part == "builtin" or part.startswith("builtin/"):
            raise ValueError(f"data.parts: {part} must be {', '.join(('builtin/docs', 'builtin/code', *names()))}")
        if part == "wikitext":
            return Text("Salesforce/wikitext", "wikitext-2-v1", rows="stream", max_bytes=self.max_bytes).source()
        path = "roneneldan/TinyStories" if part == "tinystories" else part
        return Text(path, max_bytes=self.max_bytes).source()

    def combine(self, windows: list[Samples]) -> Samples:
        """The mixture of the samples of the parts."""
        return Mixture(windows, list(self.fractions().values()))

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Encodes the text that is not in the cache. Raises ValueError for unknown parts and invalid fractions."""
        fractions = self.fractions()
        if not fractions:
            raise ValueError("data.parts={} must have at least one part, such as {builtin/docs:0.9,builtin/code:0.1}")
        config = "+".join(f"{name}:{fraction:g}" for name, fraction in fractions.items())
        sources = self.sources()
        settings = (self.tokenizer, self.vocab_size, context, cache)
        corpus = prepare("mixture", config, sources, *settings, combine=self.combine, separator=self.separator)
        return with_reading(sources, corpus)


@runtime_checkable
class TextData(Protocol):
    """Settings of a data set of text, such as Builtin and Text: a dataclass that prepares a corpus."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus: ...


@dataclass(frozen=True)
class Repeated:
    """A subset of the training text of `data`; a budget of more tokens reads it again, in the same windows.

    unique     training tokens of the subset; null: all of them
    max_bytes  replaces that of `data`; null: leaves it as it is
    """

    data: TextData
    unique: Quantity | None = None
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Prepares `data` and takes the subset. Raises ValueError when `data` has fewer than `unique` tokens."""
        data = self.data if self.max_bytes is None else replace(self.data, max_bytes=self.max_bytes)
        corpus = data.prepare(context, cache)
        if self.unique is None:
            return corpus
        count = max(1, round(quantity(self.unique)) // context)
        if count > len(corpus.train):
            tokens = f"{corpus.train.num_tokens:,} training tokens of {corpus.name}"
            raise ValueError(f"data.unique={self.unique} must be at most the {tokens}")
        subset, name = SpreadSamples(corpus.train, count), digest([corpus.hash, "spread", count * context])
        return replace(corpus, train=subset, config=f"{corpus.config}, {count} spread", hash=name)
