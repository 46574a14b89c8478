"""The likelihoods by which the texts of items are compared, under causal and masked models."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from kleiber.evals import Ids, Subject, encode_pairs, log_likelihoods, pass_tokens, pseudo_log_likelihoods
from kleiber_topics.bias.items import Item

ItemScores = Float[np.ndarray, "items texts"]  # of the stereotype, of its counterpart and, in StereoSet, of no sense


def item_scores(subject: Subject, items: Sequence[Item], label: str) -> ItemScores:
    """A score of each text of each item, of which the larger one is that of the more likely text.

    StereoSet compares means over tokens, so that a longer word has no disadvantage; the others compare whole texts,
    in nats. Items of one data set have the same number of texts.
    """
    if items[0].unrelated is None:
        return pair_scores(subject, items, label)
    return triple_scores(subject, items, label)


def pair_scores(subject: Subject, items: Sequence[Item], label: str) -> ItemScores:
    """Log-likelihoods of both texts of each item in nats.

    Causal models: log p of the whole text. Masked models: the pseudo-log-likelihood of the tokens that both texts
    share, one hidden at a time, given all others (Nangia et al. 2020, arXiv:2010.00133, eq. 1); the tokens in which the
    texts differ are read but not scored, since their own frequencies are no bias.
    """
    texts = [text for item in items for text in (item.stereotype, item.other)]
    tokens = pass_tokens(subject.model, subject.rows)
    if subject.model.causal:
        return causal_log_probs(subject, texts, label)[0].reshape(-1, 2)
    ids = encode(subject, texts)
    positions = [shared for at in range(0, len(ids), 2) for shared in shared_positions(ids[at], ids[at + 1])]
    scores = pseudo_log_likelihoods(subject.model, ids, subject.tokenizer, tokens, label, positions)
    return scores.reshape(-1, 2)


def triple_scores(subject: Subject, items: Sequence[Item], label: str) -> ItemScores:
    """Scores of the three texts of each item, as the script of StereoSet computes them (Nadeem et al. 2021).

    Causal models: mean log p of the tokens of the text, in nats. Masked models: mean probability of the tokens of the
    word in the blank, from the first to the last, each given the context and the tokens of the word before it.
    """
    texts = [text for item in items for text in (item.stereotype, item.other, str(item.unrelated))]
    if subject.model.causal:
        log_probs, lengths = causal_log_probs(subject, texts, label)
        return (log_probs / lengths).reshape(-1, 3)
    rows: list[Ids] = []
    positions: list[list[int]] = []
    counts: list[int] = []
    for item in items:
        assert item.blank is not None
        for text in (item.stereotype, item.other, str(item.unrelated)):
            before, blank, after = encode(subject, split_at_blank(text, item.blank))
            counts.append(len(blank))
            for length in range(1, len(blank) + 1):
                rows.append([*before, *blank[:length], *after])
                positions.append([len(before) + length - 1])
    tokens = pass_tokens(subject.model, subject.rows)
    probs = np.exp(pseudo_log_likelihoods(subject.model, rows, subject.tokenizer, tokens, label, positions))
    means = [part.mean() for part in np.split(probs, np.cumsum(counts)[:-1])]
    return np.array(means).reshape(-1, 3)


def causal_log_probs(
    subject: Subject, texts: Sequence[str], label: str
) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """log p of each text after the begin token, in nats, and its length in tokens."""
    pairs = encode_pairs(subject.tokenizer, [("", text) for text in texts])
    tokens = pass_tokens(subject.model, subject.rows)
    scores = log_likelihoods(subject.model, [[pair] for pair in pairs], tokens, label)
    return scores.log_probs, np.array([len(ids) for _, ids in pairs], dtype=np.float64)


def encode(subject: Subject, texts: Sequence[str]) -> list[Ids]:
    """Token ids of texts."""
    return [ids.tolist() for ids in subject.tokenizer.encode_many(list(texts))]


def split_at_blank(text: str, blank: tuple[str, str]) -> list[str]:
    """A text as what precedes the word in the blank, the word with the space in front of it, and what follows it."""
    before, after = blank
    if not (text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)):
        # Contexts and sentences may differ in case or spaces; the word is what differs.
        match = difflib.SequenceMatcher(None, before + after, text, autojunk=False).get_opcodes()
        inserted = [(start, end) for kind, _, _, start, end in match if kind != "equal" and end > start]
        start, end = (inserted[0][0], inserted[-1][1]) if inserted else (0, len(text))
        before, inserted_text, after = text[:start], text[start:end], text[end:]
    else:
        inserted_text = text[len(before) : len(text) - len(after)]
    space = before[len(before.rstrip()) :]
    return [before.rstrip(), space + inserted_text, after]


def shared_positions(first: Ids, second: Ids) -> tuple[list[int], list[int]]:
    """Positions of the tokens that two texts share, in the first and in the second one.

    The blocks are those of `difflib.SequenceMatcher`, as in the script of CrowS-Pairs.
    """
    blocks = difflib.SequenceMatcher(None, first, second).get_matching_blocks()
    return (
        [block.a + at for block in blocks for at in range(block.size)],
        [block.b + at for block in blocks for at in range(block.size)],
    )
