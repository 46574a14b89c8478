"""The texts that imported weights were trained on: nobody here knows them, only the tokenizer that goes with them."""

from __future__ import annotations

from dataclasses import dataclass

from kleiber.data.corpus import TextCorpus
from kleiber.data.windows import Joined


@dataclass(frozen=True)
class Unknown:
    """A corpus without texts: nothing to train on and no domain to score, so weights from it bring no earlier task."""

    tokenizer: str

    def prepare(self, context: int) -> TextCorpus:
        from kleiber.data.pretrained import pretrained

        known = pretrained(self.tokenizer)
        return TextCorpus("unknown", "", known.hash, known, train=Joined([]), validation={})
