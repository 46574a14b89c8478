"""The start point that makes a mixture of experts from a dense run.

Upcycling makes every expert of a mixture a copy of the dense MLP (Komatsuzaki et al. 2022, arXiv:2212.05055). So the
mixture at first computes the function of the dense model, provided that the weights of a token sum to 1 and experts are
as wide as the dense MLP (`check_experts`). Only weights are copied, no optimizer state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from kleiber.config.targets import build
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import MoE
from kleiber.nn.patterns import NoMixing
from kleiber.nn.sharded_model import whole_model
from kleiber.runs.inherit import locate_stage
from kleiber.runs.open import add_heads, head_sizes, load_stage
from kleiber.runs.recorded_config import recorded_configs
from kleiber.runs.start_point import Checkpoint
from kleiber.types import Json, NonNegative, Seed
from kleiber.types.model import Model


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
