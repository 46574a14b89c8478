"""Texts that a model generates for the prompts of a task, compared with references and with simple rules.

The rules are the least that a model should beat.
"""

from __future__ import annotations

import json
import re
from collections import ChainMap, Counter
from collections.abc import Sequence
from html import escape
from typing import ClassVar, Literal

import numpy as np

from kleiber.data.prompts import answer_text
from kleiber.data.task import TaskRows, TaskTexts, task_rows
from kleiber.evals.evaluation import Evaluation, Items, Results, Scores, Subject
from kleiber.evals.text_metrics import METRICS, Measured, chrf_counts, chrf_of
from kleiber.models.generation import continuations
from kleiber.types import Count, Json, NonNegative, Width
from kleiber.types.score import Metric, Metrics, variants

MetricName = Literal["bleu", "chrf", "rouge", "exact_match", "f1"]
SHOWN = 4  # examples of each kind
OF_MODEL: Metrics = {
    "bleu": Metric("BLEU", "higher"), "chrf": Metric("chrF", "higher"), "rouge1": Metric("ROUGE-1", "higher"),
    "rouge2": Metric("ROUGE-2", "higher"), "rougeL": Metric("ROUGE-L", "higher"),
    "exact_match": Metric("exact match", "higher"), "f1": Metric("F1 of words", "higher"),
}  # fmt: skip
NAMES = {  # of rules, by the name in metrics
    "copy": "copying the input", "lead": "its first sentence", "frequent": "the most frequent target",
    "neighbor": "the target of the nearest training input",
}  # fmt: skip
OF_RULES = {name: Metric(metric.label, "none") for name, metric in OF_MODEL.items()}
BY_RULE = [variants(OF_RULES, f"{rule}/*", f"* of {label}") for rule, label in NAMES.items()]
WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
AT_ONCE = 256  # rows whose similarity to all training rows is in memory together


def source_of(texts: TaskTexts, passage: str | None) -> str:
    """Returns the text that a target is made from: the passage, or all inputs where there is none."""
    return texts.inputs[passage] if passage is not None else "\n".join(texts.inputs.values())


def asked(texts: TaskTexts) -> str:
    """Returns a text that only items with equal inputs and references have."""
    return json.dumps(texts, ensure_ascii=False)


def baseline_texts(rows: TaskRows, items: Sequence[TaskTexts]) -> dict[str, list[str]]:
    """Returns the texts of each rule of NAMES for the items, in their order.

    The most frequent target and the nearest input, by the cosine of TF-IDF weights of words, are of the training rows.
    """
    sources = [source_of(item, rows.task.passage) for item in items]
    training = [rows.training.texts_of(i) for i in range(len(rows.training))]
    frequent, _ = Counter(texts.references[0] for texts in training).most_common(1)[0]
    stored, inputs = ([" ".join(texts.inputs.values()) for texts in part] for part in (training, items))
    return {
        "copy": sources,
        "lead": [SENTENCE_END.split(source.strip(), maxsplit=1)[0] for source in sources],
        "frequent": [frequent] * len(items),
        "neighbor": [training[i].references[0] for i in nearest_rows(stored, inputs)],
    }


