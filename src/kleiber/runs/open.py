"""Opens a finished stage of a run, or a Hugging Face folder: its model with the final weights, tokenizer and data.

Evaluation, export, teachers, start points and reference models all open runs with this module. A config read from disk
passes the same check as one from the command line before any class that it names is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from kleiber.config.errors import ConfigError
from kleiber.config.foreign import check_foreign
from kleiber.config.model_size import check_model_memory
from kleiber.config.permissions import permit_data
from kleiber.config.stages import text_settings
from kleiber.config.targets import build, signature
from kleiber.data.tokenizers import Bytes
from kleiber.records.arrays import REFERENCE
from kleiber.records.folder import TOKENIZER
from kleiber.records.summary_file import read_summary
from kleiber.runs.inherit import locate_stage
from kleiber.runs.recorded_config import recorded_configs
from kleiber.training import checkpoint
from kleiber.training.saved_checkpoint import first_difference
from kleiber.types import Config
from kleiber.types.contracts import Corpus, Objective
from kleiber.types.model import Model
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kleiber.runs.answers import Answers


DEFAULT_CONTEXT = 1024  # longest row of a Hugging Face model that has no limit


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in fp32 and evaluation mode, with its tokenizer.

    folder   folder of the run, or of the Hugging Face model
    config   config of the stage; empty for a Hugging Face folder
    summary  content of the run's summary.json; empty for a Hugging Face folder
    stage    name of the stage; None for a Hugging Face folder
    step     optimizer step of the checkpoint
    """

    folder: Path
    model: Model
    tokenizer: Tokenizer
    config: Config = field(default_factory=dict)
    summary: Config = field(default_factory=dict)
    stage: str | None = None
    step: int = 0

    @property
    def record(self) -> Config:
        """The entry of the stage in summary.json; empty for a Hugging Face folder."""
        return next((s for s in self.summary.get("stages", []) if s["name"] == self.stage), {})

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics of the stage, such as val/wikitext/loss; empty for a Hugging Face folder."""
        return dict(self.record.get("metrics") or {})

    def generate(
        self, prompt: str, tokens: int = 64, temperature: float = 1.0, top_p: float = 1.0, stop: Sequence[str] = (),
        seed: int = 0, datastore: Sequence[str] = (), retrieval: str = "bm25",
    ) -> str:  # fmt: skip
        """Returns the continuation of a prompt, as `kleiber generate` prints it.

        tokens       most tokens of the continuation
        temperature  0 takes the most probable token
        top_p        samples from the most probable tokens that reach this probability
        stop         texts that end the continuation, and are not part of it
        seed         of the draws
        datastore    names or paths of text to look things up in
        retrieval    "bm25" or "dense" puts text of the datastore in front of the prompt, "knn" mixes neighbors in

        Raises ValueError for a model that is not causal, and for text that cannot be read.
        """
        from kleiber.runs.completion import Sampling, continue_prompt, open_lookup

        sampling = Sampling(tokens, float(temperature), float(top_p), tuple(stop), seed)
        return "".join(continue_prompt(self, prompt, sampling, open_lookup(datastore, retrieval)))

    def write(self, rows: int, tokens: int, temperature: float, seed: int) -> Int[Tensor, "rows tokens"]:
        """Returns text that the model writes; see `kleiber.runs.completion.write_streams`."""
        from kleiber.runs.completion import write_streams

        return write_streams(self, rows, tokens, temperature, seed)

    @property
    def answers(self) -> Answers:
        """Answers of the model to many prompts at a time."""
        from kleiber.runs.answers import Answers

        return Answers(self.model, self.tokenizer, self.folder.name)

    @cached_property
    def corpus(self) -> Corpus:
        """The data of the stage, prepared. Raises Unpermitted for data that only the reader can allow to open."""
        return recorded_corpus(self.config, self.folder)

    @cached_property
    def objective(self) -> Objective:
        """The objective of the stage, with the results that it computed when the stage began."""
        return load_objective(DictConfig(self.config), self.corpus, self.folder / "stages" / str(self.stage))


def open_model(path: str | Path, data: Sequence[str] = ()) -> TrainedModel:
    """Opens RUN, RUN/STAGE or a Hugging Face folder on the CPU. RUN alone means its last finished stage.

    data  URLs, patterns and large folders that the run may read its data from, from now on (see `config.foreign`)

    Raises ValueError when the stage does not exist, its config does not pass the check, or no checkpoint is valid.
    """
    permit_data(data)
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return open_hf(folder)
    folder, stage = find_stage(path)
    config = recorded_configs(folder, stage)[stage]
    tokenizer = load_tokenizer(folder, config)
    model = new_model(config, tokenizer.vocab_size)
    saved = load_trained(model, folder, stage)
    summary = read_summary(folder) or {}
    return TrainedModel(folder, model.eval(), tokenizer, config, summary, stage, saved.step)


def open_hf(folder: Path) -> TrainedModel:
    """Opens a Hugging Face folder. The model stays as transformers builds it, wrapped in `HFModel`."""
    from kleiber.data.pretrained_tokenizer import load_pretrained
    from kleiber.models.hf import HFModel
    from kleiber.models.hf_config import hf_tokenizer

    tokenizer = load_pretrained(hf_tokenizer(folder))
    model = HFModel(tokenizer.vocab_size, str(folder), context=1)
    model.context = model.num_positions or DEFAULT_CONTEXT
    return TrainedModel(folder, model.eval(), tokenizer)


def find_stage(path: str | Path) -> tuple[Path, str]:
    """Returns folder and stage of RUN or RUN/STAGE. Raises ValueError when there is no such finished stage."""
    try:
        return locate_stage(str(path))
    except ConfigError as error:
        raise ValueError(str(error).replace("init.path=", "")) from None


def prepare_corpus(config: Config) -> Corpus:
    """Builds and prepares the data of a stage's config."""
    return build(DictConfig(config["data"]), open_model=open_model).prepare(config["model"]["context"])


