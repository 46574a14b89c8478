"""After the last step, the held-out loss by position, beside the other scores.

It costs one more pass and no training.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from kleiber.budget import quantity
from kleiber.callbacks.evaluate import Evaluate
from kleiber.data.sampler import evaluation_batches
from kleiber.evals.position import binned, loss_by_position
from kleiber.hooks import Watch
from kleiber.sharding import whole
from kleiber.types import Corpus


class Positions(Watch):
    """Logs val/<domain>/position/<t> (nats per target): mean loss of targets up to position t and beyond t/2.

    tokens  targets scored per domain, from the first on; None for all
    rows    samples per forward pass

    Of several ranks the first scores alone. It refuses models that see the target, which have no position to speak of.
    """

    def __init__(self, corpus: Corpus, tokens: int | float | str | None = "512K", rows: int = 16) -> None:
        if rows < 1:
            raise ValueError(f"callbacks.positions.rows={rows}: write a number from 1")
        self.corpus, self.rows = corpus, rows
        self.tokens = None if tokens is None else round(quantity(tokens))

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not getattr(pl_module.model, "causal", True):
            raise ValueError("callbacks.positions scores the next token: remove it for model=bert")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        with whole(pl_module.model):
            if trainer.is_global_zero:
                self.score(trainer, pl_module)

    def score(self, trainer: Trainer, pl_module: Any) -> None:
        found: dict[str, float] = {}
        for domain, samples in self.corpus.validation.items():
            batches = evaluation_batches(samples.first(self.tokens), self.rows, None, 0, 1)
            with trainer.precision_plugin.val_step_context():
                sums = loss_by_position(pl_module.model, batches, pl_module.device)
            found |= {f"val/{domain}/position/{end}": value for end, value in binned(*sums).items()}
        evaluate = next(c for c in trainer.callbacks if isinstance(c, Evaluate))  # pyright: ignore[reportAttributeAccessIssue]
        evaluate.latest = {**evaluate.latest, **found}
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)