def nearest_rows(stored: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Returns for each text the number of the stored text with the highest cosine of TF-IDF weights of words.

    Weights are counts times 1 + ln((1 + n) / (1 + df)) of n stored texts, df of which have the word.
    """
    from scipy.sparse import csr_array

    counts = [[Counter(WORD.findall(text.lower())) for text in part] for part in (stored, texts)]
    frequency = Counter(token for row in counts[0] for token in row)
    number = {token: i for i, token in enumerate(frequency)}
    idf = 1 + np.log((1 + len(stored)) / (1 + np.array([*frequency.values(), 0], np.float64)))

    def weights(part: Sequence[Counter[str]]) -> csr_array:
        """The weights of each text, of length 1."""
        entries = [[(number[token], count) for token, count in row.items() if token in number] for row in part]
        values = [np.array([count * idf[column] for column, count in row]) for row in entries]
        values = [row / np.linalg.norm(row) if len(row) else row for row in values]
        columns = [column for row in entries for column, _ in row]
        starts = np.cumsum([0, *map(len, entries)])
        return csr_array((np.concatenate([np.empty(0), *values]), columns, starts), shape=(len(part), len(idf)))

    matrix, queries = weights(counts[0]).T.tocsr(), weights(counts[1])
    return [
        int(row)
        for start in range(0, len(texts), AT_ONCE)
        for row in (queries[start : start + AT_ONCE] @ matrix).toarray().argmax(1)
    ]


def write_texts(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    key: str,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Returns the text that the model continues each prompt with, without the white space around it.

    tokens  most tokens of a text
    key     name of the evaluation, for errors

    Raises ValueError where a text does not fit behind the longest prompt.
    """
    longest = max(map(len, prompts))
    if longest + tokens > subject.model.context:
        raise ValueError(
            f"evals.{key}.tokens={tokens} and a prompt of {longest} tokens must fit "
            f"model.context={subject.model.context}: set data.target_tokens, or fewer tokens"
        )
    ids = continuations(
        subject.model, prompts, tokens, subject.tokenizer.eos, beams=beams, length_penalty=length_penalty
    )
    return [answer_text(subject.tokenizer, [*prompt], row) for prompt, row in zip(prompts, ids, strict=True)]


class Generation(Evaluation):
    """BLEU, chrF, ROUGE, exact match and F1 of generated texts, for a run with data=task.

    bleu, chrf               of all texts together, from 0 to 100, as sacrebleu prints them
    rouge1, rouge2, rougeL   mean F-measures, of the best reference of each text, as rouge-score has them
    exact_match, f1          of lower-case words without punctuation and articles, as in the script of SQuAD
    copy/<metric>, lead/<metric>, frequent/<metric>, neighbor/<metric>  of texts that need no model: the input (its
                             passage, if it has one), its first sentence, the most frequent training target, and the
                             target of the nearest training input by TF-IDF

    metrics         names of the metrics
    beams           1: the most probable token at each step; more: beam search with so many beams
    length_penalty  of beam search: the sum of log-probabilities is divided by tokens^length_penalty
    tokens          most tokens of a text; null: those that the data keeps for the target
    limit           number of rows; null: all
    """

    causal = True
    metrics: ClassVar[Metrics] = dict(ChainMap(*BY_RULE, {**OF_MODEL}))
    reads = "a task of text generation (data=task)"

    def __init__(
        self,
        metrics: Sequence[MetricName] = ("bleu", "chrf", "rouge", "exact_match", "f1"),
        beams: Width = 1,
        length_penalty: NonNegative = 1.0,
        tokens: Count | None = None,
        limit: Count | None = 200,
    ) -> None:
        if not metrics:
            raise ValueError(f"evals.generation.metrics=[] must name at least one of {', '.join(METRICS)}")
        self.names, self.beams, self.length_penalty = tuple(metrics), beams, length_penalty
        self.tokens, self.limit = tokens, limit
        self.of_rules: dict[str, Scores] = {}  # by data set; they do not depend on the model

    def evaluate(self, subject: Subject) -> Results:
        """The metrics on each data set. Raises ValueError for data that is no task, and where a text does not fit."""
        scores, details, by_item = {}, {}, {}
        for domain in subject.domains:
            task = task_rows(subject.samples(domain, subject.tokens))
            if task is None:
                raise ValueError(f"--evals generation needs {self.reads}, and {domain} is none: train on data=task")
            rows, order = task
            chosen = order[: self.limit if subject.limit is None else subject.limit].tolist()
            items = [rows.texts_of(i) for i in chosen]
            prompts, tokens = [rows.question(i)[0] for i in chosen], self.tokens or rows.kept
            written = write_texts(
                subject, prompts, tokens, beams=self.beams, length_penalty=self.length_penalty, key="generation"
            )
            if domain not in self.of_rules:
                self.of_rules[domain] = {
                    f"{rule}/{metric}": measured.score
                    for rule, texts in baseline_texts(rows, items).items()
                    for metric, measured in self._score(texts, items).items()
                }
            of_model = self._score(written, items)
            scores[domain] = {metric: measured.score for metric, measured in of_model.items()} | self.of_rules[domain]
            details[domain] = pick_examples(items, written) if rows.task.examples else []
            values = {metric: measured.items for metric, measured in of_model.items()}
            by_item[domain] = Items([asked(item) for item in items], values)
        return Results(scores, details, by_item)

    def _score(self, texts: Sequence[str], items: Sequence[TaskTexts]) -> dict[str, Measured]:
        references = [item.references for item in items]
        return {key: value for name in self.names for key, value in METRICS[name](texts, references).items()}

    def page(self, results: Json) -> str:
        """Tables of the texts that are most like their references, least like them, and of random ones."""
        return "".join(_table(domain, rows) for domain, rows in results["details"].items() if rows)


def pick_examples(items: Sequence[TaskTexts], texts: Sequence[str]) -> list[Json]:
    """The examples of the highest and of the lowest chrF, and random others, with their inputs and references."""
    counts = [chrf_counts(text, item.references) for text, item in zip(texts, items, strict=True)]
    scores = chrf_of(np.array(counts))
    order = np.argsort(scores, kind="stable").tolist()
    middle = order[SHOWN:-SHOWN]
    random = [middle[i] for i in np.random.default_rng(0).permutation(len(middle))[:SHOWN]]
    kinds = {"most like a reference": order[::-1][:SHOWN], "least like a reference": order[:SHOWN], "random": random}
    return [
        {
            "kind": kind, "inputs": dict(items[i].inputs), "text": texts[i],
            "references": list(items[i].references), "chrf": float(scores[i]),
        }
        for kind, numbers in kinds.items()
        for i in numbers
    ]  # fmt: skip


def _table(domain: str, rows: Sequence[Json]) -> str:
    head = "<tr><th></th><th>input</th><th>generated</th><th>references</th><th>chrF</th></tr>"
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return f"<h3>{escape(domain)}</h3><table>{head}{body}</table>"


def _cells(row: Json) -> str:
    inputs, references = "\n".join(row["inputs"].values()), " | ".join(row["references"])
    texts = (row["kind"], inputs, row["text"], references, f"{row['chrf']:.0f}")
    return "".join(f"<td>{escape(text)}</td>" for text in texts)
