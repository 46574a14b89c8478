"""Log-probabilities of texts after contexts, of many at a time, for evaluations that compare texts.

The conventions are those of lm-eval: a context begins with the tokenizer's begin token, unless that is the end-of-text
token; an empty context is the begin token alone; the space between both belongs to the text; a row that is too long
loses the beginning of its context. What several texts of an item have in common is computed once, forward passes have
a number of tokens rather than of rows, and logits are computed at the scored tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.models.generation import left_padded
from kleiber.records.progress import Activity, activity
from kleiber.types.batch import Batch
from kleiber.types.model import DecodingCache, Head, Model, device_of, evaluation_mode
from kleiber.types.tokenizer import Tokenizer

LOGITS = 1 << 22  # logits in memory at once
PASS = 128  # tokens that take as long as a forward pass of a small model takes beside its tokens
CPU_TOKENS = 2048  # most tokens of a forward pass on a CPU, whose caches hold no more
WORTHWHILE = 0.1  # share of the tokens that a common beginning must spare to be computed apart

Ids = list[int]
Pair = tuple[Ids, Ids]  # context and text


def pass_tokens(model: Model, rows: int) -> int:
    """Most tokens of a forward pass, from the rows of full context that fit into memory."""
    on_cpu = device_of(model).type == "cpu"
    return min(rows * model.context, CPU_TOKENS) if on_cpu else rows * model.context


@dataclass(frozen=True)
class Likelihoods:
    """Scores of texts.

    log_probs  log p(text | context) in nats
    greedy     whether each token of the text is the most probable one
    """

    log_probs: Float[np.ndarray, "rows"]
    greedy: Bool[np.ndarray, "rows"]


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Contexts and texts as token ids. The ids of a text are those that it has after its context.

    Raises ValueError for a text without tokens.
    """
    begin = tokenizer.encode_prompt("")
    stripped = [context.rstrip() for context, _ in pairs]
    wholes = [context + text for context, text in pairs]
    distinct = list(dict.fromkeys([*stripped, *wholes]))
    encoded = dict(zip(distinct, (ids.tolist() for ids in tokenizer.encode_many(distinct)), strict=True))
    ids = []
    for context, whole, (_, text) in zip(stripped, wholes, pairs, strict=True):
        beginning = encoded[context] if context else []
        ids.append((begin + beginning or [tokenizer.begin], encoded[whole][len(beginning) :]))
        if not ids[-1][1]:
            raise ValueError(f"the tokenizer {tokenizer.name} encodes {text!r} after {context[-40:]!r} as no tokens")
    return ids


@dataclass(frozen=True)
class _Piece:
    """A row of token ids, of which the last `targets` are scored, for the text of number `text`."""

    ids: Ids
    targets: int
    text: int

    @property
    def inputs(self) -> Ids:
        return self.ids[:-1]

    @property
    def first(self) -> int:
        """Position of the first target."""
        return len(self.ids) - self.targets


@dataclass(frozen=True)
class _Group:
    """Rows whose first `length` inputs are the same: a single row and 0, or several rows.

    longest_rest  most inputs of a row after those
    """

    pieces: list[_Piece]
    length: int
    longest_rest: int


@dataclass(frozen=True)
class _Targets:
    """The tokens `start` to `stop` of a piece as targets; that at position p has the hidden state (row, p + shift)."""

    row: int
    shift: int
    piece: _Piece
    start: int
    stop: int


