"""Freezing: trains some parts of a model and leaves the others as they were loaded.

Parts are read off parameter names, of our own models and of Hugging Face's: `select` resolves the settings `targets`,
`train` and `freeze` of adapters. Nothing is added to the model, so nothing has to be merged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kleiber.config.errors import did_you_mean
from kleiber.types.contracts import Adapter
from kleiber.types.model import Model

PARTS = ("embedding", "attention", "mlp", "experts", "router", "norms", "head", "heads")
ATTENTION = {"attention", "attn", "self_attn", "self_attention", "crossattention"}
ROUTER = {"router", "gate"}
NORM = re.compile(r"norm|^ln_?\w?$|^layernorm", re.IGNORECASE)
LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def parts(model: Model) -> dict[str, str]:
    """The part of every parameter of a model: one of PARTS."""
    roles = model.roles()
    inside = {id(parameter) for block in model.blocks for parameter in block.parameters()}
    return {name: _part(name, roles[name].kind, id(p) in inside) for name, p in model.named_parameters()}


def _part(name: str, kind: str, inside: bool) -> str:
    segments = name.split(".")
    if segments[0] == "heads":
        return "heads"
    if "experts" in segments:
        return "experts"
    if set(segments) & ROUTER:
        return "router"
    if any(NORM.search(segment) for segment in segments):
        return "norms"
    if not inside:
        return "embedding" if kind == "embedding" else "head"
    return "attention" if set(segments) & ATTENTION else "mlp"


def select(model: Model, selectors: list[str], key: str) -> set[str]:
    """Names of the parameters that a list of parts and layers (`layers.3`, `layers.0-1`) means.

    Raises ValueError for a selector that means nothing in this model, naming `key` and what there is.
    """
    of = parts(model)
    there = [*dict.fromkeys(of.values()), f"layers.0-{len(model.blocks) - 1}"]
    chosen: set[str] = set()
    for selector in selectors:
        named = {name for name, part in of.items() if part == selector} or _layers(model, selector)
        if not named:
            tied = selector == "head" and model.tied
            why = "its head is its embedding (model.tied=true)" if tied else f"there are {', '.join(there)}"
            raise ValueError(f"{key}: {selector} is no part of this model: {why}.{did_you_mean(selector, there)}")
        chosen |= named
    return chosen


def _layers(model: Model, selector: str) -> set[str]:
    matched = LAYERS.fullmatch(selector)
    if matched is None:
        return set()
    first, last = int(matched[1]), int(matched[2] or matched[1])
    if last >= len(model.blocks):
        return set()
    chosen = {id(p) for block in list(model.blocks)[first : last + 1] for p in block.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in chosen}


class Freeze(Adapter):
    """Trains what `train` names (null: everything) less what `freeze` names.

    Both are lists of parts (embedding, attention, mlp, experts, router, norms, head) and of layers (`layers.3`,
    `layers.0-1`). Heads of tasks always train, unless `freeze` names heads: they start from nothing.
    """

    def __init__(self, train: Sequence[str] | None = None, freeze: Sequence[str] = ()) -> None:
        if train is None and not freeze:
            raise ValueError("adapter=freeze freezes nothing: set adapter.freeze=[embedding] or adapter.train=[head]")
        both = sorted(set(train or ()) & set(freeze))
        if both:
            left = [name for name in freeze if name not in both]
            raise ValueError(
                f"adapter.train and adapter.freeze both name {', '.join(both)}: to train it set "
                f"adapter.freeze=[{','.join(left)}]"
            )
        self.train, self.freeze = train if train is None else list(train), list(freeze)

    def apply(self, model: Model, seed: int) -> None:
        """Stops training what is not to train; the seed is not used. Raises ValueError where nothing would be left."""
        everything = {name for name, _ in model.named_parameters()}
        kept = everything if self.train is None else select(model, self.train, "adapter.train")
        kept = kept | {name for name in everything if name.startswith("heads.")}
        kept -= select(model, self.freeze, "adapter.freeze")
        if not kept:
            raise ValueError(f"adapter.train={self.train}, adapter.freeze={self.freeze} leave nothing to train")
        for name, parameter in model.named_parameters():
            if name not in kept:
                parameter.requires_grad_(False)
