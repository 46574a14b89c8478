"""Multiple choice by likelihood: the model chooses the most likely of several endings of a context.

Texts and scores are those of lm-eval for HellaSwag, ARC and PIQA, so numbers can be compared. No text is generated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Float

from kleiber.data.evaluation_sets import DataSet
from kleiber.evals.evaluation import Evaluation, Results, Score, Scores, Subject, mean_score, proportion_score
from kleiber.evals.likelihood import encode_pairs, log_likelihoods, pass_tokens
from kleiber.types import Json, Row
from kleiber.types.access import DataPath
from kleiber.types.score import Metric, Metrics

if TYPE_CHECKING:
    from altair import TopLevelMixin

HELLASWAG = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
CONTEXT_ENDINGS = (("ctx", "endings", "label"), ("context", "endings", "label"))
ARC = ("question", "choices", "answerKey")
PIQA = ("goal", "sol1", "sol2", "label")
COLUMNS = (*CONTEXT_ENDINGS, ARC, PIQA)


@dataclass(frozen=True)
class Question:
    """A context, its possible endings, and the index of the right one."""

    context: str
    endings: list[str]
    label: int


class Choice(Evaluation):
    """Accuracy on multiple-choice questions, and the margin of the right ending.

    data  names or paths of tables of questions; null: those of the command
    """

    columns = COLUMNS
    causal = True
    metrics: ClassVar[Metrics] = {
        "accuracy": Metric("accuracy", "higher"),
        "accuracy_per_byte": Metric("accuracy by log-probability per byte", "higher"),
        "margin": Metric("margin of the right text", "higher", "nats"),
        "margin_per_byte": Metric("margin of the right text per byte", "higher", "nats per byte"),
        "chance": Metric("accuracy of a random choice", "none"),
    }

    def __init__(self, data: Sequence[DataPath] | None = None) -> None:
        self.data = data

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each table, and of each group of tables; see `choice_values`."""
        return Results(score_groups(subject.data, lambda data: choice_values(subject, data)))

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber.evals.item_figures import score_figures

        return score_figures(results["scores"])


Values = dict[str, Float[np.ndarray, "rows"]]  # a value of each item, by the metric that is their mean


def score_groups(sets: Sequence[DataSet], values: Callable[[DataSet], Values]) -> dict[str, Scores]:
    """Mean values of the items of each data set, and of all items of each group of data sets.

    values  returns the values of the items of a data set
    """
    scores: dict[str, Scores] = {}
    groups: dict[str, list[Values]] = {}
    for data in sets:
        of_data = values(data)
        scores[data.name] = mean_scores(of_data)
        if data.group is not None:
            groups.setdefault(data.group, []).append(of_data)
    for group, parts in groups.items():
        metrics = [metric for metric in parts[0] if all(metric in part for part in parts)]
        scores[group] = mean_scores({metric: np.concatenate([part[metric] for part in parts]) for metric in metrics})
    return scores


def mean_scores(values: Values) -> Scores:
    """The mean of each metric with its interval, an accuracy as a share; that of chance has none."""
    scores = {
        metric: (proportion_score if metric.startswith("accuracy") else mean_score)(of_items)
        for metric, of_items in values.items()
    }
    if "chance" in values:
        scores["chance"] = Score(float(values["chance"].mean()), n=len(values["chance"]))
    return scores


def choice_values(subject: Subject, data: DataSet) -> Values:
    """Values of each question of a table.

    accuracy           1 where the right ending has the highest log-probability
    accuracy_per_byte  the same with log-probabilities per byte, which do not favor short endings; lm-eval's acc_bytes,
                       and its acc_norm where all characters are ASCII
    margin             log-probability of the right ending less that of the best other one, in nats
    margin_per_byte    the same per byte, in nats per byte
    chance             expected accuracy of a random choice

    Accuracy of 1 is divided among endings that tie. Raises ValueError for rows without a valid label.
    """
    questions, by_question = score_questions(subject, data)
    per_byte = [
        log_probs / [max(1, len(ending.encode())) for ending in question.endings]
        for question, log_probs in zip(questions, by_question, strict=True)
    ]
    labels = [question.label for question in questions]
    return {
        "accuracy": shares_of_best(by_question, labels),
        "accuracy_per_byte": shares_of_best(per_byte, labels),
        "margin": margins(by_question, labels),
        "margin_per_byte": margins(per_byte, labels),
        "chance": 1 / np.array([len(question.endings) for question in questions]),
    }


def score_questions(subject: Subject, data: DataSet) -> tuple[list[Question], list[Float[np.ndarray, "_"]]]:
    """The questions of a table, and the log-probability of each of their endings in nats."""
    questions = [parse_question(row, data.name) for row in data.rows(subject.limit)]
    pairs = [(question.context, f" {ending}") for question in questions for ending in question.endings]
    ids = iter(encode_pairs(subject.tokenizer, pairs))
    items = [[next(ids) for _ in question.endings] for question in questions]
    scores = log_likelihoods(subject.model, items, pass_tokens(subject.model, subject.rows), f"scoring {data.name}")
    counts = [len(question.endings) for question in questions]
    return questions, np.split(scores.log_probs, np.cumsum(counts)[:-1])


def shares_of_best(scores: Sequence[Float[np.ndarray, "_"]], labels: Sequence[int]) -> Float[np.ndarray, "rows"]:
    """1 where the entry of the label is the largest of its item, 1/n where n entries tie for that, and 0 elsewhere."""
    return np.array([(s[i] == s.max()) / (s == s.max()).sum() for s, i in zip(scores, labels, strict=True)])


def margins(scores: Sequence[Float[np.ndarray, "_"]], labels: Sequence[int]) -> Float[np.ndarray, "rows"]:
    """Entry of the label less the largest other entry of its item."""
    return np.array([s[i] - np.delete(s, i).max() for s, i in zip(scores, labels, strict=True)])


def parse_question(row: Row, name: str) -> Question:
    """The question of a row, in the words of lm-eval's tasks hellaswag, arc_easy and piqa.

    Raises ValueError for columns that are no question, a label that is not the index of an ending, and fewer than two
    endings; `name` is that of the data set.
    """
    columns = row.keys()
    if set(HELLASWAG) <= columns:
        context = clean_wikihow(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        endings, label = [clean_wikihow(ending) for ending in row["endings"]], str(row["label"])
    elif {"endings", "label"} <= columns and {"ctx", "context"} & columns:
        context = str(row["ctx" if "ctx" in columns else "context"])
        endings, label = [ending.strip() for ending in row["endings"]], str(row["label"])
    elif set(ARC) <= columns:
        context, endings = f"Question: {row['question']}\nAnswer:", list(row["choices"]["text"])
        labels = list(row["choices"]["label"])
        label = str(labels.index(row["answerKey"]) if row["answerKey"] in labels else row["answerKey"])
    elif set(PIQA) <= columns:
        context, endings, label = f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], str(row["label"])
    else:
        raise ValueError(f"{name} has the columns {', '.join(columns)}; a question needs one of {COLUMNS}")
    if len(endings) < 2:
        raise ValueError(f"{name}: a question must have at least two endings, and {context!r} has {len(endings)}")
    if not label.isdecimal() or int(label) >= len(endings):
        raise ValueError(
            f"{name}: label={label!r} must be that of one of the {len(endings)} endings; questions without a label "
            "cannot be scored"
        )
    return Question(context, endings, int(label))


def clean_wikihow(text: str) -> str:
    """A text of HellaSwag without the marks that its source WikiHow left in it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
