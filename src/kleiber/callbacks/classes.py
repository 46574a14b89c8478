"""After training, what the mean scores hide: a table with a row a class, and who was taken for whom, as a figure.

Only for objectives with single labels; for all others it does nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from kleiber.data.sampler import evaluation_batches
from kleiber.hooks import Watch
from kleiber.sharding import whole
from kleiber.types import Corpus

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        make = getattr(pl_module.objective, "scorer", None)
        if trainer.global_step != trainer.max_steps or make is None or not hasattr(make(), "report"):
            return
        for task, samples in self.corpus.validation.items():
            scorer = make()
            with trainer.precision_plugin.val_step_context(), whole(pl_module.model):  # type: ignore[arg-type]
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
