"""Start points: random weights, a stage of a run, a Hugging Face folder, or an upcycled dense run.

`kleiber.runs.inherit` copies model and tokenizer into the config. No pickle and no code of a checkpoint is executed.
Upcycling makes every expert of a mixture a copy of the dense MLP (Komatsuzaki et al. 2022, arXiv:2212.05055). So the
mixture at first computes the function of the dense model, provided that the weights of a token sum to 1 and experts are
as wide as the dense MLP (`check_experts`). Only weights are copied, no optimizer state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from kleiber.config.stages import text_settings
from kleiber.config.targets import build
from kleiber.data.mixture import MixtureCorpus
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.nn.patterns import NoMixing
from kleiber.nn.sharded_model import whole_model
from kleiber.runs.inherit import locate_stage
from kleiber.runs.open import add_heads, head_sizes, load_objective, load_stage, recorded_corpus
from kleiber.runs.recorded_config import recorded_configs
from kleiber.types import Config, Json, NonNegative, Seed
from kleiber.types.access import DataPath
from kleiber.types.contracts import Corpus, HeldOut, Objective, Task
from kleiber.types.model import Model

COMPARED = 100  # rows whose labels are compared to decide whether two tasks are the same


class StartPoint:
    """Base class of start points: the weights that a run begins with, and the tasks that they were trained for."""

    def load(self, model: Model) -> None:
        """Loads the weights into `model`, or does nothing when there are none. Raises ValueError for another model."""

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns the tasks that the weights were trained for, which a run can forget.

        config, corpus  config and data of the first stage of the run that starts from these weights
        """
        return []


@dataclass(frozen=True)
class Scratch(StartPoint):
    """Random weights: the run starts from nothing."""


@dataclass(frozen=True)
class Checkpoint(StartPoint):
    """The weights of a finished stage of a run: `path` is RUN or RUN/STAGE (without one, the last finished stage)."""

    path: str

    def load(self, model: Model) -> None:
        load_stage(model, *locate_stage(self.path))

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns the tasks of the stage and of the stages before it."""
        folder, stage = locate_stage(self.path)
        configs = recorded_configs(folder, stage).items()
        return [task for name, node in configs for task in stage_tasks(node, corpus, folder / "stages" / name)]


@dataclass(frozen=True)
class HF(StartPoint):
    """A Hugging Face folder. The native model takes over the weights of a Llama, Qwen3, Mixtral or Qwen3-MoE.

    path             folder with config.json and safetensors
    upstream         texts on which forgetting is measured, because the weights predict them well; as in data.parts
    allow_nonfinite  whether weights may be NaN or infinite
    """

    path: str
    upstream: Sequence[DataPath] = ()
    allow_nonfinite: bool = False

    def load(self, model: Model) -> None:
        """Loads all weights."""
        from kleiber.models.hf_twin import load_hf

        assert isinstance(model, Transformer)
        with whole_model(model) as whole:
            load_hf(whole, Path(self.path).expanduser(), self.allow_nonfinite)

    def tasks(self, config: DictConfig, corpus: Corpus) -> list[Task]:
        """Returns a language-modeling task for each text of `upstream`."""
        if not self.upstream:
            return []
        parts = {name: 1 / len(self.upstream) for name in self.upstream}
        text = text_settings(config.data)
        mixture = MixtureCorpus(parts, text.get("tokenizer", "bytes"), separator=text.get("separator"))
        texts = mixture.prepare(config.model.context)
        check_same_tokenizer(corpus, texts, "init.upstream")
        return corpus_tasks(texts, build(DictConfig({"_target_": "kleiber.objectives.CLM"})))


@dataclass(frozen=True)
class Upcycle(Checkpoint):
    """A mixture of experts made from a dense run: every expert is a copy of its MLP.

    noise  standard deviation of Gaussian noise on the copies, relative to the standard deviation of the weights
    seed   seed of the noise
    """

    noise: NonNegative = 0.0
    seed: Seed = 0

    def load(self, model: Model) -> None:
        """Copies the dense weights into the experts of `model`. Raises ValueError when settings or shapes differ."""
        folder, stage = locate_stage(self.path)
        with torch.random.fork_rng(devices=[]):
            dense = build(DictConfig(recorded_configs(folder, stage)[stage]["model"]), vocab_size=model.vocab_size)
            check_settings(dense, model)
            assert isinstance(model, Transformer)
            add_heads(dense, head_sizes(model))
            load_stage(dense, folder, stage)
            torch.manual_seed(self.seed)
            with whole_model(model) as whole:
                upcycle(dense.state_dict(), whole, noise=self.noise)


def stage_tasks(config: Config, corpus: Corpus, folder: Path) -> list[Task]:
    """Returns the tasks of an earlier stage: a task for each of its validation domains, scored with its objective.

    config, folder  of the earlier stage
    corpus          data of the new run

    Raises ValueError when the earlier stage and the new run have different tokenizers.
    """
    stage_corpus = recorded_corpus(config, folder.parents[1])
    check_same_tokenizer(corpus, stage_corpus, "init.path")
    return corpus_tasks(stage_corpus, load_objective(DictConfig(config), stage_corpus, folder))


def corpus_tasks(corpus: Corpus, objective: Objective) -> list[Task]:
    """Returns a task for each validation domain."""
    train = corpus.train if corpus.train.random_access else None
    return [Task(name, objective, text, train, corpus.hash) for name, text in corpus.validation.items()]


def distinct_tasks(tasks: Sequence[Task], corpus: Corpus) -> list[Task]:
    """Renames the tasks of a start point that share a name with another text of the corpus to `<name>-before`.

    Scores are stored by name, so without this the old text would be mistaken for the one being learned.
    """
    validation = corpus.validation
    renamed = {t.name for t in tasks if t.name in validation and not same_text(t.held_out, validation[t.name])}
    return [replace(task, name=f"{task.name}-before") if task.name in renamed else task for task in tasks]


def same_text(held_out: HeldOut, other: HeldOut) -> bool:
    """Whether two sets of held-out samples begin with the same text and labels.

    Context length and number of samples may differ: only the common beginning is compared.
    """
    count = min(len(held_out), len(other), COMPARED)
    first, second = (samples.gather(np.arange(count)) for samples in (held_out, other))
    width = min(first.tokens.shape[1], second.tokens.shape[1])
    if not torch.equal(first.tokens[0, :width], second.tokens[0, :width]):
        return False
    if first.labels is None or second.labels is None:
        return first.labels is second.labels
    return torch.equal(first.labels, second.labels)


def check_same_tokenizer(corpus: Corpus, other: Corpus, key: str) -> None:
    """Raises ValueError naming the config key `key` when two corpora of one model have different vocabularies."""
    if vocabulary(corpus) != vocabulary(other):
        raise ValueError(
            f"{key}: data {other.name} has tokenizer {other.tokenizer.hash}, but data {corpus.name} has tokenizer "
            f"{corpus.tokenizer.hash}; a model must have one tokenizer: set data.tokenizer, or data.data.tokenizer. "
            "data.tokenizer=bpe trains one on each text; data.tokenizer=RUN/tokenizer takes that of a run"
        )


def vocabulary(corpus: Corpus) -> tuple[int, int, bytes]:
    """Returns what makes two tokenizers equal for a model: size, end-of-text id and number of bytes of each token."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size, tokenizer.eos, tokenizer.token_bytes.tobytes()


