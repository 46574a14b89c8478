"""Subjects of evaluations: a model with the validation data of a corpus, or with tables of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.evals.measure import make_subject, own_sets
from kleiber.objectives.clm import CLM
from kleiber.types import Row
from kleiber.types.contracts import Corpus, Objective, Samples
from kleiber.types.model import Model


def subject_of(model: Model, corpus: Corpus, objective: Objective, rows: int = 16) -> Subject:
    """A model with the validation data of a corpus."""
    return replace(make_subject(model, corpus, objective, None, rows), data=own_sets(corpus.validation))


def subject_on_tables(model: Model, **tables: Sequence[Row]) -> Subject:
    """A model of bytes with tables by name."""
    corpus = SimpleNamespace(name="", config="", hash="", tokenizer=Bytes(), train=Samples(), validation={})
    subject = make_subject(model, corpus, CLM(), None)  # type: ignore[arg-type]
    return replace(subject, data=[table(name, rows) for name, rows in tables.items()])


def table(name: str, rows: Sequence[Row], group: str | None = None) -> DataSet:
    """Rows as a data set."""

    def samples() -> None:
        raise AssertionError(f"{name} is read as text")

    return DataSet(name, samples, tuple(rows[0]), lambda: rows, group)  # type: ignore[arg-type]


def values(scores: Mapping[str, object]) -> dict[str, float]:
    """The values of scores by metric."""
    return {name: score.value for name, score in scores.items()}  # type: ignore[attr-defined]
