"""What simple rules would write for the prompts of a text generation task: the least that a model should beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from kleiber.data.task import TaskRows, TaskTexts

WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
AT_ONCE = 256  # rows whose similarity to all training rows is in memory together
NAMES = {  # by the name in metrics
    "copy": "copying the input", "lead": "its first sentence", "frequent": "the most frequent target",
    "neighbor": "the target of the nearest training input",
}  # fmt: skip


def source_of(texts: TaskTexts, passage: str | None) -> str:
    """Returns the text that a target is made from: the passage, or all inputs where there is none."""
    return texts.inputs[passage] if passage is not None else "\n".join(texts.inputs.values())


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
