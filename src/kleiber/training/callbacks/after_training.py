"""Callbacks that run once, after the last step of a stage: latency, loss by position, classes, and text samples.

They change nothing about training or its random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kleiber.config.stages import quantity
from kleiber.data.batches import evaluation_batches
from kleiber.evals.latency import latency, lengths
from kleiber.evals.perplexity import bin_by_position, loss_by_position
from kleiber.models.generate import generate
from kleiber.records.summary import StageRecord
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.training.loggers import Logger, StageLogger
from kleiber.training.sharding import full_parameters
from kleiber.types.contracts import Corpus
from kleiber.types.model import Model


class FinalScore(LeanCallback):
    """Takes `score` of the trained model after the last step, into the stage's metrics, its checkpoint and the loggers.

    Rank 0 scores alone, with all weights, and restores the random state. A score is about the next token, so models
    that are not causal are refused.

    record  receives the scores
    """

    def __init__(self, record: StageRecord) -> None:
        self.record = record

    def score(self, trainer: Trainer, pl_module: LitLM) -> dict[str, float]:
        """Metrics by name, {} to leave a stage out. The model is left as it was, its mode included."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        if not pl_module.model.causal:
            name = type(self).__name__.lower()
            raise ValueError(f"callbacks.{name} scores the next token, which model=bert sees: remove this callback")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        with full_parameters(pl_module.model):
            if trainer.is_global_zero:
                self.put(trainer, pl_module)

    def put(self, trainer: Trainer, pl_module: LitLM) -> None:
        """Scores, records and logs."""
        drawing = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(drawing):
            metrics = self.score(trainer, pl_module)
        if not metrics:
            return
        self.record.add_scores(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, trainer.global_step)


class Latency(FinalScore):
    """Logs the measurements of `evals.latency` as latency/<name>/<batch>: prefill_tokens_per_s, decode_tokens_per_s,
    decode_p50_ms, decode_p95_ms and memory_bytes, as `kleiber eval RUN --evals latency` does.

    batches  rows that are decoded at once, one measurement each
    repeats  rounds of each, after one that warms up

    A stage that others continue is left out, because its model is not the one that is served. Weights are read in the
    precision that they are trained in (fp32 for bf16, whose products alone are rounded); an adapter is not merged. The
    peak memory includes that of training. Other processes on the machine slow it down.
    """

    def __init__(
        self,
        record: StageRecord,
        branch_steps: Sequence[int] = (),
        batches: Sequence[int] = (1, 8, 64),
        repeats: int = 3,
    ) -> None:
        super().__init__(record)
        if not batches or min(*batches, repeats) < 1:
            raise ValueError(f"callbacks.latency: batches={list(batches)} and repeats={repeats} must be >= 1")
        self.batches, self.repeats, self.is_leaf = batches, repeats, not branch_steps

    def on_fit_start(self, trainer: Trainer, pl_module: LitLM) -> None:
        super().on_fit_start(trainer, pl_module)
        lengths(pl_module.model)  # refuses a context that is too short before training

    def score(self, trainer: Trainer, pl_module: LitLM) -> dict[str, float]:
        if not self.is_leaf:
            return {}
        prompt, new = lengths(pl_module.model)
        measured = latency(pl_module.model, self.batches, prompt, new, self.repeats)
        return {f"latency/{name}": value for name, value in measured.items()}


class Positions(FinalScore):
    """Logs val/<domain>/position/<t> (nats per target): mean loss of targets up to position t and beyond t/2.

    tokens  targets scored per domain, from the first on; None for all
    rows    samples per forward pass
    """

    def __init__(
        self, record: StageRecord, corpus: Corpus, tokens: int | float | str | None = "512K", rows: int = 16
    ) -> None:
        super().__init__(record)
        if rows < 1:
            raise ValueError(f"callbacks.positions.rows={rows} must be >= 1")
        self.corpus, self.rows = corpus, rows
        self.tokens = None if tokens is None else round(quantity(tokens))

    def score(self, trainer: Trainer, pl_module: LitLM) -> dict[str, float]:
        losses: dict[str, float] = {}
        for domain, samples in self.corpus.validation.items():
            batches = evaluation_batches(samples.first(self.tokens), self.rows, None, 0, 1)
            with trainer.precision_plugin.val_step_context():
                sums = loss_by_position(pl_module.model, batches, pl_module.device)
            losses |= {f"val/{domain}/position/{end}": value for end, value in bin_by_position(*sums).items()}
        return losses


