"""A finished stage of a run, opened again as it was trained: its config, its model with the weights of its last
checkpoint, its data and its objective.

It reads what the run wrote and writes nothing. It refuses a folder without a good checkpoint of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from kleiber import checkpoint
from kleiber.build import build
from kleiber.chain import stage_config
from kleiber.errors import ConfigError
from kleiber.folder import read_config
from kleiber.inherit import locate
from kleiber.opened import add_saved_heads, load_trained, new_model, objective_at
from kleiber.types import Corpus, Objective


class Loaded(NamedTuple):
    cfg: DictConfig
    model: Any
    corpus: Corpus
    objective: Objective


def load_run(path: Path, stage: str | None = None) -> Loaded:
    """The run at `path` (RUN, or RUN/STAGE) with the newest good checkpoint of `stage`, by default its last.

    The model is on the CPU, in fp32, in evaluation mode. Raises ValueError where there is no such checkpoint.
    """
    home, stage = place(path, stage)
    cfg = config_of(home, stage)
    corpus: Corpus = build(cfg.data).prepare(cfg.model.context)
    model = new_model(cfg, corpus.tokenizer.vocab_size)
    load_trained(model, home, stage)
    return Loaded(cfg, model.eval(), corpus, objective_at(cfg, corpus, home / "stages" / stage))


def place(path: Path, stage: str | None = None) -> tuple[Path, str]:
    """The folder of the run and the stage that are meant. Raises ValueError where there is no such stage."""
    try:
        return locate(str(path if stage is None else path / stage))
    except ConfigError as error:
        raise ValueError(str(error).replace("init.path=", "")) from None


def config_of(home: Path, stage: str) -> DictConfig:
    return DictConfig(stage_config(read_config(home), stage))


def earlier(path: Path, stage: str | None = None) -> Iterator[tuple[int, Any]]:
    """(step, model) of every checkpoint of the stage but the newest, oldest first; one model, loaded anew each time.

    Those of an adapter hold no weights of their own, and are left out.
    """
    home, stage = place(path, stage)
    cfg = config_of(home, stage)
    folders = checkpoint.steps(home / "stages" / stage / "checkpoints")[1:]
    if cfg.get("adapter") or not folders:
        return
    model = new_model(cfg, build(cfg.data).prepare(cfg.model.context).tokenizer.vocab_size)
    for folder in reversed(folders):
        found = checkpoint.read(folder)
        add_saved_heads(model, found)
        found.load_weights(model)
        yield found.step, model.eval()
