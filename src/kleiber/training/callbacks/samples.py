"""The callback that writes text samples after the last step of a stage; it leaves the training as it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge, Le

from kleiber.models.generation import generate
from kleiber.nn.sharding import joint_passes, waits_for_ranks
from kleiber.records.files import write_text
from kleiber.records.progress import activity
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.training.loggers import Logger, StageLogger
from kleiber.types import Positive, Seed
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model, device_of

if TYPE_CHECKING:
    pass


class Samples(LeanCallback):
    """Writes `num` continuations of a prompt to samples.txt and to a W&B table after the last step.

    An objective that trains no prediction of next tokens, such as classify, has none.

    length       tokens of each continuation, of which those behind the end of an answer are left out
    prompt       text to continue; None takes the start of a validation text, or the question of a conversation
    temperature  must be positive, because all continuations would be the same at 0
    """

    def __init__(
        self,
        folder: Path,
        corpus: Corpus,
        num: Annotated[int, Ge(1), Le(10_000)] = 3,
        length: Annotated[int, Ge(1), Le(100_000)] = 120,
        temperature: Positive = 0.7,
        prompt: str | None = None,
        seed: Seed = 0,
    ) -> None:
        self.path, self.corpus = folder / "samples.txt", corpus
        self.num, self.length, self.temperature, self.prompt, self.seed = num, length, temperature, prompt, seed
        self.texts: list[str] = []

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Generates the continuations after the last step, on rank 0; on all ranks where the model is sharded."""
        if trainer.global_step != trainer.max_steps or not pl_module.objective.needs_causal:
            return
        model = pl_module.model
        precision = trainer.precision_plugin.val_step_context()  # in which trainer=fsdp gathers weights
        with joint_passes(model), precision, activity("writing sample continuations"):
            if trainer.is_global_zero or waits_for_ranks(model):
                self.write(model, trainer.loggers, trainer.is_global_zero)

    def write(self, model: Model, loggers: Sequence[Logger], is_writer: bool = True) -> None:
        """Generates, writes and logs the continuations; does nothing for a model that is not causal.

        is_writer  False: only generates them, together with other ranks
        """
        if not model.causal:
            return
        tokenizer = self.corpus.tokenizer
        question = None if self.prompt else self._validation_question(model.context)
        ids = tokenizer.encode_prompt(self.prompt) if self.prompt else question or self._validation_prompt()
        device = device_of(model)
        prompts = torch.tensor([ids] * self.num, device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        rows = generate(model, prompts, self.length, temperature=self.temperature, generator=generator)
        if not is_writer:
            return
        start, written = tokenizer.decode(ids), [row[len(ids) :] for row in rows.cpu().tolist()]
        if question is not None:
            written = [list(takewhile(lambda token: token != tokenizer.eos, row)) for row in written]
        self.texts = [tokenizer.decode(row) for row in written]
        blocks = [f"--- {number}\n{start}>>>{text}\n" for number, text in enumerate(self.texts, start=1)]
        write_text(self.path, "".join(blocks))
        for logger in loggers:
            if isinstance(logger, StageLogger):
                logger.log_rows("samples", ["prompt", "continuation"], [[start, text] for text in self.texts])

    def _validation_question(self, context: int) -> list[int] | None:
        """The ids of a validation conversation in front of its answer; None for other data or a long one."""
        samples = next(iter(self.corpus.validation.values()))
        question = samples.question(len(samples) // 2)
        return None if question is None or len(question[0]) > context else question[0]

    def _validation_prompt(self, tokens: int = 32) -> list[int]:
        samples = next(iter(self.corpus.validation.values()))
        batch = samples.gather(np.array([len(samples) // 2]))
        return batch.tokens[0, :tokens].tolist()
