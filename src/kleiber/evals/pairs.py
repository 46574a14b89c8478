"""What a model finds more likely: minimal pairs of sentences, the last word of a text, and endings of a context.

Small models are at chance in accuracy long after they have begun to learn, so a continuous score stands beside it
(Schaeffer et al. 2023, arXiv:2304.15004).

Under a masked model, pseudo-log-likelihoods take the place of log-likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from kleiber.data.evaluation_sets import DataSet
from kleiber.evals.choice import COLUMNS, Choice, Values, choice_values, margins, score_groups, shares_of_best
from kleiber.evals.evaluation import Evaluation, Results, Score, Subject
from kleiber.evals.likelihood import Ids, encode_pairs, log_likelihoods, pass_tokens, target_scores
from kleiber.records.progress import activity
from kleiber.types import Json
from kleiber.types.access import DataPath
from kleiber.types.batch import Batch
from kleiber.types.model import Model, device_of, evaluation_mode
from kleiber.types.score import Metric, Metrics
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from altair import TopLevelMixin

SENTENCES = ("sentence_good", "sentence_bad")
TEXT = "text"
LAMBADA = "lambada"


@torch.compiler.set_stance("force_eager")
@torch.inference_mode()
def pseudo_log_likelihoods(
    model: Model,
    texts: Sequence[Ids],
    tokenizer: Tokenizer,
    tokens: int,
    label: str,
    positions: Sequence[Sequence[int]] | None = None,
) -> Float[np.ndarray, "rows"]:
    """sum_t log p(x_t | all other tokens of the text) in nats, of each text, under a masked model.

    Each token is hidden once, in a copy of its text. The tokens that separate documents stand around a text, and are
    not scored. Of a longer text than model.context, a copy contains what is around the hidden token. Salazar et al.
    2020, arXiv:1910.14659, eq. 1. Arguments are those of `log_likelihoods`.

    positions  of the tokens of each text that are scored; None for all of them
    """
    before, after = tokenizer.separator.before, tokenizer.separator.after
    start, end = ([] if i is None else [i] for i in (before, after))
    device = device_of(model)
    rows = [start + ids + end for ids in texts]
    widths = [min(len(row), model.context) for row in rows]
    scored = [range(len(ids)) for ids in texts] if positions is None else positions
    copies = [(i, at) for i in sorted(range(len(rows)), key=lambda i: -widths[i]) for at in scored[i]]
    scores, done = np.zeros(len(texts)), 0
    with evaluation_mode(model), activity(label, len(copies), "tokens") as work:
        while done < len(copies):
            longest = widths[copies[done][0]]
            chosen = copies[done : done + max(1, tokens // longest)]
            ids, real = np.full((len(chosen), longest), tokenizer.mask), np.zeros((len(chosen), longest), bool)
            hidden_at, targets = [], []
            for copy, (i, number) in enumerate(chosen):
                at, width = number + len(start), widths[i]
                first = min(max(0, at - width // 2), len(rows[i]) - width)
                ids[copy, :width], real[copy, :width] = rows[i][first : first + width], True
                hidden_at.append(at - first)
                targets.append(texts[i][number])
            ids[np.arange(len(chosen)), hidden_at] = tokenizer.mask
            mask = None if real.all() else torch.from_numpy(real).to(device)
            hidden = model(Batch(torch.from_numpy(ids).to(device), real=mask)).hidden
            states = hidden[torch.arange(len(chosen), device=device), torch.tensor(hidden_at, device=device)]
            log_probs, _ = target_scores(states, model.head, torch.tensor(targets, device=device))
            np.add.at(scores, [i for i, _ in chosen], log_probs.double().cpu().numpy())
            done += len(chosen)
            work.done = done
    return scores


class Pairs(Evaluation):
    """Accuracy and margins on minimal pairs, on the last words of texts, and on multiple choice.

    The columns of a table decide what it is: sentence_good and sentence_bad (BLiMP, Warstadt et al. 2020,
    arXiv:1912.00582), those of a question (see `Choice`), or text (LAMBADA, Paperno et al. 2016, arXiv:1606.06031).

    data       names or paths of tables; null: those of the command
    last_word  names of the data sets whose column `text` is a text with a last word to predict, since any text has that
               column; null: those with "lambada" in their name
    prefix     text in front of each sentence of a pair for a causal model; lm-eval's task has a space there
    """

    columns = (SENTENCES, (TEXT,), *COLUMNS)
    metrics: ClassVar[Metrics] = {
        **Choice.metrics,
        "log_prob": Metric("log-probability of the last word", "higher", "nats"),
        "perplexity": Metric("perplexity of the last word", "lower"),
    }

    def __init__(
        self, data: Sequence[DataPath] | None = None, last_word: Sequence[str] | None = None, prefix: str = " "
    ) -> None:
        self.data, self.last_word, self.prefix = data, last_word, prefix

    def accepts(self, data: DataSet) -> bool:
        """Whether the data set is a table of one of the three kinds."""
        return any(set(columns) <= set(data.columns) for columns in (SENTENCES, *COLUMNS)) or self._has_last_word(data)

    def _has_last_word(self, data: DataSet) -> bool:
        named = LAMBADA in data.name if self.last_word is None else data.name in self.last_word
        return named and TEXT in data.columns

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each table, and of each group of tables such as the parts of BLiMP.

        Minimal pairs are scored with log-probabilities under a causal model, and with pseudo-log-likelihoods under a
        masked one. Raises ValueError for other tables under a masked model.
        """
        scores = score_groups(subject.data, lambda data: self._values(subject, data))
        for of_data in scores.values():
            if "log_prob" in of_data:
                of_data["perplexity"] = perplexity(of_data["log_prob"])
        return Results(scores)

    def _values(self, subject: Subject, data: DataSet) -> Values:
        if set(SENTENCES) <= set(data.columns):
            return self._pair_values(subject, data)
        if not subject.model.causal:
            raise ValueError(
                f"--evals pairs on {data.name} needs a causal model, such as model=gpt; this model is "
                f"bidirectional, and can only score minimal pairs, with the columns {' and '.join(SENTENCES)}"
            )
        return last_word_values(subject, data) if self._has_last_word(data) else choice_values(subject, data)

    def _pair_values(self, subject: Subject, data: DataSet) -> Values:
        """Values of each pair.

        accuracy         1 where the good sentence is more likely, 1/2 where both are equally likely
        margin           log-probability of the good sentence less that of the bad one, in nats
        margin_per_byte  the same divided by the mean bytes of both sentences
        chance           1/2
        """
        pairs = [(str(row[SENTENCES[0]]), str(row[SENTENCES[1]])) for row in data.rows(subject.limit)]
        tokens, label = pass_tokens(subject.model, subject.rows), f"scoring {data.name}"
        sentences = [sentence for pair in pairs for sentence in pair]
        if subject.model.causal:
            ids = encode_pairs(subject.tokenizer, [("", self.prefix + sentence) for sentence in sentences])
            items = [ids[i : i + 2] for i in range(0, len(ids), 2)]
            log_probs = log_likelihoods(subject.model, items, tokens, label).log_probs
        else:
            texts = [ids.tolist() for ids in subject.tokenizer.encode_many(sentences)]
            log_probs = pseudo_log_likelihoods(subject.model, texts, subject.tokenizer, tokens, label)
        by_sentence = log_probs.reshape(-1, 2)
        num_bytes = np.array([max(1, len((good + bad).encode())) / 2 for good, bad in pairs])
        labels = [0] * len(pairs)
        nats = margins(list(by_sentence), labels)
        return {
            "accuracy": shares_of_best(list(by_sentence), labels),
            "margin": nats,
            "margin_per_byte": nats / num_bytes,
            "chance": np.full(len(pairs), 0.5),
        }

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber.evals.item_figures import score_figures

        return score_figures(results["scores"])


def last_word_values(subject: Subject, data: DataSet) -> Values:
    """Values of each text, whose last word is what follows its last space.

    accuracy  1 where greedy decoding gives all tokens of the last word
    log_prob  log-probability of the last word with the space in front of it, in nats
    """
    splits = [str(row[TEXT]).rpartition(" ") for row in data.rows(subject.limit)]
    pairs = [(context, f" {target}") for context, _, target in splits]
    items = [[pair] for pair in encode_pairs(subject.tokenizer, pairs)]
    scores = log_likelihoods(subject.model, items, pass_tokens(subject.model, subject.rows), f"scoring {data.name}")
    return {"accuracy": scores.greedy.astype(np.float64), "log_prob": scores.log_probs}


def perplexity(log_prob: Score) -> Score:
    """exp of minus a mean log-probability, with its interval."""
    bounds = [None if bound is None else math.exp(-bound) for bound in (log_prob.hi, log_prob.lo)]
    return Score(math.exp(-log_prob.value), bounds[0], bounds[1], log_prob.n)
