"""Callbacks that run once, after the last step of a stage: scores of classes, and text samples.

They do not change the training or its random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge, Le

from kleiber.data.batches import evaluation_batches
from kleiber.models.generation import generate
from kleiber.nn.sharding import full_parameters, joint_passes, waits_for_ranks
from kleiber.objectives.classify import ClassifyScorer, ClassRow
from kleiber.records.files import write_text
from kleiber.records.progress import activity
from kleiber.records.regular_files import make_folder, path_inside
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.training.loggers import Logger, StageLogger
from kleiber.types import Count, Positive, Seed
from kleiber.types.contracts import Corpus, HeldOut, Scorer
from kleiber.types.model import Model, device_of, evaluation_mode

if TYPE_CHECKING:
    from altair import FacetChart, LayerChart


MOST_CLASSES = 50  # classes that a figure can show


class Classes(LeanCallback):
    """Writes precision, recall, F1 and support of each class, and the confusion matrix, of all held-out samples.

    They are written to classes/<task>.json and, with the extra `report`, to classes/<task>.html. Rows of the matrix are
    true classes. Does nothing for objectives whose samples do not have exactly one label.

    rows  samples per forward pass
    """

    def __init__(self, folder: Path, corpus: Corpus, rows: Count = 64) -> None:
        self.folder, self.corpus, self.rows = folder / "classes", corpus, rows

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Scores every task of the stage after its last step, and writes the results on rank 0."""
        if trainer.global_step != trainer.max_steps or not pl_module.objective.class_names:
            return
        for task, samples in self.corpus.validation.items():
            scorer = pl_module.objective.scorer()
            assert isinstance(scorer, ClassifyScorer), "an objective with class_names has the scorer of `classify`"
            with trainer.precision_plugin.val_step_context(), full_parameters(pl_module.model):
                self.score(pl_module, scorer, samples, trainer.global_rank, trainer.world_size)
            confusion, report = scorer.confusion(), scorer.report()  # every rank: they gather
            if confusion is not None and trainer.is_global_zero:
                self.write(task, report, confusion.tolist())

    @torch.no_grad()
    def score(self, pl_module: LitLM, scorer: Scorer, samples: HeldOut, rank: int, world: int) -> None:
        """Adds this rank's part of the samples to the scorer; every rank takes all where there are fewer than ranks."""
        share = (rank, world) if len(samples) >= world else (0, 1)
        with evaluation_mode(pl_module.model):
            for batch in evaluation_batches(samples, self.rows, None, *share):
                scorer.add(pl_module.model, batch.to(pl_module.device))

    def write(self, task: str, report: list[ClassRow], confusion: list[list[int]]) -> None:
        """Writes the results of a task as JSON, and as HTML where altair is installed and the classes are few."""
        make_folder(self.folder.parent, self.folder.name)
        rows = [vars(row) for row in report]
        table = json.dumps({"classes": rows, "confusion": confusion}, indent=1, ensure_ascii=False)
        write_text(path_inside(self.folder, f"{task}.json"), table)
        if len(rows) <= MOST_CLASSES and (chart := figure([row["name"] for row in rows], confusion)) is not None:
            from kleiber.charts.page import render_page

            page = render_page(f"Classes of {task}", {"confusion": chart})
            write_text(path_inside(self.folder, f"{task}.html"), page)


def figure(names: list[str], confusion: list[list[int]]) -> LayerChart | FacetChart | None:
    """The confusion matrix: colors are shares of the true class, text is counts. None where altair is not installed."""
    try:
        import altair
    except ImportError:
        return None
    cells = [
        {"true": names[i], "predicted": names[j], "count": count, "share": count / max(1, sum(row))}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
    ]
    base = altair.Chart(altair.Data(values=cells)).encode(
        x=altair.X("predicted:N", sort=names, title="predicted"), y=altair.Y("true:N", sort=names, title="true class")
    )
    scale = altair.Scale(scheme="blues", domain=[0, 1])
    heat = base.mark_rect().encode(
        color=altair.Color("share:Q", scale=scale, title="share"),
        tooltip=["true:N", "predicted:N", "count:Q", altair.Tooltip("share:Q", format=".1%")],
    )
    dark = altair.condition("datum.share > 0.5", altair.value("white"), altair.value("black"))
    return altair.layer(heat, base.mark_text().encode(text="count:Q", color=dark))


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
        with joint_passes(model), activity("writing sample continuations"):
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