@torch.compiler.set_stance("force_eager")  # a compiled model would be compiled again for every shape
@torch.inference_mode()
def log_likelihoods(model: Model, items: Sequence[Sequence[Pair]], tokens: int, label: str) -> Likelihoods:
    """Scores the texts of all items, in their order, one item after another.

    items   pairs of token ids that may have their beginnings in common, such as the endings of one question
    tokens  most tokens of a forward pass; a row that has more is a pass of its own
    label   what the progress line shows

    A text that is longer than model.context is scored in pieces of half a context, each after what precedes it.
    """
    alone: list[_Piece] = []
    groups: list[_Group] = []
    count = 0
    for item in items:
        pieces = [piece for text, pair in enumerate(item, count) for piece in _pieces(pair, text, model.context)]
        group = None if model.prefix else _share(pieces)  # a prompt in both directions is no beginning of others
        if group is None:
            alone += pieces
        else:
            groups.append(group)
        count += len(item)
    groups.sort(key=lambda group: -group.length)
    with evaluation_mode(model):
        total = len(alone) + sum(len(group.pieces) for group in groups)
        with activity(label, total, "texts") as work:
            scorer = _Scorer(model, count, tokens, work)
            scorer.score([(0, piece, 0) for piece in alone], None)
            for start, end in _cut(groups, tokens, model.context):
                scorer.score_shared(groups[start:end])
    return Likelihoods(scorer.log_probs, scorer.greedy)


