"""Base classes of models and of their parts: layers, routers, output layers and caches for decoding.

Hooks are methods of the base class that do nothing until overridden, so callers need not check whether one exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kleiber.types import Json
from kleiber.types.batch import Batch, Output, Role, Routing

Adjust = Callable[[Tensor, Tensor], Tensor]  # other logits from hidden states (batch, dim) and logits (batch, vocab)
Stop = Callable[[list[int]], bool]  # whether a continuation of these tokens ends with the last of them
UpdateRule = Literal["adam", "muon", "sgd"]  # how the step of an optimizer depends on the gradient of a parameter


class Scale(NamedTuple):
    """Standard deviation of the initial weights, and the constant that multiplies the layer's output."""

    std: float
    multiplier: float


@runtime_checkable
class Parametrization(Protocol):
    """Initial standard deviations, multipliers of the forward pass, and learning-rate factors by role.

    Factors are for optimizers whose steps have entries of about the learning rate, such as Adam, unless `rule` names
    the matrices of Muon, or SGD, for which `fan_in` of embeddings and vectors is their number of channels.
    """

    def embedding(self, tied: bool) -> Scale: ...
    def hidden_std(self, fan_in: int) -> float: ...
    def projection_std(self, fan_in: int, depth: int) -> float: ...
    def attention(self, head_dim: int) -> float: ...
    def residual(self, depth: int) -> float: ...
    def output(self, width: int) -> Scale: ...
    def router(self, width: int) -> Scale: ...
    def lr_scale(self, role: Role, rule: UpdateRule = "adam") -> float: ...


class LearningRateScale(Protocol):
    """The learning-rate factor of a parameter by its role: `Parametrization.lr_scale`."""

    def __call__(self, role: Role, rule: UpdateRule = "adam") -> float: ...


LOW_RANK = ("_lora_a", "_lora_b", "_lora_m")  # what names of the parameters of a low-rank update end with
Mask = Any  # Bool[Tensor, "#batch 1 time keys"], or what a layer makes of long rows


class Layer(nn.Module):
    """A module that reports the roles of its parameters and its FLOPs; `nn.Linear` and `nn.Embedding` need not.

    routes  whether each token goes to some of its children, which all have the same input
    """

    routes: ClassVar[bool] = False

    def roles(self) -> dict[str, Role]:
        """Role of each parameter of the module without its children, by the parameter's name in the module."""
        return {}

    def flops(self, time: int) -> float:
        """Forward FLOPs per token in rows of `time` tokens, without those of the module's children."""
        return 0.0

    def executed_flops(self, time: int) -> float:
        """`flops` as the device executes them: more where masked positions are computed too."""
        return self.flops(time)

    def executed_backward_flops(self, time: int) -> float:
        """Backward FLOPs as the device executes them; a product of activations has two gradients."""
        return 2 * self.executed_flops(time)

    def idle(self) -> int:
        """Number of the parameters that a token does not visit, without those of the module's children."""
        return 0


