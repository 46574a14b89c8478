"""A run, or a Hugging Face folder, opened for use: its model with its final weights, and its tokenizer.

What an adapter trained is merged into the weights that it began with. Nothing is trained or written here.

A finished stage of a run, opened again as it was trained: its config, its model with the weights of its last
checkpoint, its data and its objective.

It reads what the run wrote and writes nothing. It refuses a folder without a good checkpoint of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from safetensors import safe_open

from kleiber.config.errors import ConfigError
from kleiber.config.signatures import build, signature
from kleiber.config.stages import stage_config, stage_configs
from kleiber.data.tokenizers.byte_level import Bytes
from kleiber.objectives.objective import NAME
from kleiber.records.folder import TOKENIZER, read_config
from kleiber.records.summary import read
from kleiber.runs.inherit import locate
from kleiber.training import checkpoint
from kleiber.types.contracts import Corpus, Objective, Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model in fp32 in evaluation mode, its tokenizer, and for a run where it came from.

    config   of the stage, `{}` for a Hugging Face folder
    summary  of the run, `{}` for a Hugging Face folder
    """

    name: str
    model: Any
    tokenizer: Tokenizer
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    stage: str | None = None
    step: int = 0

    @property
    def record(self) -> Mapping[str, Any]:
        """The stage's entry of summary.json."""
        return next((s for s in self.summary.get("stages", []) if s["name"] == self.stage), {})


def open_model(path: str) -> Opened:
    """RUN, RUN/STAGE or a Hugging Face folder. Raises ValueError where neither is there."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return open_hf(folder)
    try:
        folder, stage = locate(path)
    except ConfigError as error:
        raise ValueError(str(error).replace("init.path=", "")) from None
    config = stage_config(read_config(folder), stage)
    tokenizer = tokenizer_of(folder, config)
    model = new_model(config, tokenizer.vocab_size)
    found = load_trained(model, folder, stage)
    summary = read(folder / "summary.json") or {}
    return Opened(folder.name, model.eval(), tokenizer, config, summary, stage, found.step)


def objective_of(config: DictConfig, corpus: Corpus) -> Objective:
    """The objective of a stage's config on a corpus; one that learns from another run opens it."""
    return build(config.objective, vocabulary=corpus.tokenizer, corpus=corpus, open_model=open_model)


def objective_at(config: DictConfig, corpus: Corpus, place: Path) -> Objective:
    """The objective of a stage that was trained in `place`, where what it asked the model at first is read again."""
    objective = objective_of(config, corpus)
    kept = [home for home in (place, place.with_name("trunk")) if (home / f"{NAME}.npz").is_file()]
    if kept:
        objective.begin(None, corpus, kept[0])
    return objective


def open_hf(folder: Path) -> Opened:
    """A Hugging Face folder, wrapped as it is."""
    from kleiber.data.tokenizers.pretrained import pretrained
    from kleiber.models.hf import HFModel
    from kleiber.models.hf_config import hf_tokenizer, read_config

    tokenizer = pretrained(hf_tokenizer(folder))
    longest = read_config(folder).get("max_position_embeddings", 1024)
    return Opened(folder.name, HFModel(tokenizer.vocab_size, str(folder), context=longest).eval(), tokenizer)


def tokenizer_of(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a run: what it keeps, or what its data names."""
    from kleiber.data.tokenizers.pretrained import pretrained

    if (folder / TOKENIZER).is_dir():
        return pretrained(str(folder / TOKENIZER))
    data = config["data"]
    default = signature(str(data["_target_"])).parameters.get("tokenizer")
    name = data.get("tokenizer", default.default if default else None)
    if name == "bytes":
        return Bytes()
    if name is None or name == "bpe":
        return build(DictConfig(data)).prepare(config["model"]["context"]).tokenizer
    return pretrained(name)


def new_model(config: Mapping[str, Any], vocab_size: int) -> Any:
    """The model as a run builds it, before any weights are loaded."""
    torch.manual_seed(config["seed"])
    return build(DictConfig(config["model"]), vocab_size=vocab_size)


def load_trained(model: Any, folder: Path, stage: str) -> checkpoint.Checkpoint:
    """The final weights of a stage, with the heads that it had; an adapter's are merged into those it began with."""
    configs = stage_configs(read_config(folder))
    config = stage_config(read_config(folder), stage)
    place = folder / "stages" / stage / "checkpoints"
    found, complaints = checkpoint.latest(place)
    if found is None:
        raise checkpoint.Damaged(f"{place} has no good checkpoint: {'; '.join(complaints)}")
    add_saved_heads(model, found)
    if not config.get("adapter"):
        found.load_weights(model)
        return found
    before = list(configs)[: list(configs).index(stage)] if stage in configs else []
    if before:
        load_trained(model, folder, before[-1])
    else:
        load_start(model, config, folder)
    adapter = build(DictConfig(config["adapter"]))
    adapter.apply(model, config["seed"])
    if found.names is None:
        found.load_weights(model)
    else:
        found.load_model(model, found.names)
    adapter.merge(model)
    return found


def load_start(model: Any, config: Mapping[str, Any], folder: Path) -> None:
    """What the first stage of a run begins with: its model as its own seed draws it, then what its start point gives.

    The checkpoint of an adapter lacks these weights, and `model` may have been drawn by another seed; a start point
    need not give all of them (upcycling leaves the routers). Raises ValueError where `model` is another one.
    """
    with torch.random.fork_rng(devices=[]):
        start = new_model(config, model.vocab_size)
    for name, head in model.heads.items():
        start.add_head(name, len(head.weight))
    if config.get("init"):
        build(DictConfig(config["init"])).load(start)
    try:
        model.load_state_dict(start.state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{folder} began with another model: {first}") from None


def add_saved_heads(model: Any, found: checkpoint.Checkpoint) -> None:
    """Gives the model the heads of tasks that a checkpoint holds weights for."""
    with safe_open(found.path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if name.startswith("heads.") and name.endswith(".weight"):
                model.add_head(name.split(".")[1], file.get_slice(name).get_shape()[0])


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
