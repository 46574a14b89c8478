"""Opens a finished stage of a run, or a Hugging Face folder: its model with the final weights, tokenizer and data.

Evaluation, export, teachers, start points and references all open runs here. A config that was read from disk passes
the same check as one from the command line before any class that it names is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import safe_open

from kleiber.config.check import check
from kleiber.config.errors import ConfigError
from kleiber.config.signatures import build, signature
from kleiber.config.stages import stage_configs
from kleiber.data.tokenizers.byte_level import Bytes
from kleiber.objectives.objective import NAME
from kleiber.records.folder import TOKENIZER, read_config
from kleiber.records.summary import read
from kleiber.runs.inherit import locate
from kleiber.training import checkpoint
from kleiber.types import Config, Json
from kleiber.types.contracts import Corpus, Objective, Tokenizer

HARDWARE = {"_target_": "kleiber.training.Local"}


@dataclass(frozen=True)
class TrainedModel:
    """A model in fp32 in evaluation mode with its tokenizer.

    folder   of the run, or with the Hugging Face model
    config   of the stage, `{}` for a Hugging Face folder, as are `summary` (of the run) and `stage`
    step     of the checkpoint
    """

    folder: Path
    model: Any
    tokenizer: Tokenizer
    config: Config = field(default_factory=dict)
    summary: Config = field(default_factory=dict)
    stage: str | None = None
    step: int = 0

    @property
    def record(self) -> Config:
        """The stage's entry of summary.json."""
        return next((s for s in self.summary.get("stages", []) if s["name"] == self.stage), {})

    @cached_property
    def corpus(self) -> Corpus:
        """The data of the stage."""
        return corpus_of(self.config)

    @cached_property
    def objective(self) -> Objective:
        """The objective of the stage, with what it read of the stage's first model."""
        return objective_at(DictConfig(self.config), self.corpus, self.folder / "stages" / str(self.stage))


def open_model(path: str | Path) -> TrainedModel:
    """Opens RUN, RUN/STAGE (without a stage the last finished one) or a Hugging Face folder, on the CPU.

    Raises ValueError where there is no such stage, its config does not pass the check, or no checkpoint is valid.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return open_hf(folder)
    folder, stage = find_stage(path)
    config = recorded_configs(folder, stage)[stage]
    tokenizer = tokenizer_of(folder, config)
    model = new_model(config, tokenizer.vocab_size)
    saved = load_trained(model, folder, stage)
    summary = read(folder / "summary.json") or {}
    return TrainedModel(folder, model.eval(), tokenizer, config, summary, stage, saved.step)


def open_hf(folder: Path) -> TrainedModel:
    """Opens a Hugging Face folder, its model wrapped as it is."""
    from kleiber.data.tokenizers.pretrained import pretrained
    from kleiber.models.hf import HFModel
    from kleiber.models.hf_config import hf_tokenizer, read_config

    tokenizer = pretrained(hf_tokenizer(folder))
    context = read_config(folder).get("max_position_embeddings", 1024)
    return TrainedModel(folder, HFModel(tokenizer.vocab_size, str(folder), context=context).eval(), tokenizer)


def find_stage(path: str | Path) -> tuple[Path, str]:
    """Folder and stage of RUN or RUN/STAGE. Raises ValueError where there is no such finished stage."""
    try:
        return locate(str(path))
    except ConfigError as error:
        raise ValueError(str(error).replace("init.path=", "")) from None


def recorded_configs(folder: Path, last: str) -> dict[str, Json]:
    """The configs of the stages of a run that lead to `last`, by name and in order; a branch has that of the run.

    Raises ValueError where the recorded config does not pass the check of a config. What it says of hardware is not
    checked: a run that was trained on GPUs can be opened without one.
    """
    config = read_config(folder)
    try:
        check({**config, "trainer": HARDWARE})
    except ConfigError as error:
        raise ValueError(f"{folder / 'config.yaml'}: {error}") from None
    configs = stage_configs(config)
    if last not in configs:
        return {last: dict(config)}
    names = list(configs)
    return {name: configs[name] for name in names[: names.index(last) + 1]}


def corpus_of(config: Config) -> Corpus:
    """The prepared data of a stage's config."""
    return build(DictConfig(config["data"])).prepare(config["model"]["context"])


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


def tokenizer_of(folder: Path, config: Config) -> Tokenizer:
    """The tokenizer of a run: the one in its folder, or the one that its data names."""
    from kleiber.data.tokenizers.pretrained import pretrained

    if (folder / TOKENIZER).is_dir():
        return pretrained(str(folder / TOKENIZER))
    data = config["data"]
    default = signature(str(data["_target_"])).parameters.get("tokenizer")
    name = data.get("tokenizer", default.default if default else None)
    if name == "bytes":
        return Bytes()
    return corpus_of(config).tokenizer if name is None or name == "bpe" else pretrained(name)


def new_model(config: Config, vocab_size: int) -> Any:
    """The model as a run builds it, before any weights are loaded."""
    torch.manual_seed(config["seed"])
    return build(DictConfig(config["model"]), vocab_size=vocab_size)


def load_stage(model: Any, folder: Path, stage: str) -> None:
    """Loads the final weights of a stage into a model that may have other task heads than the stage had.

    Raises ValueError for another model, and Damaged where no checkpoint verifies.
    """
    heads = set(model.heads)
    load_trained(model, folder, stage)
    for name in set(model.heads) - heads:
        del model.heads[name]


def load_trained(model: Any, folder: Path, stage: str) -> checkpoint.Checkpoint:
    """Loads the final weights of a stage with its heads; an adapter's are merged into those it began with."""
    configs = recorded_configs(folder, stage)
    config = configs[stage]
    saved = checkpoint.latest_of(folder / "stages" / stage / "checkpoints")
    add_saved_heads(model, saved)
    if not config.get("adapter"):
        saved.load_weights(model)
        return saved
    before = list(configs)[:-1]
    if before:
        load_trained(model, folder, before[-1])
    else:
        load_first(model, config, folder)
    adapter = build(DictConfig(config["adapter"]))
    adapter.apply(model, config["seed"])
    if saved.names is None:
        saved.load_weights(model)
    else:
        saved.load_model(model, saved.names)
    adapter.merge(model)
    return saved


def load_first(model: Any, config: Config, folder: Path) -> None:
    """Loads what the first stage of a run begins with: weights drawn with its seed, then those of its start point.

    The checkpoint of an adapter lacks these weights, and `model` may have been drawn with another seed; a start point
    need not have all of them (upcycling leaves the routers). Raises ValueError where `model` is another one.
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
        raise ValueError(f"{folder} began with another model: {checkpoint.first_difference(error)}") from None


def add_saved_heads(model: Any, saved: checkpoint.Checkpoint) -> None:
    """Adds the task heads that a checkpoint has weights of."""
    with safe_open(saved.path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if name.startswith("heads.") and name.endswith(".weight"):
                model.add_head(name.split(".")[1], file.get_slice(name).get_shape()[0])


def earlier_models(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(step, model) of every checkpoint of RUN/STAGE but the newest, oldest first; one model, loaded again each time.

    Checkpoints of an adapter hold no whole model and are left out.
    """
    folder, stage = find_stage(path)
    config = recorded_configs(folder, stage)[stage]
    checkpoints = checkpoint.steps(folder / "stages" / stage / "checkpoints")[1:]
    if config.get("adapter") or not checkpoints:
        return
    model = new_model(config, tokenizer_of(folder, config).vocab_size)
    for saved in map(checkpoint.read, reversed(checkpoints)):
        add_saved_heads(model, saved)
        saved.load_weights(model)
        yield saved.step, model.eval()
