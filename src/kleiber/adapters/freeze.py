"""Freezing: trains some parts of a model and leaves the others as they were loaded.

The part of a parameter follows from its name, in kleiber's models and in those of Hugging Face. `select` resolves the
settings `targets`, `train` and `freeze` of adapters. Nothing is added to the model, so there is nothing to merge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kleiber.config.errors import did_you_mean
from kleiber.types.contracts import Adapter
from kleiber.types.model import Model

PARTS = ("embedding", "attention", "mlp", "experts", "router", "norms", "head", "heads")
# Layers that mix positions by a recurrence or a convolution stand in place of attention.
ATTENTION = {"attention", "attn", "self_attn", "self_attention", "crossattention", "linear_attn", "conv", "lstm"}
ROUTER = {"router", "gate"}
NORM = re.compile(r"norm|^ln_?\w?$|^layernorm", re.IGNORECASE)
LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def parts(model: Model) -> dict[str, str]:
    """The part of every parameter of a model, by name: one of PARTS."""
    roles = model.roles()
    in_blocks = {id(parameter) for block in model.blocks for parameter in block.parameters()}
    in_blocks |= {id(parameter) for name, parameter in model.named_parameters() if name.startswith("future.")}
    return {
        name: _part(name, roles[name].kind, id(parameter) in in_blocks) for name, parameter in model.named_parameters()
    }


def _part(name: str, kind: str, in_block: bool) -> str:
    segments = name.split(".")
    if segments[0] == "heads":
        return "heads"
    if "experts" in segments:
        return "experts"
    if set(segments) & ROUTER:
        return "router"
    if any(NORM.search(segment) for segment in segments):
        return "norms"
    if not in_block:
        return "embedding" if kind == "embedding" else "head"
    return "attention" if set(segments) & ATTENTION else "mlp"


def select(model: Model, selectors: list[str], key: str) -> set[str]:
    """Names of the parameters in a list of parts and layers, such as `attention`, `layers.3` or `layers.0-1`.

    key  the setting that the list comes from, for errors

    Raises ValueError for a part or layer that the model does not have.
    """
    part_of = parts(model)
    available = [*dict.fromkeys(part_of.values()), f"layers.0-{len(model.blocks) - 1}"]
    selected: set[str] = set()
    for selector in selectors:
        names = {name for name, part in part_of.items() if part == selector} or _layer_parameters(model, selector)
        if not names and selector == "head" and model.tied:
            raise ValueError(
                f"{key}: this model has no head of its own, because its output layer is its embedding "
                "(model.tied=true): use embedding, or set model.tied=false"
            )
        if not names:
            raise ValueError(
                f"{key}: {selector} is not a part of this model, whose parts are {', '.join(available)}."
                f"{did_you_mean(selector, available)}"
            )
        selected |= names
    return selected


def _layer_parameters(model: Model, selector: str) -> set[str]:
    """Names of the parameters in the layers `layers.<first>-<last>`; empty where there are no such layers."""
    matched = LAYERS.fullmatch(selector)
    if matched is None:
        return set()
    first, last = int(matched[1]), int(matched[2] or matched[1])
    if last >= len(model.blocks):
        return set()
    in_layers = {id(parameter) for block in list(model.blocks)[first : last + 1] for parameter in block.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in in_layers}


class Freeze(Adapter):
    """Trains the parts in `train` except those in `freeze`.

    Both are lists of parts (embedding, attention, mlp, experts, router, norms, head) and of layers (`layers.3`,
    `layers.0-1`). Output layers of tasks always train, because they are new, unless `freeze` contains heads.

    train   parts to train; null for the whole model
    freeze  parts to leave as they were loaded
    """

    def __init__(self, train: Sequence[str] | None = None, freeze: Sequence[str] = ()) -> None:
        if train is None and not freeze:
            raise ValueError(
                "adapter=freeze needs parts to freeze, such as adapter.freeze=[embedding], or parts to train, such as "
                "adapter.train=[head]"
            )
        overlap = sorted(set(train or ()) & set(freeze))
        if overlap:
            other = [name for name in freeze if name not in overlap]
            raise ValueError(
                f"adapter.train and adapter.freeze both contain {', '.join(overlap)}: to train it, set "
                f"adapter.freeze=[{','.join(other)}]"
            )
        self.train, self.freeze = train if train is None else list(train), list(freeze)

    def apply(self, model: Model, seed: int) -> None:
        """Freezes all parameters except those to train and the output layers of tasks; the seed is not used.

        Raises ValueError if no parameter is left to train.
        """
        names = {name for name, _ in model.named_parameters()}
        trained = names if self.train is None else select(model, self.train, "adapter.train")
        trained = trained | {name for name in names if name.startswith("heads.")}
        trained -= select(model, self.freeze, "adapter.freeze")
        if not trained:
            raise ValueError(
                f"adapter.train={self.train} without adapter.freeze={self.freeze} leaves no parameter to train"
            )
        for name, parameter in model.named_parameters():
            if name not in trained:
                parameter.requires_grad_(False)
