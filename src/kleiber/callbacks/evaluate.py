"""Scores the validation domains on a fixed set of tokens while training; its seconds are not the training's."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kleiber.data.sampler import evaluation_batches
from kleiber.evals.perplexity import bits_per_byte, held_out_loss
from kleiber.types import HeldOut


class Evaluate(Callback):
    """Every `every` optimizer steps (0: never else) and after the last one, for each domain d: val/<d>/loss (nats per
    token) and, for likelihoods of text, val/<d>/bits_per_byte.

    tokens     targets scored per domain, the same ones every time; None for all
    rows       samples per forward pass
    likelihood whether the objective's loss is a likelihood of the text (masked prediction is none)

    `latest` and `curve` (rows of step and metrics) hold the results; both are resumed.
    """

    def __init__(
        self, validation: dict[str, HeldOut], every: int, tokens: int | None, rows: int, likelihood: bool = True
    ) -> None:
        self.validation, self.every, self.tokens, self.rows = validation, every, tokens, rows
        self.likelihood = likelihood
        self.latest: dict[str, float] = {}
        self.curve: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"latest": self.latest, "curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest, self.curve = state_dict["latest"], state_dict["curve"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == trainer.max_steps or (self.every and step % self.every == 0):
            self.latest = self.score(trainer, pl_module)
            self.curve.append({"step": step, **self.latest})
            for logger in trainer.loggers:
                logger.log_metrics(self.latest, step)

    def score(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        """The metrics of the model as it is now, the same on every rank."""
        found: dict[str, float] = {}
        for domain, samples in self.validation.items():
            chosen = samples.first(self.tokens)
            # Ranks that share a sum need a sample each; of fewer samples every rank scores all.
            share = (trainer.global_rank, trainer.world_size) if len(chosen) >= trainer.world_size else (0, 1)
            batches = evaluation_batches(chosen, self.rows, None, *share)
            with trainer.precision_plugin.val_step_context():
                sums = held_out_loss(pl_module.model, pl_module.objective, batches, pl_module.device)
            if share[1] > 1:
                sums.reduce()
            found[f"val/{domain}/loss"] = nats = sums.means()["ce"].item()
            if self.likelihood:
                density = chosen.num_bytes / chosen.num_tokens
                found[f"val/{domain}/bits_per_byte"] = bits_per_byte(nats, density)
        return found
