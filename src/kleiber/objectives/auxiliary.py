"""What objectives with output layers of their own share: the layer's name, and auxiliary losses per token.

Beside an objective that counts something else than tokens, auxiliary losses keep their weight per token.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from kleiber.types import Batch, Output


def rescaled(output: Output, batch: Batch, count: int | Tensor) -> dict[str, Tensor]:
    """The aux sums of `output` over the real tokens of `batch`, times count / tokens.

    Divided by `count`, the number that the objective's own sum is over, they are means per token again, so that a
    coefficient means the same in pre-training and fine-tuning. Counts of assignments stay counts.
    """
    if not output.aux:
        return {}
    tokens = batch.tokens.numel() if batch.real is None else torch.clamp(batch.real.sum(), min=1)
    return {name: value if name.startswith("load/") else value * (count / tokens) for name, value in output.aux.items()}


def head_name(task: str, *meaning: Any) -> str:
    """The key of a task's output layer in a model: its name, and a digest of what the outputs stand for, so that tasks
    whose names alone agree have layers of their own."""
    return f"{task.replace('.', '_')}-{hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:8]}"
