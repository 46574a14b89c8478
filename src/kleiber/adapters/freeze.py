"""Trains a part of a model and leaves the rest as it was loaded: no new parameters, so there is nothing to merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kleiber.adapters.parts import select


class Freeze:
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

    def apply(self, model: Any, seed: int) -> None:
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

    def merge(self, model: Any) -> None:
        """Nothing was added; every parameter is an ordinary one again."""
        model.requires_grad_(True)