class Router(Layer):
    """Sends each token to k experts.

    sums_to_one    whether the weights of a token add up to 1, as upcycling needs to preserve the dense model
    needs_balance  whether experts can fall out of use without a balance loss
    by_logits      whether each token chooses its experts by learned logits
    matrices       number of matrices (experts, width) that it has
    """

    sums_to_one: ClassVar[bool] = True
    needs_balance: ClassVar[bool] = True
    by_logits: ClassVar[bool] = False
    matrices: ClassVar[int] = 1

    def forward(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing:
        """The experts of each token."""
        raise NotImplementedError

    def rebalance(self, load: Float[Tensor, "experts"] | None) -> None:
        """Called once after each optimizer step.

        load  number of assignments to each expert in the step's global batch; None where the objective does not report
              it
        """


class Head:
    """An output layer: logits = cap(multiplier * features(hidden) @ weight.T), which losses compute in chunks.

    cap(x) = soft_cap tanh(x / soft_cap), or x where `soft_cap` is None.
    """

    weight: Float[Tensor, "vocab features"]
    multiplier: float = 1.0
    soft_cap: float | None = None

    def features(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes features"]:
        """The vectors that are multiplied by the matrix; here the hidden states."""
        return hidden

    def __call__(self, hidden: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes vocab"]:
        """The logits of hidden states."""
        raise NotImplementedError


@runtime_checkable
class LayerCache(Protocol):
    """Keys and values that one layer computed for earlier positions, or its state after them."""

    state: Sequence[Tensor]

    def __len__(self) -> int: ...
    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...
    def advance(self, state: Sequence[Tensor], time: int) -> None: ...


class Attention(Layer):
    """The part of a block that mixes positions.

    out            its last matrix
    mask_key       layers of one class with equal keys have the same masks, which a model makes once
    shares_values  whether the layer reads or stores the values of the first layer (see `first_values`)
    prefix         whether the tokens of a prompt read each other in both directions

    What is read before the class is built:

    is_recurrent     whether a state passes on what was read: causal, and across the documents of a row
    head_multiple    what the channels of a head are a multiple of; None: the layer has no heads that divide the width
    rotates_heads    whether positions=rotary turns pairs of channels of a head
    refused_options  options of attention that the layer does not have
    refused_because  why, in errors
    """

    is_recurrent: ClassVar[bool] = False
    head_multiple: ClassVar[int | None] = None
    rotates_heads: ClassVar[bool] = False
    refused_options: ClassVar[tuple[str, ...]] = ()
    refused_because: ClassVar[str] = ""
    out: nn.Linear
    mask_key: int | None = None
    shares_values: bool = False
    prefix: bool = False

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        mask: Mask | None = None,
        cache: LayerCache | None = None,
        first_values: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """The change of the residual stream.

        mask          from the method `mask`
        cache         keys and values of earlier positions; those of `x` are added in place
        first_values  an empty list that the first layer appends its values to, and later layers mix into theirs; passed
                      only to layers with `shares_values`
        """
        raise NotImplementedError

    def settings(self) -> Json:
        """The settings, by key of the config, that determine the outputs for given weights."""
        return {}

    def mask(
        self,
        time: int,
        past: int,
        device: torch.device,
        real: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        prompt: Bool[Tensor, "batch time"] | None = None,
    ) -> Mask | None:
        """The keys that each of `time` queries after `past` cached positions may attend to; None for no mask.

        real      False for keys that are padding; of all keys, those of the cache included
        segments  documents of packed rows; not used with a cache
        prompt    True on tokens of prompts (`Batch.prefix`), which a layer with `prefix` reads in both directions
        """
        return None


class MLP(Layer):
    """The part of a block that acts on each position alone, such as a dense layer or a mixture of experts."""

    def forward(
        self, x: Float[Tensor, "batch time dim"], batch: Batch | None = None
    ) -> tuple[Float[Tensor, "batch time dim"], dict[str, Tensor]]:
        """The change of the residual stream, and auxiliary sums over real tokens (see `Output`; empty if dense)."""
        raise NotImplementedError

    def last_matrix(self) -> nn.Linear | None:
        """The matrix whose product is the layer's output, so its result is not saved for the gradient; else None."""
        return None

    def rebalance(self, load: Float[Tensor, "experts"] | None) -> None:
        """Called once after each optimizer step, with the load of its global batch (see `Router.rebalance`)."""


class DecodingCache:
    """Keys and values of the positions that have been read, and which of those positions are padding.

    Prompts of unequal length are padded on the left, and padding stays masked while decoding.
    """

    def __init__(self) -> None:
        self.real: Bool[Tensor, "batch keys"] | None = None

    def __len__(self) -> int:
        """Number of positions in the cache."""
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """The keys and values of all layers; empty before the first step."""
        raise NotImplementedError

    def select(self, rows: Int[Tensor, "_"], length: int) -> DecodingCache:
        """A cache for rows of up to `length` tokens, with the rows of these numbers, some of which may repeat."""
        raise NotImplementedError

    def reorder(self, rows: Int[Tensor, "_"], length: int, shared: int) -> DecodingCache:
        """As `select` with equally many rows, each in the place of one with the same first `shared` positions.

        It may change this cache.
        """
        return self.select(rows, length)

    def remember(
        self, real: Bool[Tensor, "batch time"] | None, tokens: Int[Tensor, "batch time"]
    ) -> Bool[Tensor, "batch keys"] | None:
        """Adds the mask of the tokens that are read next; returns the mask of all positions, None without padding."""
        if self.real is None and real is None:
            return None
        rows, time = tokens.shape
        ones = torch.ones(rows, len(self), dtype=torch.bool, device=tokens.device)
        new = torch.ones(rows, time, dtype=torch.bool, device=tokens.device) if real is None else real
        self.real = torch.cat([ones if self.real is None else self.real, new], 1)
        return self.real


class Model(nn.Module):
    """A backbone with an output layer over tokens.

    vocab_size  number of token ids
    width       channels of the hidden states
    context     longest row, in tokens
    causal      whether no hidden state depends on a later token
    prefix      whether the tokens of a prompt, which a batch marks, read each other in both directions
    tied        whether the matrix of the output layer is that of the embedding
    blocks      the layers, in order
    heads       output layers of tasks, by name
    future_weight  weight of the losses of later tokens (`Output.future`)
    is_wrapped  whether another library builds the layers, and so names the weights and attends as it does
    """

    is_wrapped: ClassVar[bool] = False
    vocab_size: int
    width: int
    context: int
    causal: bool = True
    prefix: bool = False
    tied: bool = False
    parametrization: Parametrization
    embedding: nn.Embedding
    blocks: Sequence[nn.Module]
    head: Head
    heads: nn.ModuleDict
    future_weight: float = 0.0

    def forward(self, batch: Batch, caches: DecodingCache | None = None) -> Output:
        """Hidden states and auxiliary sums.

        caches  from `new_caches`, with the earlier positions; those of the batch are added in place
        """
        raise NotImplementedError

    def roles(self) -> dict[str, Role]:
        """The role of each parameter, from the first `Layer`, linear layer or embedding that holds it.

        So a tied matrix has the role of the embedding. Parameters in `blocks`, and in parts that predict later tokens,
        have the depth of the model.
        """
        by_name: dict[str, Role] = {}
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                by_name.setdefault(names[id(parameter)], _role(module, name))
        inside = [name for name in by_name if name.startswith(("blocks.", "future."))]
        by_name |= {name: replace(by_name[name], depth=len(self.blocks)) for name in inside}
        return {name: by_name[name] for name in names.values()}

    def vocabulary(self) -> list[Tensor]:
        """The embedding, the matrix of the output layer if there is one, and learned positions; tied ones twice."""
        return [self.embedding.weight, self.head.weight]

    @property
    def routes(self) -> bool:
        """Whether some layer sends each token to some of its children, as a mixture of experts does."""
        return any(isinstance(module, Layer) and module.routes for module in self.modules())

    def idle(self) -> int:
        """Number of the parameters of experts that a token does not visit."""
        return sum(module.idle() for module in self.modules() if isinstance(module, Layer))

    def counted_flops(self, time: int, read: Collection[str] = ()) -> tuple[float, float] | None:
        """FLOPs per token of a forward and of a backward pass; None where they are counted from the modules.

        time  tokens of a row
        read  names of the task heads that are read in place of the head over tokens
        """
        return None

    def add_head(self, name: str, outputs: int) -> None:
        """Adds the output layer `heads[name]` with this number of outputs, unless there is one of that name."""
        raise NotImplementedError

    def freeze_head(self) -> None:
        """Stops training the output matrix over tokens, which no loss reads; a tied one is trained as the embedding."""
        if not self.tied:
            head = self.head if isinstance(self.head, nn.Module) else self.head.weight
            head.requires_grad_(False)  # with a low-rank update of the matrix, if there is one

    def rebalance(self, sums: Mapping[str, Tensor]) -> None:
        """Called once after each optimizer step, with the sums of its global batch, such as "load/<layer>"."""

    def new_caches(self, length: int) -> DecodingCache:
        """An empty cache for decoding rows of up to `length` tokens."""
        raise NotImplementedError


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model without dropout within the context, and in its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters."""
    return next(model.parameters()).device


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is a lack of memory.

    The CPU's allocator raises a RuntimeError that only its text identifies.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _role(module: nn.Module, name: str) -> Role:
    if isinstance(module, Layer):
        return module.roles()[name]
    if isinstance(module, nn.Linear):
        return Role("hidden", module.in_features) if name == "weight" else Role("vector", 1)
    assert isinstance(module, nn.Embedding), f"{type(module).__name__}.{name} has no role: make its class a Layer"
    return Role("embedding", 1)


def hash_weights(model: Model) -> str:
    """A hash of the names and values of all weights."""
    state = hashlib.sha256()
    for name, values in model.state_dict().items():
        state.update(name.encode())
        state.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()[:16]
