"""The causal model in a Hugging Face folder as transformers builds it, with every weight that it has from the folder.

transformers fills what is missing with random numbers and drops what it has no place for: here both are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


def read_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder with safetensors; no code or pickle that came with it is opened.

    Raises ValueError, naming the folder, for damaged weights, and for ones that are missing or have no place.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    kind: Any = AutoModelForCausalLM
    try:
        twin, told = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    except (KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}; fetch the model anew") from None
    tied = {"lm_head.weight"} if twin.config.tie_word_embeddings else set()
    missing, more = sorted(set(told["missing_keys"]) - tied), sorted(told["unexpected_keys"])
    if missing:
        raise ValueError(f"{folder} holds no weights for {', '.join(missing[:3])}: it is damaged, so fetch it anew")
    if more:
        raise ValueError(
            f"{folder} holds {', '.join(more[:3])}, which a {twin.config.model_type} with its config.json has no place "
            "for: config.json is of another model"
        )
    return twin
