"""Config nodes to objects, and the run-time values that a target may ask for by the name of an argument.

A config says what a person turns; what only the run knows (the size of the vocabulary, the folder) is supplied by
name to every target whose signature has that name. It imports neither torch nor any target before it is asked to.
"""

from __future__ import annotations

import inspect
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

# Arguments that only a run can fill in. A config that sets one of them is refused by the check.
SUPPLIED = frozenset(
    {
        "batch_tokens", "branch_steps", "config_hash", "corpus", "evaluate", "folder", "group", "open_model", "record",
        "run_config", "run_id", "run_name", "vocabulary", "vocab_size",
    }
)  # fmt: skip


def build(node: DictConfig, **available: Any) -> Any:
    """Instantiates a node, with those of the `available` values that its target's signature names."""
    assert available.keys() <= SUPPLIED, f"not declared as supplied: {sorted(available.keys() - SUPPLIED)}"
    wanted = inspect.signature(get_object(node._target_)).parameters
    # Supplied objects go to the target itself: inside a config, OmegaConf would take dataclasses apart.
    target = instantiate(node, _convert_="all", _partial_=True)
    return target(**{name: value for name, value in available.items() if name in wanted})
