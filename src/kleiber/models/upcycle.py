"""Upcycling: a mixture of experts initialized from a dense model, with every expert a copy of the dense MLP.

Komatsuzaki et al. 2022, arXiv:2212.05055. As all experts are equal, the mixture at first computes the same function as
the dense model, provided that the weights of a token sum to 1 and experts are as wide as the dense MLP. Other models
raise ValueError: those with routers whose weights do not sum to 1 (switch, expert_choice, sinkhorn), with shared
experts, with experts of another width, and with experts that drop tokens. Only weights are copied, no optimizer state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention, NoMixing, WindowAttention
from kleiber.nn.moe import Dropping, MoE
from kleiber.types import Json
from kleiber.types.model import Model


def upcycle(state: dict[str, Tensor], model: Transformer, noise: float = 0.0, reset: float = 0.0) -> None:
    """Loads the `state` of a dense Transformer into `model`, some of whose layers are mixtures.

    Routers keep their initial weights.

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
        raise ValueError(
            "init=upcycle: shared experts would add to the output of the dense model: set model.mlp.num_shared=0"
        )
    if isinstance(moe, Dropping):
        raise ValueError(
            "init=upcycle: model/mlp=dropping drops tokens that the dense model computes: use model/mlp=moe"
        )


def check_settings(dense: Model, model: Model) -> None:
    """Raises ValueError, which names the key to set, where equal weights of `dense` and `model` give other outputs.

    Shapes of weights do not show that: numbers of heads, multipliers, rotary angles, norms and soft-caps are settings.
    """
    if not isinstance(dense, Transformer) or not isinstance(model, Transformer):
        other = model if isinstance(dense, Transformer) else dense
        raise ValueError(f"init=upcycle converts model=gpt to model=moe, and cannot convert a {type(other).__name__}")
    actual = settings(model)
    for key, value in settings(dense).items():
        if actual.get(key) != value:
            raise ValueError(
                f"init=upcycle: {key} is {value} in the dense run and {actual.get(key)} here, so the model would not "
                f"compute the same function: set {key}={value}"
            )


def settings(model: Transformer) -> Json:
    """The settings, by key, that determine the outputs for given weights; scales of the initial weights do not."""
    attention, kind = model.blocks[0].attention, model.parametrization
    values: Json = {"model/parametrization": type(kind).__name__.lower()}
    values |= {f"model.parametrization.{name}": value for name, value in vars(kind).items() if name != "std"}
    values["model/attention"] = "none" if isinstance(attention, NoMixing) else type(attention).__name__.lower()
    if isinstance(attention, FullAttention):
        values |= {"model.num_heads": attention.num_heads, "model.num_kv_heads": attention.num_kv_heads}
        values["model.rope_theta"] = attention.rope.theta
    if isinstance(attention, WindowAttention):
        values["model.attention.window"] = attention.window
    values |= {"model.norm_eps": model.norm.eps, "model.soft_cap": model.head.soft_cap, "model.causal": model.causal}
    return {key: "null" if value is None else value for key, value in values.items()}


@torch.no_grad()
def copy_dense(moe: MoE, gate_up: Tensor, down: Tensor, noise: float, reset: float) -> None:
    """Copies the dense matrices, transposed to (in, out), into every expert; see `upcycle` for noise and reset."""
    moe.experts.gate_up.copy_(gate_up.T.expand_as(moe.experts.gate_up))
    moe.experts.down.copy_(down.T.expand_as(moe.experts.down))
    for stack in (moe.experts.gate_up, moe.experts.down):
        if noise:
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
