"""Logs the training metrics of single optimizer steps. Rows are not averages, so nothing has to be resumed.

Says on the console how far training is: one line that renews itself in a terminal, a line now and then in a log.

Lets the trained model speak: continuations of one prompt, for a person to read. Not a metric.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from kleiber.models.generate import generate
from kleiber.nn.sharding import full_parameters
from kleiber.training.lightning import Watch
from kleiber.types.contracts import Corpus


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


class Progress(Watch):
    """Step, loss, learning rate, tokens/s and time left, every `seconds` in a log and twice a second in a terminal."""

    def __init__(self, batch_tokens: int, seconds: float = 10.0) -> None:
        self.batch_tokens, self.seconds = batch_tokens, seconds
        self.live = sys.stderr.isatty()
        self._began = self._said = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._said = time.perf_counter()
        self._first = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        now, step = time.perf_counter(), trainer.global_step
        last = step == trainer.max_steps
        if not trainer.is_global_zero or (now - self._said < (0.5 if self.live else self.seconds) and not last):
            return
        self._said = now
        speed = (step - self._first) / (now - self._began)
        left = (trainer.max_steps - step) / speed
        stats = pl_module.last
        line = (
            f"step {step:,}/{trainer.max_steps:,}  loss {float(stats['ce']):.3f}  lr {stats['lr']:.2e}  "
            f"{speed * self.batch_tokens:,.0f} tokens/s  {int(left // 60)}:{int(left % 60):02d} left"
        )
        end = "\n" if last or not self.live else ""
        print(f"\r{line:<100}" if self.live else line, end=end, file=sys.stderr, flush=True)


class Samples(Watch):
    """Writes `num` continuations of `length` tokens after the last step, to samples.txt and to W&B as a table.

    prompt       None takes the start of a validation text
    temperature  0 would make all continuations the same, so it must be positive
    """

    def __init__(
        self,
        folder: Path,
        corpus: Corpus,
        num: int = 3,
        length: int = 120,
        temperature: float = 0.7,
        prompt: str | None = None,
        seed: int = 0,
    ) -> None:
        if num < 1 or length < 1 or temperature <= 0:
            raise ValueError(
                f"callbacks.samples: num={num}, length={length} must be at least 1, temperature={temperature} positive"
            )
        self.path, self.corpus = folder / "samples.txt", corpus
        self.num, self.length, self.temperature, self.prompt, self.seed = num, length, temperature, prompt, seed
        self.texts: list[str] = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        with full_parameters(pl_module.model):  # type: ignore[arg-type]
            if trainer.is_global_zero:
                self.write(pl_module.model, trainer.loggers)

    def write(self, model: Any, loggers: list[Any]) -> None:
        """Generates, writes and shows. A bidirectional model has no continuation, so it is left alone."""
        if not model.causal:
            return
        tokenizer = self.corpus.tokenizer
        ids = tokenizer.encode(self.prompt) if self.prompt else self._validation_prompt()
        device = next(model.parameters()).device
        prompts = torch.tensor([ids] * self.num, device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        made = generate(model, prompts, self.length, temperature=self.temperature, generator=generator)
        start = tokenizer.decode(ids)
        self.texts = [tokenizer.decode(row[len(ids) :].tolist()) for row in made.cpu()]
        blocks = [f"--- {number}\n{start}>>>{text}\n" for number, text in enumerate(self.texts, start=1)]
        self.path.write_text("".join(blocks))
        for logger in loggers:
            if hasattr(logger, "log_text"):
                rows = [[start, text] for text in self.texts]
                logger.log_text("samples", columns=["prompt", "continuation"], data=rows)

    def _validation_prompt(self, tokens: int = 32) -> list[int]:
        samples = next(iter(self.corpus.validation.values()))
        import numpy as np

        batch = samples.gather(np.array([len(samples) // 2]))
        return batch.tokens[0, :tokens].tolist()
