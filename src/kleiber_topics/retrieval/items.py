"""What is evaluated: windows of text, or prompts with answers; and the scores of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.data import DataSet
from kleiber.evals import (
    Subject,
    TextLosses,
    bytes_per_target,
    encode_pairs,
    mean_score,
    proportion_score,
    resampled_ratios,
    resampled_score,
    share_difference_score,
)
from kleiber.types import Row, Score, Scores, Tokenizer
from kleiber_topics.retrieval.datastore import cut_windows
from kleiber_topics.retrieval.in_context import Piece, answer_pieces, text_pieces
from kleiber_topics.retrieval.scoring import ScoredRow, Targets

TOKENS = 16_384  # of a text, unless the command or the evaluation sets a number
COLUMNS = (("prompt", "answer"), ("question", "answer"))


def answer_columns(data: DataSet) -> tuple[str, str] | None:
    """The columns of the prompt and of its answer; None for text."""
    return next((columns for columns in COLUMNS if set(columns) <= set(data.columns)), None)


@dataclass(frozen=True)
class Items:
    """The evaluated samples of a text, or the rows of a table.

    rows    token ids with their targets; the targets of a table are its answers
    pieces  of rows, which are scored together with retrieved text
    count   number of samples or of rows of the table
    token_bytes  of a text: bytes of each token of the vocabulary, scaled to those that the text has; None where a loss
                 per byte has no meaning, and of a table
    """

    name: str
    rows: Sequence[ScoredRow]
    pieces: Sequence[Piece]
    count: int
    is_table: bool
    token_bytes: Float[np.ndarray, "vocab"] | None = None


def read_items(
    subject: Subject, data: DataSet, stride: int, query_tokens: int, retrieved: int = 0, tokens: int = TOKENS
) -> Items:
    """The items of a data set.

    retrieved  most tokens of retrieved text that stand in front of an answer
    tokens     most targets of a text

    Raises ValueError for an answer that does not fit into the context behind retrieved text, and for no items.
    """
    columns = answer_columns(data)
    if columns is None:
        items = text_items(subject, data, stride, query_tokens, tokens)
    else:
        items = table_items(subject, data, columns, retrieved)
    if items.count < 2 or not items.pieces:
        raise ValueError(f"--evals retrieval needs two samples or rows of {data.name}, which has {items.count}")
    return items


def text_items(subject: Subject, data: DataSet, stride: int, query_tokens: int, tokens: int) -> Items:
    """The samples of a text."""
    held_out = data.samples().first(tokens)
    rows = [
        ScoredRow(window.ids, scored, window.number)
        for start in range(0, len(held_out), subject.rows)
        for index in [np.arange(start, min(start + subject.rows, len(held_out)))]
        for window, scored in cut_windows(held_out.gather(index), index.tolist())
    ]
    size, sizes = bytes_per_target(subject.objective_of(data.name), held_out), None
    if size is not None:
        counted = subject.tokenizer.token_bytes[np.concatenate([row.ids[row.scored] for row in rows])]
        sizes = subject.tokenizer.token_bytes * (size / counted.mean())
    return Items(data.name, rows, text_pieces(rows, stride, query_tokens), len(held_out), False, sizes)


def table_items(subject: Subject, data: DataSet, columns: tuple[str, str], retrieved: int) -> Items:
    """The rows of a table. The answer follows its prompt after a space, unless one of them has white space there."""
    pairs = [prompt_and_answer(row, columns) for row in data.rows(subject.limit)]
    context, rows = subject.model.context, []
    for number, (before, answer) in enumerate(encode_pairs(subject.tokenizer, pairs)):
        if retrieved + len(answer) > context:
            behind = f" has room for behind {retrieved} tokens of retrieved text" if retrieved else ""
            fix = "set evals.retrieval.chunks or evals.retrieval.chunk_tokens lower, or " if retrieved else ""
            raise ValueError(
                f"{data.name}: the answer in row {number} has {len(answer)} tokens, more than model.context={context}"
                f"{behind}: {fix}shorten the answer"
            )
        ids = np.array((before + answer)[-context - 1 :], np.int64)
        rows.append(ScoredRow(ids, np.arange(len(ids)) >= len(ids) - len(answer), number))
    return Items(data.name, rows, answer_pieces(rows), len(rows), True)


def prompt_and_answer(row: Row, columns: tuple[str, str]) -> tuple[str, str]:
    prompt, answer = (str(row[column]) for column in columns)
    joined = prompt[-1:].isspace() or answer[:1].isspace() or not prompt
    return prompt, answer if joined else f" {answer}"


def scores_of(
    items: Items,
    targets: Targets,
    log_probs: Tensor,
    greedy: Tensor | None,
    reported: Bool[np.ndarray, "tokens"],
    plain: Targets | None = None,
) -> Scores:
    """Scores of the reported targets.

    loss, bits_per_byte      of a text
    exact_match, log_prob    of a table: whether greedy decoding gives the whole answer, and its log-probability
    difference               of the loss, or of exact_match, from `plain`; paired by item

    log_probs, greedy  of all targets, with retrieval
    plain              the targets without retrieval; None for no difference
    """
    numbers = targets.items[reported]
    nats, counts = by_item(numbers, -log_probs.numpy()[reported]), by_item(numbers, np.ones(len(numbers)))
    kept = counts > 0
    if not items.is_table:
        losses = TextLosses(nats[kept].tolist(), counts[kept].tolist())
        scores = {"loss": losses.score()}
        if items.token_bytes is not None:
            sizes = by_item(numbers, items.token_bytes[targets.ids.numpy()[reported]])
            bits = resampled_ratios(nats[kept] / math.log(2), sizes[kept])
            scores["bits_per_byte"] = resampled_score(bits, losses.num_targets, int(kept.sum()))
        if plain is not None:
            change = by_item(numbers, (plain.log_probs - log_probs).numpy()[reported])
            scores["difference"] = TextLosses(change[kept].tolist(), counts[kept].tolist()).score()
        return scores
    assert greedy is not None
    right = all_right(numbers, greedy.numpy()[reported])[kept]
    scores = {"exact_match": proportion_score(right), "log_prob": mean_score(-nats[kept])}
    if plain is not None:
        before = all_right(numbers, plain.greedy.numpy()[reported])[kept]
        scores["difference"] = share_difference_score(right - before)
    return scores


def by_item(items: Int[np.ndarray, "tokens"], values: np.ndarray) -> np.ndarray:
    """Sums of values by item."""
    return np.bincount(items, values)


def all_right(items: Int[np.ndarray, "tokens"], right: Bool[np.ndarray, "tokens"]) -> np.ndarray:
    """1 for each item whose targets are all right, else 0."""
    return (np.bincount(items, ~right) == 0).astype(np.float64)


def share_with_answer(
    items: Items, texts: Sequence[Int[np.ndarray, "_"]], numbers: Bool[np.ndarray, "rows"], tokenizer: Tokenizer
) -> Score:
    """Share of the rows of a table whose retrieved text contains the answer, whatever white space is around it.

    Text is compared, not tokens: an answer has other tokens at the start of a line than after a space.
    """
    hits = []
    for piece, text in zip(items.pieces, texts, strict=True):
        row = items.rows[piece.row]
        answer = tokenizer.decode(row.ids[row.scored].tolist()).strip()
        hits.append(bool(answer) and answer in tokenizer.decode(text.tolist()))
    return proportion_score(np.array(hits)[numbers])
