"""Says on the console how far training is: one line that renews itself in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from kleiber.hooks import Watch


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
