"""The callback that scores each class after the last step of a stage; it leaves the training as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kleiber.data.batches import evaluation_batches
from kleiber.nn.sharding import full_parameters
from kleiber.records.files import write_text
from kleiber.records.regular_files import make_folder, path_inside
from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Count
from kleiber.types.contracts import Corpus, HeldOut, Scorer
from kleiber.types.model import evaluation_mode

if TYPE_CHECKING:
    from altair import FacetChart, LayerChart

    from kleiber.objectives.classify import ClassRow


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
        from kleiber.objectives.classify import ClassifyScorer

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
