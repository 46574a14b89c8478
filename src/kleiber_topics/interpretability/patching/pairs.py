"""Pairs of a clean and a corrupted text of equal length, and what the model predicts after both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.evals import Ids, encode_pairs
from kleiber.nn import log_probs
from kleiber.types import Batch, Model, Row, Tokenizer

SENTENCES = ("sentence_good", "sentence_bad")
PROMPTS = ("clean", "corrupted", "answer", "wrong_answer")


@dataclass(frozen=True)
class PatchingPair:
    """Two inputs of equal length.

    clean, corrupted  token ids
    first             position of the first token that differs
    reads             positions that predict the targets
    targets           token id for each of these positions
    foil              id of the wrong answer, whose log-probability is subtracted; None without one
    """

    clean: Ids
    corrupted: Ids
    first: int
    reads: list[int]
    targets: Ids
    foil: int | None = None


def read_pairs(tokenizer: Tokenizer, rows: Sequence[Row], prefix: str, context: int) -> list[PatchingPair | None]:
    """A pair for each row of a table; None for one whose texts cannot be patched into one another.

    With the columns of minimal pairs, the targets are the tokens that both sentences have after their last difference;
    with clean, corrupted, answer and wrong_answer, they are the first token of the answer, less that of the wrong one.
    Texts must have equal numbers of tokens, at most `context`, and differ in front of the targets.
    """
    if set(SENTENCES) <= set(rows[0]):
        texts = [("", prefix + str(row[key])) for row in rows for key in SENTENCES]
        ids = [beginning + rest for beginning, rest in encode_pairs(tokenizer, texts)]
        return [pair_of_sentences(ids[i], ids[i + 1], context) for i in range(0, len(ids), 2)]
    texts = [
        (str(row[prompt]), str(row[answer]))
        for row in rows
        for prompt, answer in zip(PROMPTS[:2], PROMPTS[2:], strict=True)
    ]
    encoded = encode_pairs(tokenizer, texts)
    return [pair_of_prompts(encoded[i], encoded[i + 1], context) for i in range(0, len(encoded), 2)]


def differences(clean: Ids, corrupted: Ids) -> list[int]:
    """Positions at which the token ids differ."""
    return [place for place, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]


def pair_of_sentences(good: Ids, bad: Ids, context: int) -> PatchingPair | None:
    """The pair of two sentences, whose common ending is predicted; None without such an ending."""
    if len(good) != len(bad) or len(good) - 1 > context:
        return None
    places = differences(good, bad)
    if not places or places[-1] == len(good) - 1:
        return None
    reads = list(range(places[-1], len(good) - 1))
    return PatchingPair(good[:-1], bad[:-1], places[0], reads, [good[place + 1] for place in reads])


def pair_of_prompts(clean: tuple[Ids, Ids], corrupted: tuple[Ids, Ids], context: int) -> PatchingPair | None:
    """The pair of two prompts, after which the clean answer and the wrong one are predicted."""
    if len(clean[0]) != len(corrupted[0]) or len(clean[0]) > context or clean[1][0] == corrupted[1][0]:
        return None
    places = differences(clean[0], corrupted[0])
    if not places:
        return None
    last = len(clean[0]) - 1
    return PatchingPair(clean[0], corrupted[0], places[0], [last], [clean[1][0]], corrupted[1][0])


@dataclass(frozen=True)
class PairBatch:
    """Pairs padded to equal length, on a device.

    first    position of the first difference of each pair
    reads    True for the positions that predict targets
    targets  token id at these positions
    foils    id of the wrong answer at these positions; None where the pairs have none
    """

    clean: Batch
    corrupted: Batch
    first: Int[Tensor, "rows"]
    reads: Bool[Tensor, "rows time"]
    targets: Int[Tensor, "rows time"]
    foils: Int[Tensor, "rows time"] | None

    def values(self, model: Model, batch: Batch) -> Float[Tensor, "rows"]:
        """The sum of the log-probabilities of the targets, less those of the foils, in nats."""
        hidden = model(batch).hidden
        values = log_probs(hidden, model.head, self.targets).float()
        if self.foils is not None:
            values = values - log_probs(hidden, model.head, self.foils).float()
        return (values * self.reads).sum(1)

    @property
    def ends(self) -> Bool[Tensor, "rows time"]:
        """The positions that predict targets and have the same token in both texts."""
        return self.reads & (self.clean.tokens == self.corrupted.tokens)

    @property
    def offsets(self) -> Int[Tensor, "rows time"]:
        """Tokens since the first difference; a number below 0 in front of it, and for padding."""
        places = torch.arange(self.reads.shape[1], device=self.first.device)
        offsets = places - self.first[:, None]
        return offsets if self.clean.real is None else offsets.masked_fill(~self.clean.real, -1)


def collate(pairs: Sequence[PatchingPair], device: torch.device | str) -> PairBatch:
    """The pairs as tensors, padded on the right."""
    longest = max(len(pair.clean) for pair in pairs)
    clean, corrupted, targets, foils = (torch.zeros(len(pairs), longest, dtype=torch.int64) for _ in range(4))
    real, reads = (torch.zeros(len(pairs), longest, dtype=torch.bool) for _ in range(2))
    for row, pair in enumerate(pairs):
        clean[row, : len(pair.clean)] = torch.tensor(pair.clean)
        corrupted[row, : len(pair.clean)] = torch.tensor(pair.corrupted)
        real[row, : len(pair.clean)], reads[row, pair.reads] = True, True
        targets[row, pair.reads] = torch.tensor(pair.targets)
        foils[row, pair.reads] = pair.foil or 0
    mask = None if bool(real.all()) else real.to(device)
    has_foils = pairs[0].foil is not None
    return PairBatch(
        Batch(clean.to(device), real=mask),
        Batch(corrupted.to(device), real=mask),
        torch.tensor([pair.first for pair in pairs], device=device),
        reads.to(device),
        targets.to(device),
        foils.to(device) if has_foils else None,
    )
