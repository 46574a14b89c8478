"""Generates text and measures its repetition and diversity beside those of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from kleiber.data import DataSet, permutation
from kleiber.evals import Evaluation, Results, Subject, mean_score, proportion_score
from kleiber.models import generate
from kleiber.records import activity
from kleiber.types import (
    Batch,
    Count,
    DataPath,
    Json,
    Metric,
    Metrics,
    Model,
    Natural,
    Score,
    Scores,
    Seed,
    Tokenizer,
    evaluation_mode,
)
from kleiber_topics.collapse.divergence import mauve, unigram_kl
from kleiber_topics.collapse.repetition import (
    Units,
    distinct,
    ends_in_loop,
    longest_repeat,
    repetition,
    self_bleu,
)
from kleiber_topics.collapse.texts import KINDS, Texts, Tokens, counts_words, decode, mark_repeats, read_texts, split

if TYPE_CHECKING:
    from altair import TopLevelMixin

ROWS = 64  # at least, in a forward pass
LONGEST = 128  # tokens of a continuation, unless the evaluation sets its length
CORPUS_ROWS = 2000  # held-out samples whose unigrams are those of the corpus
LEAST_ROWS = 4  # held-out samples: two of each set
LEAST_LENGTH = 8  # tokens of a continuation
LEAST_TOKEN_LOOP = 32  # tokens of a loop of tokens, where units are words: an indentation is shorter


class Degeneration(Evaluation):
    """Repetition, diversity and mode collapse of generated text.

    Held-out samples are split into a prompt and its continuation by a human. The model continues the same prompts
    greedily and at temperature 1. Each metric is computed for `greedy/`, `sampled/` and `human/`, the last of which is
    what a perfect model would reach at this number and length of samples:

    distinct_1 ... distinct_4  different n-grams over all n-grams of all samples
    rep_2, rep_3, seq_rep_4    share of the n-grams of a sample that occurred before in it
    longest_repeat             units of the longest span that occurs twice in a sample
    loop_rate                  share of samples that end in a period of at most 16 units, or tokens
    self_bleu_4                BLEU of a sample with all others as references, from 0 to 1
    entropy                    of the model's next-token distribution along the text, in nats
    unigram_kl                 KL divergence of the unigrams from those of held-out text, in nats per unit
    mauve                      area under the divergence frontier to other held-out text, from 0 to 1

    Units are tokens; for bytes they are words and punctuation marks.

    samples        number of texts of each kind; fewer where the data has not twice as many samples
    prompt_tokens  of each prompt
    length         tokens of a continuation; null: what is left of a row of model.context, at most 128
    shown          samples of each kind on the page
    seed           of the choice of prompts and of sampling
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        "{kind}/distinct_{n}": Metric("share of distinct {n}-grams in {kind} text", "higher"),
        "{kind}/rep_{n}": Metric("share of repeated {n}-grams in {kind} text", "lower"),
        "{kind}/seq_rep_{n}": Metric("share of repeated {n}-grams of a sample in {kind} text", "lower"),
        "{kind}/longest_repeat": Metric("longest repeated span of {kind} text", "lower", "units"),
        "{kind}/loop_rate": Metric("share of samples that end in a loop in {kind} text", "lower"),
        "{kind}/self_bleu_{n}": Metric("self-BLEU-{n} of {kind} text", "lower"),
        "{kind}/entropy": Metric("entropy of the next token in {kind} text", "none", "nats"),
        "{kind}/unigram_kl": Metric("divergence of the unigrams of {kind} text", "lower", "nats per unit"),
        "{kind}/mauve": Metric("MAUVE of {kind} text", "higher"),
    }

    def __init__(
        self,
        samples: Annotated[int, Ge(2), Le(100_000)] = 100,
        prompt_tokens: Count = 32,
        length: Annotated[int, Ge(LEAST_LENGTH), Le(1 << 20)] | None = None,
        shown: Natural = 4,
        seed: Seed = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.samples, self.prompt_tokens, self.length = samples, prompt_tokens, length
        self.shown, self.seed, self.data = shown, seed, data

    def evaluate(self, subject: Subject) -> Results:
        """Scores each data set. Raises ValueError for data whose samples are too short or too few."""
        scores: dict[str, Scores] = {}
        shown: Json = {}
        for data in subject.data:
            length = self._length(subject.model.context)
            rows = self._rows(subject, data, length)
            count = min(self.samples, len(rows) // 2)
            if subject.tokens is not None:
                count = min(count, max(2, subject.tokens // length))
            texts = self._texts(subject, rows[:count], length)
            other = [decode(subject.tokenizer, row[self.prompt_tokens :]) for row in rows[count : 2 * count]]
            corpus = [split(subject.tokenizer, row[self.prompt_tokens :]) for row in rows[count:]]
            scores[data.name] = {
                f"{kind}/{metric}": score
                for kind in KINDS
                for metric, score in self._measure(subject, texts[kind], corpus, other).items()
            }
            shown[data.name] = {kind: self._excerpts(subject.tokenizer, texts[kind]) for kind in KINDS}
        unit = "word" if counts_words(subject.tokenizer) else "token"
        return Results(scores, {"unit": unit, "samples": shown})

    def _length(self, context: int) -> int:
        row = context + 1  # tokens of a held-out sample
        length = min(LONGEST, row - self.prompt_tokens) if self.length is None else self.length
        if length < LEAST_LENGTH or self.prompt_tokens + length > row:
            raise ValueError(
                f"evals.degeneration.prompt_tokens={self.prompt_tokens} and length={length} must fit into the {row} "
                f"tokens of a held-out sample, with a length of at least {LEAST_LENGTH}: lower them, or evaluate a "
                "model with a larger context"
            )
        return length

    def _rows(self, subject: Subject, data: DataSet, length: int) -> Tokens:
        """Held-out samples in a random order, cut to prompt and continuation; those that are shorter are left out."""
        held_out, width = data.samples(), self.prompt_tokens + length
        order, parts, count = permutation(len(held_out), self.seed), [], 0
        for start in range(0, len(order), 256):
            batch = held_out.gather(order[start : start + 256])
            if batch.tokens.shape[1] >= width:
                tokens = batch.tokens[:, :width]
                parts.append(tokens if batch.real is None else tokens[batch.real[:, :width].all(1)])
                count += len(parts[-1])
            if count >= max(2 * self.samples, CORPUS_ROWS):
                break
        if count < LEAST_ROWS:
            raise ValueError(
                f"evals.degeneration needs {LEAST_ROWS} held-out samples of at least {width} tokens, and {data.name} "
                f"has {count}: lower evals.degeneration.prompt_tokens or length, or use more text"
            )
        return torch.cat(parts)

    def _texts(self, subject: Subject, rows: Tokens, length: int) -> dict[str, Texts]:
        """The texts of each kind that continue the same prompts."""
        prompts, human = rows.split([self.prompt_tokens, length], 1)
        random = [np.random.default_rng([self.seed % (1 << 64), row]).random(length) for row in range(len(rows))]
        draws = torch.from_numpy(np.stack(random)).float().clamp(max=1 - 2**-24)
        tokens = {"human": human}
        with activity("generating", 2 * len(rows), "samples") as work:
            for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                parts = []
                for part in work.track(passes(len(rows), subject), lambda part: part.stop - part.start):
                    ids = prompts[part].to(subject.device)
                    generated = generate(subject.model, ids, length, temperature, draws=draws[part].to(subject.device))
                    parts.append(generated[:, self.prompt_tokens :].cpu())
                tokens[kind] = torch.cat(parts)
        return {kind: read_texts(subject.tokenizer, prompts, ids) for kind, ids in tokens.items()}

    def _measure(self, subject: Subject, texts: Texts, corpus: Sequence[Units], other: Sequence[str]) -> Scores:
        """The metrics of texts of one kind; without those that texts of so few units have not."""
        scores: dict[str, Score | None] = {f"distinct_{n}": distinct(texts.units, n) for n in range(1, 5)}
        for name, n in (("rep_2", 2), ("rep_3", 3), ("seq_rep_4", 4)):
            values = [repetition(sample, n) for sample in texts.units]
            present = [value for value in values if value is not None]
            scores[name] = mean_score(present) if present else None
        loops = [
            float(ends_in_loop(units) or ends_in_loop(ids, least=LEAST_TOKEN_LOOP))
            for units, ids in zip(texts.units, texts.tokens.tolist(), strict=True)
        ]
        scores["longest_repeat"] = mean_score([float(longest_repeat(sample)) for sample in texts.units])
        scores["loop_rate"] = proportion_score(loops)
        scores["self_bleu_4"] = mean_score(self_bleu(texts.units))
        scores["entropy"] = mean_score(self._entropies(subject, texts).numpy())
        scores["unigram_kl"] = unigram_kl(texts.units, corpus)
        scores["mauve"] = mauve(texts.strings, other, self.seed)
        return {name: score for name, score in scores.items() if score is not None}

    def _entropies(self, subject: Subject, texts: Texts) -> Float[Tensor, "rows"]:
        tokens = torch.cat([texts.prompts, texts.tokens], 1)
        return torch.cat(
            [
                next_token_entropy(subject.model, tokens[part].to(subject.device), self.prompt_tokens)
                for part in passes(len(tokens), subject)
            ]
        )

    def _excerpts(self, tokenizer: Tokenizer, texts: Texts) -> list[Json]:
        """The first samples as plain data: the prompt, and the pieces of the text with whether they repeat."""
        return [
            {"prompt": decode(tokenizer, prompt), "pieces": mark_repeats(tokenizer, tokens)}
            for prompt, tokens in zip(texts.prompts[: self.shown], texts.tokens[: self.shown], strict=True)
        ]

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """The metrics of each data set for greedy decoding, sampling and held-out text, with intervals."""
        from kleiber_topics.collapse.page import figures

        return figures(results)

    def page(self, results: Json) -> str:
        """Samples of each kind, in which repeated n-grams are marked."""
        from kleiber_topics.collapse.page import samples_html

        return samples_html(results["details"])


def passes(count: int, subject: Subject) -> list[slice]:
    """The rows of each forward pass: those of the subject, and at least `ROWS`, since no gradient is computed."""
    size = max(subject.rows, ROWS)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@torch.no_grad()
def next_token_entropy(model: Model, tokens: Tokens, start: int) -> Float[Tensor, "rows"]:
    """Mean entropy in nats of the distributions from which the tokens at `start` and later are drawn, by sample."""
    with evaluation_mode(model):
        hidden = model(Batch(tokens[:, :-1])).hidden[:, start - 1 :]
        means = []
        for row in hidden:  # one by one, since a large vocabulary takes much memory
            logs = model.head(row).float().log_softmax(-1)
            means.append(-(logs.exp() * logs).nan_to_num().sum(-1).mean())
    return torch.stack(means).cpu()
