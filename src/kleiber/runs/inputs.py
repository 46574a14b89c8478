"""The inputs of a run: hashes of the data, the tokenizers and the trained weights that it reads.

summary.json notes them when a run starts, and a resumed run must read the same content. A hash is one of content, so a
file that was copied or touched has the same. That of data is of the prepared tokens and rows, which are not read again;
that of a run's weights is of its newest valid checkpoint, the one that is loaded. A file of foreign weights is hashed
once.

The keys are data/<text>, tokenizer, model, init, init/data/<text> (what a start point was trained on) and those of an
objective, such as teacher; in a chain `<stage>/` precedes the keys of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from kleiber.config.errors import ConfigError
from kleiber.config.stages import has_pretrained_weights, stage_configs
from kleiber.config.targets import build
from kleiber.data.cache import digest, file_hash
from kleiber.data.corpus import content_hashes
from kleiber.runs.open import find_stage, prepare_corpus
from kleiber.runs.recorded_config import recorded_configs
from kleiber.training import checkpoint
from kleiber.types import Config
from kleiber.types.contracts import Corpus

if TYPE_CHECKING:
    from kleiber.runs.stage_tree import Stage

Hashes = dict[str, str]
NO_INPUT = "none"


def run_inputs(stages: Sequence[Stage]) -> Hashes:
    """Returns the hashes of everything that the planned stages of a run read, by input."""
    own_data = [stage for stage in stages if not stage.continues]
    hashes = start_inputs(stages[0].config)
    hashes |= {f"init/data/{task.name}": task.data_hash for task in stages[0].plan.earlier if task.data_hash}
    for stage in own_data:
        inputs = data_inputs(stage.plan.corpus)
        inputs |= {name: weights_hash(path) for name, path in stage.plan.objective.models.items()}
        hashes |= _of_stage(stage.name, inputs, len(own_data))
    return hashes


def present_inputs(config: Config) -> Hashes:
    """Returns the hashes of the data, tokenizers and start weights of a config, without building its models."""
    configs = stage_configs(config)
    hashes = start_inputs(DictConfig(config))
    for name, stage in configs.items():
        hashes |= _of_stage(name, data_inputs(prepare_corpus(stage)), len(configs))
    return hashes


def _of_stage(name: str, inputs: Hashes, stages: int) -> Hashes:
    return {f"{name}/{key}" if stages > 1 else key: value for key, value in inputs.items()}


def data_inputs(corpus: Corpus) -> Hashes:
    """Returns the hashes of the texts of a corpus and of its tokenizer."""
    tokenizer = corpus.tokenizer
    texts = {f"data/{name}": value for name, value in content_hashes(corpus).items()}
    return {"tokenizer": digest([tokenizer.hash, tokenizer.vocab_size, tokenizer.bos, tokenizer.cls]), **texts}


def start_inputs(config: DictConfig) -> Hashes:
    """Returns the hashes of the weights that the first stage starts from: those of `model` and `init`."""
    hashes: Hashes = {}
    if has_pretrained_weights(config.model):
        from kleiber.models.hf_config import model_folder

        hashes["model"] = folder_hash(model_folder(config.model.path))
    source = None if config.get("init") is None else build(config.init).source()
    if source is not None:
        hashes["init"] = weights_hash(source)
    return hashes


def weights_hash(path: str) -> str:
    """Returns a hash of the weights of RUN, RUN/STAGE or a Hugging Face folder.

    Raises ValueError where there are none.
    """
    folder = Path(path).expanduser()
    return folder_hash(folder) if (folder / "config.json").is_file() else stage_hash(*find_stage(path))


def folder_hash(folder: Path) -> str:
    """Returns a hash of the config and the weights in a Hugging Face folder."""
    files = [path for path in sorted(folder.iterdir()) if path.name == "config.json" or path.suffix == ".safetensors"]
    return digest([[path.name, file_hash(path)] for path in files])


def stage_hash(folder: Path, stage: str) -> str:
    """Returns a hash of the final weights of a stage; those that its adapter was merged into count too."""
    configs = recorded_configs(folder, stage)
    hashes = [checkpoint.weights_sha256(folder / "stages" / stage / "checkpoints")]
    if configs[stage].get("adapter"):
        stages_before = list(configs)[:-1]
        start = start_inputs(DictConfig(configs[stage]))
        hashes += [stage_hash(folder, stages_before[-1])] if stages_before else sorted(start.values())
    return digest(hashes)


def check_inputs(recorded: Mapping[str, str], current: Mapping[str, str], folder: Path) -> None:
    """Raises ConfigError where an input of the run in `folder` has another hash than when the run started."""
    changes = changed_inputs(recorded, current)
    if changes:
        raise ConfigError(
            f"the run {folder} started with other inputs: {'; '.join(changes)}. Restore their content, or set "
            "resume=never to train a new run on the present content"
        )


def changed_inputs(recorded: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Returns the name and both hashes of every recorded input that has another hash now."""
    pairs = {name: (value, current.get(name, NO_INPUT)) for name, value in recorded.items()}
    return [f"{name} was {before} and is {now}" for name, (before, now) in pairs.items() if before != now]
