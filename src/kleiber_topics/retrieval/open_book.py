"""The evaluation `open_book`: questions without a passage, with the right one, and with those that are looked up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import MinLen
from jaxtyping import Int

from kleiber.config import local_copy
from kleiber.data import DataSet, TaskRows, TaskTexts, task_rows
from kleiber.evals import (
    Evaluation,
    Items,
    Results,
    Subject,
    answer_values,
    asked,
    pass_tokens,
    proportion_score,
    share_difference_score,
    write_texts,
)
from kleiber.runs import open_model
from kleiber.types import Count, Metric, Metrics, Model, Score, Scores, Seed, Tokenizer, device_of, variants
from kleiber_topics.retrieval.in_context import BM25Index, DenseIndex, Index, Places

Finder = Literal["bm25", "dense"]
ANSWERS: Metrics = {"exact_match": Metric("exact match", "higher"), "f1": Metric("F1 of words", "higher")}
DIFFERENCES = variants(ANSWERS, "*_difference", "* less that without a passage")
FINDERS: Metrics = {
    "recall_{k}": Metric("share of questions whose passage is among the first {k}", "higher"),
    "store_bytes": Metric("bytes of the index", "lower", "bytes"),
    "store_seconds": Metric("time to build the index", "lower", "s"),
    "seconds_per_question": Metric("time to look a question up", "lower", "s"),
}

Ids = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Store:
    """The passages that questions are looked up in.

    passages  distinct texts
    numbers   of the right passage of each question
    """

    passages: Sequence[str]
    numbers: Sequence[int]


def question_of(texts: TaskTexts, passage: str) -> str:
    """Returns what is looked up: the inputs of a prompt but for its passage."""
    return "\n".join(text for name, text in texts.inputs.items() if name != passage)


def read_store(rows: TaskRows, items: Sequence[TaskTexts], passage: str, size: int | None, seed: int) -> Store:
    """Returns a store of the passages of the items, and of others of the same table, up to `size` in all.

    size  None for all passages of the training rows and of the evaluated split
    """
    asked_for = list(dict.fromkeys(item.inputs[passage] for item in items))
    if size is not None and size < len(asked_for):
        raise ValueError(
            f"evals.open_book.passages={size} must be at least the {len(asked_for):,} passages of the questions: ask "
            "fewer questions (evals.open_book.limit), or store more passages"
        )
    tables = (rows.training, rows)
    texts = (table.texts_of(i).inputs[passage] for table in tables for i in range(len(table)))
    others = [text for text in dict.fromkeys(texts) if text not in set(asked_for)]
    if size is not None:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(others))[: size - len(asked_for)])
        others = [others[i] for i in chosen]
    number = {text: i for i, text in enumerate(asked_for)}
    return Store([*asked_for, *others], [number[item.inputs[passage]] for item in items])


class OpenBook(Evaluation):
    """Exact match and F1 of answers to questions, for a run with data=task whose prompts have a passage (data.passage).

    closed/<metric>  the prompt has no passage: what the model knows
    given/<metric>   it has the right passage
    bm25/<metric>, dense/<metric>  it has the passages that are found for the question
    <kind>/<metric>_difference  from `closed`, paired by question
    <kind>/recall_<k>  share of the questions whose passage is among the first k that are found, of bm25 and dense
    <kind>/store_bytes, store_seconds, seconds_per_question  the cost of looking up

    The store has the passages of the questions and those of the training rows. Passages that are looked up stand in the
    prompt in place of the right one, the best one first, and are cut where the context ends.

    methods    bm25 (needs the extra `retrieval`), dense: cosine of mean hidden states
    retriever  run or Hugging Face folder whose hidden states `dense` compares; null: those of the model
    passages   number of passages in the store, the others drawn at random; null: all
    top        number of passages that stand in a prompt, the best ones
    recall     numbers k at which the recall is told
    tokens     most tokens of an answer; null: those that the data keeps for the target
    limit      number of questions; null: all
    seed       of the draw of passages
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        **variants({**ANSWERS, **DIFFERENCES}, "{kind}/*", "* ({kind})"),
        **variants(FINDERS, "{kind}/*", "* ({kind})"),
    }
    reads = "a task whose prompts have a passage (data.passage)"

    def __init__(
        self,
        methods: Annotated[Sequence[Finder], MinLen(1)] = ("bm25",),
        retriever: str | None = None,
        passages: Count | None = None,
        top: Count = 1,
        recall: Sequence[Count] = (1, 5, 20),
        tokens: Count | None = None,
        limit: Count | None = 200,
        seed: Seed = 0,
    ) -> None:
        if retriever is not None and "dense" not in methods:
            raise ValueError(f"evals.open_book.retriever={retriever} is for evals.open_book.methods=[dense]: add it")
        self.methods, self.retriever = tuple(dict.fromkeys(methods)), retriever
        self.passages, self.top, self.recall = passages, top, tuple(recall)
        self.tokens, self.limit, self.seed = tokens, limit, seed

    def accepts(self, data: DataSet) -> bool:
        """Only the data of the run."""
        return data.of_run

    def evaluate(self, subject: Subject) -> Results:
        """Answers the questions of each data set in every way. Raises ValueError for data without passages."""
        scores, details, by_item = {}, {}, {}
        for domain in subject.domains:
            task = task_rows(subject.samples(domain, subject.tokens))
            if task is None or task[0].task.passage is None:
                raise ValueError(f"--evals open_book needs {self.reads}, and {domain} is none: set data.passage")
            rows, order = task
            chosen = order[: self.limit if subject.limit is None else subject.limit].tolist()
            items = [rows.texts_of(i) for i in chosen]
            scores[domain], details[domain], values = self.score(subject, rows, items)
            by_item[domain] = Items([asked(item) for item in items], values)
        return Results(scores, details, by_item)

    def score(
        self, subject: Subject, rows: TaskRows, items: Sequence[TaskTexts]
    ) -> tuple[Scores, Mapping[str, int], Mapping[str, np.ndarray]]:
        """Returns the scores of the items in every way, the number of passages in the store, and values by item."""
        passage = rows.task.passage or ""
        store = read_store(rows, items, passage, self.passages, self.seed)
        values = {
            "closed": self.answer(subject, rows, items, [""] * len(items)),
            "given": self.answer(subject, rows, items, [item.inputs[passage] for item in items]),
        }
        scores: Scores = {}
        for method in self.methods:
            places, costs = self.find(subject, method, store, [question_of(item, passage) for item in items])
            scores |= {f"{method}/{name}": score for name, score in costs.items()}
            for k in self.recall:
                hits = [number in best[:k] for number, best in zip(store.numbers, places, strict=True)]
                scores[f"{method}/recall_{k}"] = proportion_score(hits)
            texts = ["\n".join(store.passages[place] for place in best[: self.top]) for best in places]
            values[method] = self.answer(subject, rows, items, texts)
        for kind, measured in values.items():
            for name, of_items in measured.items():
                scores[f"{kind}/{name}"] = proportion_score(of_items)
                if kind != "closed":
                    scores[f"{kind}/{name}_difference"] = share_difference_score(of_items - values["closed"][name])
        by_item = {f"{kind}/{name}": of_items for kind, part in values.items() for name, of_items in part.items()}
        return scores, {"questions": len(items), "passages": len(store.passages)}, by_item

    def answer(
        self, subject: Subject, rows: TaskRows, items: Sequence[TaskTexts], passages: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Returns exact match and F1 of the answer to each item, whose prompt has another passage."""
        task, room = rows.task, rows.context - rows.kept
        prompts = [
            task.prompt_ids({**item.inputs, task.passage or "": text}, subject.tokenizer, room)
            for item, text in zip(items, passages, strict=True)
        ]
        written = write_texts(subject, prompts, self.tokens or rows.kept, "open_book")
        scored = [answer_values(text, item.references) for text, item in zip(written, items, strict=True)]
        return {name: np.array([row[name] for row in scored]) for name in ANSWERS}

    def find(self, subject: Subject, method: Finder, store: Store, questions: Sequence[str]) -> tuple[Places, Scores]:
        """Returns the passages that are found for each question, and what that costs."""
        model, tokenizer = self.reader(subject) if method == "dense" else (subject.model, subject.tokenizer)
        passages, queries = ([encoded(text, tokenizer, model) for text in part] for part in (store.passages, questions))
        begin = time.perf_counter()
        tokens = pass_tokens(model, subject.rows)
        index: Index = (
            BM25Index(passages, tokenizer) if method == "bm25" else DenseIndex(model, passages, "torch", tokens)
        )
        built = time.perf_counter()
        places = index.search(queries, min(max(self.top, *self.recall), len(passages)))
        costs = {
            "store_bytes": Score(float(index.num_bytes)),
            "store_seconds": Score(built - begin),
            "seconds_per_question": Score((time.perf_counter() - built) / len(questions)),
        }
        return places, costs

    def reader(self, subject: Subject) -> tuple[Model, Tokenizer]:
        """The model whose hidden states are compared, and its tokenizer.

        Raises ValueError where it cannot be opened.
        """
        if self.retriever is None:
            return subject.model, subject.tokenizer
        try:
            opened = open_model(local_copy(self.retriever) or self.retriever)
        except ValueError as error:
            raise ValueError(f"evals.open_book.retriever: {error}") from None
        return opened.model.to(device_of(subject.model)), opened.tokenizer


def encoded(text: str, tokenizer: Tokenizer, model: Model) -> Ids:
    """Returns the ids of a text, as many as the model reads; of an empty text those of its end."""
    return np.array(tokenizer.encode(text)[: model.context] or [tokenizer.eos], np.int64)
