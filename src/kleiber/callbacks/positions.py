"""After the last step, the held-out loss by position, beside the other scores.

It costs one more pass and no training.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from kleiber.budget import quantity
from kleiber.callbacks.closing import Closing
from kleiber.data.sampler import evaluation_batches
from kleiber.evals.position import binned, loss_by_position
from kleiber.types import Corpus


class Positions(Closing):
    """Logs val/<domain>/position/<t> (nats per target): mean loss of targets up to position t and beyond t/2.

    tokens  targets scored per domain, from the first on; None for all
    rows    samples per forward pass

    It refuses models that see the target, which have no position to speak of.
    """

    def __init__(self, corpus: Corpus, tokens: int | float | str | None = "512K", rows: int = 16) -> None:
        if rows < 1:
            raise ValueError(f"callbacks.positions.rows={rows}: write a number from 1")
        self.corpus, self.rows = corpus, rows
        self.tokens = None if tokens is None else round(quantity(tokens))

    def score(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for domain, samples in self.corpus.validation.items():
            batches = evaluation_batches(samples.first(self.tokens), self.rows, None, 0, 1)
            with trainer.precision_plugin.val_step_context():
                sums = loss_by_position(pl_module.model, batches, pl_module.device)
            found |= {f"val/{domain}/position/{end}": value for end, value in binned(*sums).items()}
        return found
