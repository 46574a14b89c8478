"""Logs the training metrics of single optimizer steps. Rows are not averages, so nothing has to be resumed."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from kleiber.hooks import Watch


class Log(Watch):
    """Every `every` optimizer steps: train/loss (cross-entropy, nats per token), train/total (with auxiliary losses),
    train/grad_norm (before clipping), train/lr, train/tokens (cumulative), and for MoE moe/balance/<layer>,
    moe/z/<layer>, moe/margin/<layer> and moe/drop/<layer>, as types.Output has them (loads are `RoutingHealth`'s),
    and what retention methods tell of themselves as train/retention/<what>.
    """

    def __init__(self, batch_tokens: int, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"callbacks.log.every={every}: give a number of optimizer steps, at least 1")
        self.batch_tokens, self.every = batch_tokens, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every and step != trainer.max_steps:
            return
        row = {"train/tokens": float(step * self.batch_tokens), **training_metrics(pl_module.last)}
        for logger in trainer.loggers:
            logger.log_metrics(row, step)


def training_metrics(last: dict[str, Any]) -> dict[str, float]:
    """The means of a step under the names that they are logged by."""
    row: dict[str, float] = {}
    for name, value in last.items():
        kind, _, layer = name.partition("/")
        if kind == "load":
            continue
        if kind == "retention":
            row[f"train/{name}"] = float(value)
        elif layer:
            row[f"moe/{name}"] = float(value)
        elif name not in ("tokens", "loss"):
            row[f"train/{'loss' if name == 'ce' else name}"] = float(value)
    return row