def upcycle(state: dict[str, Tensor], model: Transformer, noise: float = 0.0, reset: float = 0.0) -> None:
    """Loads the `state` of a dense Transformer into the mixtures of `model`, whose routers keep their weights.

    noise  standard deviation of Gaussian noise on the experts' weights, relative to that of the weights
    reset  share of the hidden units of each expert that are drawn again, with the standard deviation of the dense
           weights (Nakamura et al. 2025, arXiv:2502.19261)

    With noise and reset at 0 the model computes the same function as the dense one. Random numbers come from PyTorch's
    generator. Raises ValueError, which names the key to change, for models that cannot compute the same function.
    """
    if noise < 0 or not 0 <= reset <= 1:
        raise ValueError(f"init.noise={noise} must be >= 0, and init.reset={reset} from 0 to 1")
    mixtures = {f"blocks.{i}.mlp.": block.mlp for i, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)}
    if not mixtures:
        raise ValueError("init=upcycle needs a model with experts: set model=moe")
    plain = {name: value for name, value in state.items() if not name.startswith(tuple(mixtures))}
    target = model.state_dict()
    for name, value in plain.items():
        if name not in target or target[name].shape != value.shape:
            shape = tuple(target[name].shape) if name in target else "missing"
            raise ValueError(
                f"init=upcycle: {name} has shape {tuple(value.shape)} in the dense checkpoint but {shape} in the "
                "model: apart from model.mlp, give the model the settings of the checkpoint's run"
            )
    missing = [name for name in target if name not in plain and not name.startswith(tuple(mixtures))]
    if missing:
        raise ValueError(
            f"init=upcycle: the model has the weights {', '.join(missing[:3])}, which the dense checkpoint lacks: "
            "apart from model.mlp, give the model the settings of the checkpoint's run"
        )
    for prefix, moe in mixtures.items():
        check_experts(moe, state, prefix)
    model.load_state_dict(plain, strict=False)
    for prefix, moe in mixtures.items():
        copy_dense(moe, state[f"{prefix}gate_up.weight"], state[f"{prefix}down.weight"], noise, reset)


