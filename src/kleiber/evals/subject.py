"""What an evaluation is given: a model, held-out samples, and how to read them. It knows no run and no command line.

An evaluation is a module of this package with `evaluate(subject) -> dict`, plain numbers, lists and dicts by name. It
may name a module that draws it, `FIGURES = "kleiber.studies.x"`, with `figures(found, folder) -> dict of charts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus, Objective


def none_earlier() -> Iterator[tuple[int, Any]]:
    yield from ()


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    tokens   targets per domain that are enough; None leaves it to the evaluation
    rows     samples per forward pass
    folder   of the run, where it is one
    earlier  yields (step, model) of the run's earlier checkpoints, oldest first
    tasks    of lm-eval, by name, and the folder of task files of one's own
    """

    model: Any
    corpus: Corpus
    objective: Objective
    tokens: int | None = None
    rows: int = 16
    device: torch.device | str = "cpu"
    folder: Path | None = None
    earlier: Callable[[], Iterator[tuple[int, Any]]] = none_earlier
    tasks: Sequence[str] = ()
    task_files: Path | None = None

    @property
    def domains(self) -> list[str]:
        return list(self.corpus.validation)

    def batches(self, domain: str, tokens: int | None = None) -> Iterator[Batch]:
        """The first `tokens` targets of a domain, in order: the same ones every time."""
        chosen = self.corpus.validation[domain].first(tokens)
        for begin in range(0, len(chosen), self.rows):
            yield chosen.gather(np.arange(begin, min(begin + self.rows, len(chosen)))).to(self.device)
