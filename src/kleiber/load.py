"""A finished or unfinished run, opened again: its config, its model with the weights of a checkpoint, its data.

It reads what the run wrote and writes nothing. It refuses a folder without a good checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from kleiber import checkpoint
from kleiber.build import build
from kleiber.folder import read_config
from kleiber.plan import build_model
from kleiber.summary import read
from kleiber.types import Corpus, Objective


class Loaded(NamedTuple):
    cfg: DictConfig
    model: Any
    corpus: Corpus
    objective: Objective


def load_run(path: Path, stage: str | None = None) -> Loaded:
    """The run at `path` (RUN, or RUN/STAGE) with the newest good checkpoint of `stage`, by default its last.

    The model is on the CPU, in the run's precision, in evaluation mode. Raises ValueError where there is no checkpoint.
    """
    home, stage = place(path, stage)
    cfg = OmegaConf.create(read_config(home))
    found, complaints = checkpoint.latest(checkpoints_of(home, stage))
    if found is None:
        told = f" ({'; '.join(complaints)})" if complaints else ""
        raise ValueError(f"{home}: stage {stage} has no checkpoint{told}")
    corpus = build(cfg.data).prepare(cfg.model.context)
    model = build_model(cfg, corpus).to(precision(cfg))
    found.load_model(model)
    return Loaded(cfg, model.eval(), corpus, build(cfg.objective, vocabulary=corpus.tokenizer))


def place(path: Path, stage: str | None = None) -> tuple[Path, str]:
    """The folder of the run and the stage that are meant."""
    home = path
    if stage is None and not (path / "config.yaml").exists() and (path.parent / "config.yaml").exists():
        home, stage = path.parent, path.name
    told = [entry["name"] for entry in (read(home / "summary.json") or {}).get("stages") or []]
    there = sorted(folder.name for folder in (home / "stages").glob("*") if checkpoint.steps(folder / "checkpoints"))
    if stage is None:
        return home, next((str(name) for name in reversed(told) if name in there), there[-1] if there else "main")
    if stage not in there:
        raise ValueError(f"{home}: no stage {stage} with a checkpoint; there are: {', '.join(there) or 'none'}")
    return home, stage


def earlier(path: Path, stage: str | None = None) -> Iterator[tuple[int, Any]]:
    """(step, model) of every checkpoint of the stage but the newest, oldest first; one model, loaded anew each time."""
    home, stage = place(path, stage)
    cfg = OmegaConf.create(read_config(home))
    model: Any = None
    for folder in reversed(checkpoint.steps(checkpoints_of(home, stage))[1:]):
        if model is None:
            model = build_model(cfg, build(cfg.data).prepare(cfg.model.context)).to(precision(cfg)).eval()
        found = checkpoint.read(folder)
        found.load_model(model)
        yield found.step, model


def checkpoints_of(home: Path, stage: str) -> Path:
    return home / "stages" / stage / "checkpoints"


def precision(cfg: DictConfig) -> torch.dtype:
    return torch.float64 if str(cfg.trainer.precision) == "64" else torch.float32