def check_experts(moe: MoE, state: dict[str, Tensor], prefix: str) -> None:
    """Raises ValueError where the weighted sum of copies of the dense MLP would differ from the MLP."""
    name = f"{prefix}gate_up.weight"
    if name not in state:
        raise ValueError(f"init=upcycle: the checkpoint has no {name}: use a dense model with model/mlp=swiglu")
    hidden = state[name].shape[0] // 2
    if moe.hidden != hidden:
        raise ValueError(
            f"init=upcycle: experts have {moe.hidden} hidden units and the dense MLP {hidden}: set "
            f"model.mlp.hidden={hidden} and model.mlp.granularity=1"
        )
    if not moe.router.sums_to_one:
        raise ValueError(
            f"init=upcycle: the weights of {type(moe.router).__name__} do not sum to 1, so the output would differ "
            "from that of the dense model: use topk, noisy, sigmoid, lossfree, group_limited, hash or random"
        )
    if moe.shared is not None:
        raise ValueError("init=upcycle: shared experts would change the dense output: set model.mlp.num_shared=0")
    if moe.capacity is not None:
        raise ValueError(
            "init=upcycle: model.mlp.capacity_factor drops tokens that the dense model computes: remove it"
        )


def check_settings(dense: Model, model: Model) -> None:
    """Raises ValueError, which names the key to set, where equal weights of `dense` and `model` give other outputs.

    Shapes of weights do not show that: numbers of heads, multipliers, rotary angles, norms and soft-caps are settings.
    """
    if not isinstance(dense, Transformer) or not isinstance(model, Transformer):
        other = model if isinstance(dense, Transformer) else dense
        raise ValueError(f"init=upcycle converts model=gpt to model=moe, and cannot convert a {type(other).__name__}")
    for values, actual in zip(settings(dense), settings(model), strict=False):
        for key, value in values.items():
            if actual.get(key) != value:
                raise ValueError(
                    f"init=upcycle: {key} is {value} in the dense run and {actual.get(key)} here, so the model would "
                    f"not compute the same function: set {key}={value}"
                )


def settings(model: Transformer) -> list[Json]:
    """The settings, by key, that determine the outputs for given weights: of the model, then of each attention."""
    kind, layers = model.parametrization, [block.attention for block in model.blocks]
    values: Json = {"model/parametrization": type(kind).__name__.lower(), "model.soft_cap": model.head.soft_cap}
    values |= {f"model.parametrization.{name}": value for name, value in vars(kind).items() if name != "std"}
    names = ["none" if isinstance(layer, NoMixing) else type(layer).__name__.lower() for layer in layers]
    values["model/attention"] = names[0] if len(set(names)) == 1 else f"pattern of {', '.join(names)}"
    values |= {"model.positions": "learned"} if model.positions is not None else {}
    values |= {"model.tied": model.tied, "model.norm_eps": model.norm.eps, "model.norm": model.blocks[0].norm}
    parts: list[Json] = [values | {"model.causal": model.causal}, *(layer.settings() for layer in layers)]
    return [{key: "null" if value is None else value for key, value in part.items()} for part in parts]


@torch.no_grad()
def copy_dense(moe: MoE, gate_up: Tensor, down: Tensor, noise: float, reset: float) -> None:
    """Copies the dense matrices, transposed to (in, out), into every expert; see `upcycle` for noise and reset."""
    moe.experts.gate_up.copy_(gate_up.T.expand_as(moe.experts.gate_up))
    moe.experts.down.copy_(down.T.expand_as(moe.experts.down))
    for stack in (moe.experts.gate_up, moe.experts.down) if noise else ():
        stack.add_(torch.randn_like(stack) * (noise * stack[0].std()))
    if reset:
        for expert in range(moe.num_experts):
            reset_units(moe, expert, round(reset * moe.hidden))


def reset_units(moe: MoE, expert: int, units: int) -> None:
    """Redraws `units` hidden units of an expert: for each a column of gate, a column of up, and a row of down."""
    chosen = torch.randperm(moe.hidden)[:units].to(moe.experts.down.device)
    gate_up, down = moe.experts.gate_up[expert], moe.experts.down[expert]
    for columns in (chosen, chosen + moe.hidden):
        gate_up[:, columns] = torch.randn_like(gate_up[:, columns]) * gate_up.std()
    down[chosen] = torch.randn_like(down[chosen]) * down.std()
