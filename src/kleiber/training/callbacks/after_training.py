"""Scores that are taken once, when a stage has made its last step, and stand beside those of `Evaluate`.

They cost no training, and training cannot tell whether they were taken.

After the last step, how fast the model that was trained reads and writes, and what it holds in memory meanwhile.

It measures the machine as it is: what else runs there slows it, and the best of several runs tells most.

After the last step, the held-out loss by position, beside the other scores.

It costs one more pass and no training.

After training, what the mean scores hide: a table with a row a class, and who was taken for whom, as a figure.

Only for objectives with single labels; for all others it does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from kleiber.config.budget import quantity
from kleiber.data.sampler import evaluation_batches
from kleiber.evals.latency import latency, lengths
from kleiber.evals.perplexity import binned, loss_by_position
from kleiber.nn.sharding import full_parameters
from kleiber.training.callbacks.evaluate import Evaluate
from kleiber.training.lightning import Watch
from kleiber.types.contracts import Corpus


class Closing(Watch):
    """After the last step, `score` of the model just trained: into the stage's metrics, its checkpoint and the loggers.

    Of several ranks the first scores alone, with all weights in its hands; random numbers go on as if it had not. It
    asks about the next token, so it refuses models that see it.
    """

    def score(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        """Metrics by name, none of a stage that has nothing to tell. The model is left as it was, its mode included."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not pl_module.model.causal:
            name = type(self).__name__.lower()
            raise ValueError(f"callbacks.{name} asks about the next token: remove it for model=bert")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step != trainer.max_steps:
            return
        with full_parameters(pl_module.model):
            if trainer.is_global_zero:
                self.put(trainer, pl_module)

    def put(self, trainer: Trainer, pl_module: Any) -> None:
        drawing = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(drawing):
            found = self.score(trainer, pl_module)
        if not found:
            return
        evaluate = next(c for c in trainer.callbacks if isinstance(c, Evaluate))  # pyright: ignore[reportAttributeAccessIssue]
        evaluate.latest = {**evaluate.latest, **found}
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)


class Latency(Closing):
    """Logs latency/<what>/<batch>, what `evals.latency` measures: prefill_tokens_per_s, decode_tokens_per_s,
    decode_p50_ms, decode_p95_ms and memory_bytes, as `kleiber eval RUN --evals latency` does.

    batches  rows that are decoded at once, one measurement each
    repeats  rounds of each, after one that warms up

    A stage that others go on from is left out: theirs is the model that is served. Weights are read in the precision
    that they are trained in (fp32 for bf16, whose products alone are rounded); an adapter is not merged. The peak
    memory of a process counts what is held here.
    """

    def __init__(self, branch_steps: Sequence[int] = (), batches: Sequence[int] = (1, 8, 64), repeats: int = 3) -> None:
        if not batches or min(*batches, repeats) < 1:
            raise ValueError(f"callbacks.latency: batches={list(batches)}, repeats={repeats}: each at least 1")
        self.batches, self.repeats, self.is_leaf = batches, repeats, not branch_steps

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        lengths(pl_module.model)  # a context that is too short is told now, and not after training

    def score(self, trainer: Trainer, pl_module: Any) -> dict[str, float]:
        if not self.is_leaf:
            return {}
        prompt, new = lengths(pl_module.model)
        found = latency(pl_module.model, self.batches, prompt, new, self.repeats)
        return {f"latency/{name}": value for name, value in found.items()}


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


MOST = 50  # classes that a figure can show


class Classes(Watch):
    """Writes classes/<task>.json (precision, recall, F1 and support of each class, and the confusion matrix: rows are
    true classes) and, with the extra `report`, classes/<task>.html, after the last step, over all held-out samples.

    rows  samples per forward pass
    """

    def __init__(self, folder: Path, corpus: Corpus, rows: int = 64) -> None:
        if rows < 1:
            raise ValueError(f"callbacks.classes.rows={rows}: score at least one sample at once")
        self.folder, self.corpus, self.rows = folder / "classes", corpus, rows

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step != trainer.max_steps or not pl_module.objective.class_names:
            return
        for task, samples in self.corpus.validation.items():
            scorer = pl_module.objective.scorer()
            with trainer.precision_plugin.val_step_context(), full_parameters(pl_module.model):  # type: ignore[arg-type]
                self.pass_over(pl_module, scorer, samples, trainer.global_rank, trainer.world_size)
            confusion, report = scorer.confusion(), scorer.report()  # every rank: they gather
            if confusion is not None and trainer.is_global_zero:
                self.write(task, report, confusion.tolist())

    @torch.no_grad()
    def pass_over(self, pl_module: Any, scorer: Any, samples: Any, rank: int, world: int) -> None:
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
        told = {"classes": rows, "confusion": confusion}
        (self.folder / f"{task}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False))
        if len(rows) <= MOST and (chart := figure([row["name"] for row in rows], confusion)) is not None:
            options = {"renderer": "svg", "actions": False}
            chart.save(str(self.folder / f"{task}.html"), inline=True, embed_options=options)


def figure(names: list[str], confusion: list[list[int]]) -> Any | None:
    """The confusion matrix, shares of the true class in colour and counts as text; None without altair."""
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
