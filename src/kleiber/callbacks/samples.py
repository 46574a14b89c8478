"""Lets the trained model speak: continuations of one prompt, for a person to read. Not a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from kleiber.hooks import Watch
from kleiber.models.generate import generate
from kleiber.sharding import whole
from kleiber.types import Corpus


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
        with whole(pl_module.model):  # type: ignore[arg-type]
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
