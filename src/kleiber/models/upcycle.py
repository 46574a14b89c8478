"""A dense checkpoint as the start of a mixture: every expert a copy of the dense MLP, so that nothing changes at first.

Komatsuzaki et al. 2022, arXiv:2212.05055. The copies answer alike, so whatever the router says the output is the dense
one, provided that the weights of a token sum to 1 and an expert is as wide as the dense MLP. What cannot give that
identity is refused: routers whose weights do not sum to 1 (switch, expert_choice, sinkhorn), shared experts, experts of
another width, and experts that drop. It copies weights only; the optimizer starts anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kleiber.models.transformer import Transformer
from kleiber.nn.attention import FullAttention, NoMixing, WindowAttention
from kleiber.nn.moe import Dropping, MoE


def upcycle(state: dict[str, Tensor], model: Any, noise: float = 0.0, reset: float = 0.0) -> None:
    """Puts a dense Transformer's `state` into `model`, whose layers may be dense or mixtures; routers stay as they are.

    noise  standard deviation of Gaussian noise on each expert's weights, over that of the weights: it tells copies
           apart, which otherwise only their tokens do
    reset  share of each expert's hidden units that start anew, drawn with the dense weights' standard deviation
           (Nakamura et al. 2025, arXiv:2502.19261)

    With both at 0 the model computes what the dense one did. Draws come from PyTorch's generator. Raises ValueError for
    what cannot be the same function, naming the key to set.
    """
    if noise < 0 or not 0 <= reset <= 1:
        raise ValueError(f"init.noise={noise} cannot be negative, and init.reset={reset} is a share from 0 to 1")
    mixtures = {f"blocks.{i}.mlp.": block.mlp for i, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)}
    if not mixtures:
        raise ValueError("init=upcycle into a model without experts: choose model=moe")
    plain = {name: value for name, value in state.items() if not name.startswith(tuple(mixtures))}
    own = model.state_dict()
    for name, value in plain.items():
        if name not in own or own[name].shape != value.shape:
            told = f"{tuple(own[name].shape)}" if name in own else "not there"
            raise ValueError(f"init=upcycle: {name} is {tuple(value.shape)} in the checkpoint and {told} in the model")
    missing = [name for name in own if name not in plain and not name.startswith(tuple(mixtures))]
    if missing:
        raise ValueError(f"init=upcycle: the checkpoint has no {', '.join(missing[:3])}")
    for prefix, moe in mixtures.items():
        refuse(moe, state, prefix)
    model.load_state_dict(plain, strict=False)
    for prefix, moe in mixtures.items():
        fill(moe, state[f"{prefix}gate_up.weight"], state[f"{prefix}down.weight"], noise, reset)


def refuse(moe: MoE, state: dict[str, Tensor], prefix: str) -> None:
    """Raises ValueError where copies of the dense MLP would not add up to it."""
    name = f"{prefix}gate_up.weight"
    if name not in state:
        raise ValueError(f"init=upcycle: the checkpoint has no {name}: it takes a dense model with model/mlp=swiglu")
    hidden = state[name].shape[0] // 2
    if moe.hidden != hidden:
        raise ValueError(
            f"init=upcycle: an expert has {moe.hidden} hidden units and the dense MLP {hidden}: set "
            f"model.mlp.hidden={hidden} and model.mlp.granularity=1"
        )
    if not moe.router.sums_to_one:
        raise ValueError(
            f"init=upcycle: the weights of {type(moe.router).__name__} do not sum to 1, so copies would not "
            "add up to the dense model: choose topk, noisy, sigmoid, lossfree, group_limited, hash or random"
        )
    if moe.shared is not None:
        raise ValueError("init=upcycle: shared experts would add to the dense model: set model.mlp.num_shared=0")
    if isinstance(moe, Dropping):
        raise ValueError("init=upcycle: what model/mlp=dropping drops the dense model did not: choose model/mlp=moe")


def refuse_settings(dense: Any, model: Any) -> None:
    """Raises ValueError where `model` would read the weights of `dense` as another function, naming the key to set.

    Shapes do not tell: heads, multipliers, angles, norms and soft-caps are no weights.
    """
    for one in (dense, model):
        if not isinstance(one, Transformer):
            raise ValueError(
                f"init=upcycle takes model=gpt and makes model=moe of it: a {type(one).__name__} is neither"
            )
    own = settings(model)
    for key, value in settings(dense).items():
        if own.get(key) != value:
            raise ValueError(
                f"init=upcycle: the dense run has {key}={value} and this model {own.get(key)}, which makes another "
                f"function of its weights: set {key}={value}"
            )


def settings(model: Transformer) -> dict[str, Any]:
    """What makes a function of a model's weights, by key; the standard deviation of a start is not part of it."""
    attention: Any = model.blocks[0].attention
    kind = model.parametrization
    found: dict[str, Any] = {"model/parametrization": type(kind).__name__.lower()}
    found |= {f"model.parametrization.{name}": value for name, value in vars(kind).items() if name != "std"}
    found["model/attention"] = "none" if isinstance(attention, NoMixing) else type(attention).__name__.lower()
    if isinstance(attention, FullAttention):
        found |= {"model.num_heads": attention.num_heads, "model.num_kv_heads": attention.num_kv_heads}
        found["model.rope_theta"] = attention.rope.theta
    if isinstance(attention, WindowAttention):
        found["model.attention.window"] = attention.window
    found |= {"model.norm_eps": model.norm.eps, "model.soft_cap": model.head.soft_cap, "model.causal": model.causal}
    return {key: "null" if value is None else value for key, value in found.items()}


@torch.no_grad()
def fill(moe: MoE, gate_up: Tensor, down: Tensor, noise: float, reset: float) -> None:
    """Copies of the dense matrices into every expert; ours are stacked as (in, out)."""
    moe.experts.gate_up.copy_(gate_up.T.expand_as(moe.experts.gate_up))
    moe.experts.down.copy_(down.T.expand_as(moe.experts.down))
    for stack in (moe.experts.gate_up, moe.experts.down):
        if noise:
            stack.add_(torch.randn_like(stack) * (noise * stack[0].std()))
    if reset:
        for expert in range(moe.num_experts):
            renew(moe, expert, round(reset * moe.hidden))


def renew(moe: MoE, expert: int, units: int) -> None:
    """Draws `units` hidden units of an expert anew: a column of gate and of up, and a row of down, each."""
    chosen = torch.randperm(moe.hidden)[:units].to(moe.experts.down.device)
    gate_up, down = moe.experts.gate_up[expert], moe.experts.down[expert]
    for columns in (chosen, chosen + moe.hidden):
        gate_up[:, columns] = torch.randn_like(gate_up[:, columns]) * gate_up.std()
    down[chosen] = torch.randn_like(down[chosen]) * down.std()
