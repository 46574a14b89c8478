"""Base classes of models, and of the parts of a model that others call: output layers and routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from kleiber.types.batch import Batch, Output, Role, Routing


@runtime_checkable
class Head(Protocol):
    """The output layer as a loss reads it: logits = cap(multiplier * hidden @ weight.T).

    cap(x) = soft_cap tanh(x / soft_cap), or x where `soft_cap` is None.
    """

    weight: Float[Tensor, "vocab dim"]
    multiplier: float
    soft_cap: float | None

    def __call__(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocab"]: ...


class Model(nn.Module):
    """A backbone with a head, for rows of up to `context` tokens.

    causal  whether a position depends on earlier positions alone
    tied    whether the head's matrix is the embedding's
    heads   output layers of tasks by name, beside `head`, which predicts tokens
    blocks  the layers, each with the parts `attention` and `mlp` in our own models
    """

    context: int
    vocab_size: int
    width: int
    causal: bool = True
    tied: bool = False
    head: Any  # a Head; a wrapped model without an output layer has a module that raises
    heads: nn.ModuleDict
    blocks: nn.ModuleList
    parametrization: Any

    def forward(self, batch: Batch, caches: Any = None) -> Output:
        """Hidden states of every position, and auxiliary sums. `caches` of `new_caches` grow in place."""
        raise NotImplementedError

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name."""
        raise NotImplementedError

    def new_caches(self, length: int) -> Any:
        """Empty caches for decoding rows of up to `length` tokens."""
        raise NotImplementedError

    def add_head(self, name: str, outputs: int) -> None:
        """Adds an output layer for a task as `heads[name]`, unless there is one of that name."""
        raise NotImplementedError

    def leave_out_head(self) -> None:
        """Stops training what only `head` reads, for objectives that predict no token."""

    def rebalance(self, sums: Mapping[str, Tensor]) -> None:
        """Adjusts routers after an optimizer step from its summed metrics ("load/<layer>")."""


@runtime_checkable
class Router(Protocol):
    def __call__(self, x: Float[Tensor, "tokens dim"], batch: Batch | None = None) -> Routing: ...