def _pieces(pair: Pair, text: int, context: int) -> list[_Piece]:
    beginning, targets = pair
    size = len(targets) if len(targets) <= context else max(1, context // 2)
    whole, pieces = beginning + targets, []
    for start in range(0, len(targets), size):
        end = len(beginning) + min(start + size, len(targets))
        pieces.append(_Piece(whole[max(0, end - context - 1) : end], end - len(beginning) - start, text))
    return pieces


def _share(pieces: list[_Piece]) -> _Group | None:
    """The pieces as a group if it is worthwhile to compute their common beginning once."""
    rows = [piece.inputs for piece in pieces]
    first, last = min(rows), max(rows)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if length * (len(rows) - 1) < WORTHWHILE * sum(map(len, rows)) or len(rows) == 1:
        return None
    return _Group(pieces, length, max(map(len, rows)) - length)


def _cut(groups: Sequence[_Group], tokens: int, context: int) -> Iterator[tuple[int, int]]:
    """Ranges of groups whose common beginnings are computed together; groups are sorted, the longest one first.

    The rest of each row must fit into the context behind the longest beginning of its range.
    """
    start = 0
    for begin, end in cut_by_length([group.length for group in groups], tokens):
        start = begin
        for i in range(begin, end):
            if groups[start].length + groups[i].longest_rest > context:
                yield start, i
                start = i
        yield start, end


def cut_by_length(lengths: Sequence[int], tokens: int) -> Iterator[tuple[int, int]]:
    """Cuts sorted rows, the longest one first, into ranges of at most `tokens` tokens with their padding.

    A range ends where more padding would cost more than another forward pass.
    """
    start, padding = 0, 0
    for i, length in enumerate(lengths):
        longest = lengths[start]
        padding += longest - length
        if i > start and ((i - start + 1) * longest > tokens or padding > PASS):
            yield start, i
            start, padding = i, 0
    if lengths:
        yield start, len(lengths)


class _Scorer:
    """Adds up log-probabilities of texts over forward passes of a model."""

    def __init__(self, model: Model, texts: int, tokens: int, work: Activity) -> None:
        self.model, self.device = model, device_of(model)
        self.tokens, self.work = tokens, work
        self.log_probs, self.greedy = np.zeros(texts), np.ones(texts, dtype=bool)

    def score_shared(self, groups: Sequence[_Group]) -> None:
        """Scores the pieces of groups: their common beginnings in one pass, then what follows in each piece."""
        ids, real = (tensor.to(self.device) for tensor in left_padded([g.pieces[0].ids[: g.length] for g in groups]))
        caches = self.model.new_caches(ids.shape[1])
        hidden = self.model(Batch(ids, real=None if bool(real.all()) else real), caches).hidden
        rows = [(row, piece, group.length) for row, group in enumerate(groups) for piece in group.pieces]
        beginnings = [
            _Targets(row, ids.shape[1] - length - 1, piece, piece.first, min(length + 1, len(piece.ids)))
            for row, piece, length in rows
        ]
        self._add(hidden, beginnings)
        rest = [row for row in rows if len(row[1].inputs) > row[2]]
        self.work.done += len(rows) - len(rest)
        self.score(rest, caches)

    def score(self, rows: Sequence[tuple[int, _Piece, int]], caches: DecodingCache | None) -> None:
        """Scores pieces from a position on; those with the same inputs, which differ in their last token, share a row.

        rows    row of the cache, piece and position
        caches  what precedes the position; None where it is 0
        """
        sharing: dict[tuple[int, int, tuple[int, ...], int], list[_Piece]] = {}
        for row, piece, start in rows:
            first = piece.first if self.model.prefix else 0  # up to where both directions are read
            sharing.setdefault((row, start, tuple(piece.inputs[start:]), first), []).append(piece)
        distinct = sorted(sharing.items(), key=lambda entry: -len(entry[0][2]))
        lengths = [len(inputs) for (_, _, inputs, _), _ in distinct]
        for begin, end in cut_by_length(lengths, self.tokens):
            chosen, longest = distinct[begin:end], lengths[begin]
            padded = [[*inputs, *[0] * (longest - len(inputs))] for (_, _, inputs, _), _ in chosen]
            ids = torch.tensor(padded, device=self.device)
            real = None
            if lengths[end - 1] < longest:
                ends = torch.tensor(lengths[begin:end], device=self.device)
                real = torch.arange(longest, device=self.device) < ends[:, None]
            prefix = None
            if self.model.prefix:
                firsts = torch.tensor([[first] for (_, _, _, first), _ in chosen], device=self.device)
                prefix = torch.arange(longest, device=self.device) < firsts
            cache = None
            if caches is not None:
                numbers = torch.tensor([row for (row, _, _, _), _ in chosen], device=self.device)
                cache = caches.select(numbers, len(caches) + longest)
            hidden = self.model(Batch(ids, real=real, prefix=prefix), cache).hidden
            self._add(
                hidden,
                [
                    _Targets(row, -start - 1, piece, max(piece.first, start + 1), len(piece.ids))
                    for row, ((_, start, _, _), pieces) in enumerate(chosen)
                    for piece in pieces
                ],
            )
            self.work.done += sum(len(pieces) for _, pieces in chosen)

    def _add(self, hidden: Float[Tensor, "rows time dim"], targets: Sequence[_Targets]) -> None:
        """Adds log p of the targets to their texts. What is the same in several texts is computed once."""
        counts = [max(0, t.stop - t.start) for t in targets]
        if not sum(counts):
            return
        texts = np.repeat([t.piece.text for t in targets], counts)
        rows = np.repeat([t.row for t in targets], counts)
        at = np.concatenate([np.arange(t.start, t.stop) + t.shift for t in targets])
        ids = np.concatenate([np.array(t.piece.ids[t.start : t.stop], dtype=np.int64) for t in targets])
        keys = (rows * hidden.shape[1] + at) * self.model.vocab_size + ids
        distinct, place = np.unique(keys, return_inverse=True)
        states, ids = np.divmod(distinct, self.model.vocab_size)
        chosen = hidden.flatten(0, 1)[torch.from_numpy(states).to(self.device)]
        log_probs, greedy = target_scores(chosen, self.model.head, torch.from_numpy(ids).to(self.device))
        np.add.at(self.log_probs, texts, log_probs.double().cpu().numpy()[place])
        np.logical_and.at(self.greedy, texts, greedy.cpu().numpy()[place])


def target_scores(
    hidden: Float[Tensor, "rows dim"], head: Head, targets: Int[Tensor, "rows"]
) -> tuple[Float[Tensor, "rows"], Bool[Tensor, "rows"]]:
    """log p of the target of each row in nats, in fp32, and whether it is the most probable token."""
    log_probs, greedy, size = [], [], max(1, LOGITS // head.weight.shape[0])
    for states, ids in zip(hidden.split(size), targets.split(size), strict=True):
        logits = head(states).float()
        log_probs.append(-F.cross_entropy(logits, ids, reduction="none"))
        greedy.append(logits.argmax(-1) == ids)
    return torch.cat(log_probs), torch.cat(greedy)
