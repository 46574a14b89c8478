"""Evaluations: each module measures one property of a model on held-out data. No evaluation trains the model."""

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

    tokens      number of target tokens to score per domain; None leaves the number to the evaluation
    rows        samples per forward pass
    folder      folder of the run; None for a Hugging Face model
    earlier     returns (step, model) for each earlier checkpoint of the run, oldest first
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
        """Names of the parts of the validation data, which are scored separately."""
        return list(self.corpus.validation)

    def batches(self, domain: str, tokens: int | None = None) -> Iterator[Batch]:
        """Batches of the first `tokens` targets of a domain, the same at every call; all of them for None."""
        samples = self.corpus.validation[domain].first(tokens)
        for start in range(0, len(samples), self.rows):
            index = np.arange(start, min(start + self.rows, len(samples)))
            yield samples.gather(index).to(self.device)


class Evaluation(Protocol):
    """A module or package of `kleiber.evals`: `kleiber eval --evals NAME` calls its `evaluate`.

    An evaluation with figures has a constant `FIGURES`: the name of a module with `figures(results, folder)`, which
    returns altair charts by name.
    """

    def evaluate(self, subject: Subject) -> Json:
        """Results of the measurement: numbers, lists and dictionaries by name."""
        ...
