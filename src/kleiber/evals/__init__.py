"""Evaluations: each module measures one thing of a model on held-out data, and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus, Objective
from kleiber.types.model import Model


@dataclass(frozen=True)
class Subject:
    """A model, and the held-out data that it is evaluated on.

    tokens      targets to score per domain; None leaves the number to the evaluation
    rows        samples per forward pass
    folder      folder of the run; None for a Hugging Face model
    earlier     returns (step, model) of the run's earlier checkpoints, oldest first
    tasks       names of lm-eval tasks
    task_files  a file or folder of questions or of lm-eval task definitions
    """

    model: Model
    corpus: Corpus
    objective: Objective
    tokens: int | None = None
    rows: int = 16
    device: torch.device | str = "cpu"
    folder: Path | None = None
    earlier: Callable[[], Iterable[tuple[int, Model]]] = tuple
    tasks: Sequence[str] = ()
    task_files: Path | None = None

    @property
    def domains(self) -> list[str]:
        return list(self.corpus.validation)

    def batches(self, domain: str, tokens: int | None = None) -> Iterator[Batch]:
        """The first `tokens` targets of a domain, in order: the same ones every time."""
        samples = self.corpus.validation[domain].first(tokens)
        for begin in range(0, len(samples), self.rows):
            yield samples.gather(np.arange(begin, min(begin + self.rows, len(samples)))).to(self.device)


class Evaluation(Protocol):
    """A module or package of `kleiber.evals`: `kleiber eval --evals NAME` calls its `evaluate`.

    It may name a module with `figures(results, folder)`, which returns altair charts by name, as `FIGURES`.
    """

    def evaluate(self, subject: Subject) -> Json:
        """Results of one measurement: numbers, lists and dictionaries by name."""
        ...