MOST_CLASSES = 50  # that a figure can show


class Classes(LeanCallback):
    """Writes precision, recall, F1 and support of each class and the confusion matrix (rows are true classes) of all
    held-out samples to classes/<task>.json and, with the extra `report`, to classes/<task>.html.

    Does nothing for objectives whose samples do not have exactly one label.

    rows  samples per forward pass
    """

    def __init__(self, folder: Path, corpus: Corpus, rows: int = 64) -> None:
        if rows < 1:
            raise ValueError(f"callbacks.classes.rows={rows} must be >= 1")
        self.folder, self.corpus, self.rows = folder / "classes", corpus, rows

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        if trainer.global_step != trainer.max_steps or not pl_module.objective.class_names:
            return
        for task, samples in self.corpus.validation.items():
            scorer: Any = pl_module.objective.scorer()
            with trainer.precision_plugin.val_step_context(), full_parameters(pl_module.model):  # type: ignore[arg-type]
                self.pass_over(pl_module, scorer, samples, trainer.global_rank, trainer.world_size)
            confusion, report = scorer.confusion(), scorer.report()  # every rank: they gather
            if confusion is not None and trainer.is_global_zero:
                self.write(task, report, confusion.tolist())

    @torch.no_grad()
    def pass_over(self, pl_module: LitLM, scorer: Any, samples: Any, rank: int, world: int) -> None:
        model = pl_module.model
        training = model.training
        model.eval()
        for batch in evaluation_batches(
            samples, self.rows, None, *((rank, world) if len(samples) >= world else (0, 1))
        ):
            scorer.add(model, batch.to(pl_module.device))
        model.train(training)

    def write(self, task: str, report: list[Any], confusion: list[list[int]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [vars(row) for row in report]
        table = json.dumps({"classes": rows, "confusion": confusion}, indent=1, ensure_ascii=False)
        (self.folder / f"{task}.json").write_text(table)
        if len(rows) <= MOST_CLASSES and (chart := figure([row["name"] for row in rows], confusion)) is not None:
            options = {"renderer": "svg", "actions": False}
            chart.save(str(self.folder / f"{task}.html"), inline=True, embed_options=options)


def figure(names: list[str], confusion: list[list[int]]) -> Any | None:
    """The confusion matrix, shares of the true class as colors and counts as text; None without altair."""
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
    return heat + base.mark_text().encode(text="count:Q", color=dark)


class Samples(LeanCallback):
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
                f"callbacks.samples: num={num} and length={length} must be >= 1, temperature={temperature} > 0"
            )
        self.path, self.corpus = folder / "samples.txt", corpus
        self.num, self.length, self.temperature, self.prompt, self.seed = num, length, temperature, prompt, seed
        self.texts: list[str] = []

    def on_train_end(self, trainer: Trainer, pl_module: LitLM) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        with full_parameters(pl_module.model):  # type: ignore[arg-type]
            if trainer.is_global_zero:
                self.write(pl_module.model, trainer.loggers)

    def write(self, model: Model, loggers: Sequence[Logger]) -> None:
        """Generates, writes and logs the continuations; does nothing for a bidirectional model, which has none."""
        if not model.causal:
            return
        tokenizer = self.corpus.tokenizer
        ids = tokenizer.encode(self.prompt) if self.prompt else self._validation_prompt()
        device = next(model.parameters()).device
        prompts = torch.tensor([ids] * self.num, device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        rows = generate(model, prompts, self.length, temperature=self.temperature, generator=generator)
        start = tokenizer.decode(ids)
        self.texts = [tokenizer.decode(row[len(ids) :].tolist()) for row in rows.cpu()]
        blocks = [f"--- {number}\n{start}>>>{text}\n" for number, text in enumerate(self.texts, start=1)]
        self.path.write_text("".join(blocks))
        for logger in loggers:
            if isinstance(logger, StageLogger):
                logger.log_rows("samples", ["prompt", "continuation"], [[start, text] for text in self.texts])

    def _validation_prompt(self, tokens: int = 32) -> list[int]:
        samples = next(iter(self.corpus.validation.values()))
        batch = samples.gather(np.array([len(samples) // 2]))
        return batch.tokens[0, :tokens].tolist()