def recorded_corpus(config: Config, folder: Path) -> Corpus:
    """Builds and prepares the data of a stage's config that the run in `folder` has recorded."""
    check_foreign({"data": config["data"]}, folder / "config.yaml")
    return prepare_corpus(config)


def build_objective(config: DictConfig, corpus: Corpus) -> Objective:
    """Builds the objective of a stage's config. One with a teacher opens it when it trains."""
    supplied = {"vocabulary": corpus.tokenizer, "corpus": corpus, "open_model": open_model, "run_seed": config.seed}
    return build(config.objective, **supplied)


def load_objective(config: DictConfig, corpus: Corpus, folder: Path) -> Objective:
    """Builds the objective of a trained stage and loads the results that it computed when the stage began.

    folder  folder of the stage; a branch finds the results in the folder of its trunk
    """
    objective = build_objective(config, corpus)
    for place in (folder, folder.with_name("trunk")):
        if (place / f"{REFERENCE}.npz").is_file():
            objective.begin(None, corpus, place)
            break
    return objective


def load_tokenizer(folder: Path, config: Config) -> Tokenizer:
    """Loads the tokenizer of a run: the one in its folder if there is one, else the one that its config names."""
    from kleiber.data.pretrained_tokenizer import load_pretrained

    data = text_settings(config["data"])
    default = signature(str(data["_target_"])).parameters.get("tokenizer")
    name = data.get("tokenizer", default.default if default else None)
    if (folder / TOKENIZER).is_dir():
        tokenizer = load_pretrained(str(folder / TOKENIZER))
    elif name is None or name == "bpe":
        return recorded_corpus(config, folder).tokenizer
    else:
        tokenizer = Bytes() if name == "bytes" else load_pretrained(name)
    return tokenizer.with_separator(data.get("separator"))


def new_model(config: Config, vocab_size: int) -> Model:
    """Builds the model of a config with the initial weights of a run: drawn with the seed of the config.

    Raises ConfigError where this machine cannot hold them.
    """
    check_model_memory(config["model"], vocab_size)
    torch.manual_seed(config["seed"])
    return build(DictConfig(config["model"]), vocab_size=vocab_size)


def add_heads(model: Model, sizes: Mapping[str, int]) -> None:
    """Adds task heads to a model.

    sizes  number of outputs of each head, by name
    """
    for name, outputs in sizes.items():
        model.add_head(name, outputs)


def head_sizes(model: Model) -> dict[str, int]:
    """Returns the number of outputs of each task head of a model, by name."""
    return {name: len(head.get_parameter("weight")) for name, head in model.heads.items()}


def freeze_unused_heads(model: Model, objectives: Sequence[Objective]) -> None:
    """Freezes the output layers that none of the objectives reads, because they get no gradient.

    objectives  that of the stage, and those of earlier tasks that it trains too
    """
    read = {name for objective in objectives for name in objective.outputs}
    for name, head in model.heads.items():
        if name not in read:
            head.requires_grad_(False)
    if all(objective.outputs for objective in objectives):
        model.freeze_head()


def load_stage(model: Model, folder: Path, stage: str) -> None:
    """Loads the final weights of a stage into a model that may have other task heads than the stage had.

    Raises ValueError when the stage trained a different model, and Damaged when no checkpoint is valid.
    """
    heads = set(model.heads)
    load_trained(model, folder, stage)
    for name in set(model.heads) - heads:
        del model.heads[name]


def load_trained(model: Model, folder: Path, stage: str) -> checkpoint.Checkpoint:
    """Loads the final weights of a stage and its task heads, and returns the checkpoint.

    If the stage trained an adapter, loads the weights that the stage began with and merges the adapter into them.
    """
    configs = recorded_configs(folder, stage)
    config = configs[stage]
    saved = checkpoint.latest_of(folder / "stages" / stage / "checkpoints")
    add_saved_heads(model, saved)
    if not config.get("adapter"):
        saved.load_weights(model)
        return saved
    stages_before = list(configs)[:-1]
    if stages_before:
        load_trained(model, folder, stages_before[-1])
    else:
        load_initial_weights(model, config, folder)
    adapter = build(DictConfig(config["adapter"]))
    from kleiber.nn.sharded_model import whole_model

    with whole_model(model) as whole:
        adapter.apply(whole, config["seed"])
        saved.load_weights(whole) if saved.names is None else saved.load_model(whole, saved.names)
        adapter.merge(whole)
    return saved


def load_initial_weights(model: Model, config: Config, folder: Path) -> None:
    """Loads the weights that the first stage of a run began with: drawn with its seed, then those of its start point.

    The checkpoint of an adapter lacks these weights, and `model` may have been drawn with another seed. A start point
    need not hold all weights (upcycling leaves out the routers). Raises ValueError when the run has a different model.
    """
    with torch.random.fork_rng(devices=[]):
        start = new_model(config, model.vocab_size)
    add_heads(start, head_sizes(model))
    if config.get("init"):
        build(DictConfig(config["init"])).load(start)
    try:
        from kleiber.nn.sharded_model import whole_model

        with whole_model(model) as whole:
            whole.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the run {folder} started from another shape: {first_difference(error)}") from None


def add_saved_heads(model: Model, saved: checkpoint.Checkpoint) -> None:
    """Adds the task heads whose weights are in a checkpoint."""
    for name, shape in saved.shapes().items():
        if name.startswith("heads.") and name.endswith(".weight"):
            model.add_head(name.split(".")[1], shape[0])
