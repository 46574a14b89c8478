"""Reads the weights of a Hugging Face folder, without its code and pickles, and refuses what cannot be trained from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kleiber.config.errors import ConfigError
from kleiber.models.hf_config import PreTrainedModel, read_config
from kleiber.types import Json

ALLOW = "--allow-nonfinite of `kleiber import`, init.allow_nonfinite=true, or model.allow_nonfinite=true"


def read_folder(folder: Path, dtype: torch.dtype = torch.float32, allow_nonfinite: bool = False) -> PreTrainedModel:
    """The causal model of a folder with safetensors; code and pickles in the folder are never opened.

    allow_nonfinite  whether weights may be NaN or infinite

    Raises ValueError, which names the folder, for damaged, missing or surplus weights; transformers would replace
    missing ones by random numbers and ignore surplus ones.
    """
    from transformers import AutoModelForCausalLM

    read_config(folder)
    kind: PreTrainedModel = AutoModelForCausalLM
    options: Json = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        twin, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # of several types, by validators of transformers
        raise ValueError(f"the weights in {folder} cannot be read: {error}; download the model again") from None
    tied = {"lm_head.weight"} if twin.config.tie_word_embeddings else set()
    missing, surplus = sorted(set(info["missing_keys"]) - tied), sorted(info["unexpected_keys"])
    if missing:
        raise ValueError(f"{folder} has no weights for {', '.join(missing[:3])}: download the model again")
    if surplus:
        raise ValueError(
            f"{folder} has weights for {', '.join(surplus[:3])}, which the {twin.config.model_type} of its config.json "
            "does not have: config.json and the weights are of different models"
        )
    if not allow_nonfinite:
        check_finite(twin, folder)
    return twin


def check_finite(model: nn.Module, folder: Path) -> None:
    """Raises ConfigError, which names file and key, where a weight that was read from `folder` is NaN or infinite."""
    bad = next((name for name, weight in model.state_dict().items() if not _is_finite(weight)), None)
    if bad is None:
        return
    places = ((file, key) for file, key, weight in _saved_weights(folder) if not _is_finite(weight))
    file, key = next(places, (folder, bad))  # a weight may also overflow in the precision of the model
    raise ConfigError(
        f"{file}: the weight {key} has values that are NaN or infinite, and so would be every loss: download the model "
        f"again, or allow such weights ({ALLOW})"
    )


def _is_finite(weight: Tensor) -> bool:
    """Whether no value is NaN or infinite: a finite sum shows it fast, and one that is not may be an overflow."""
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())


def _saved_weights(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118, because it is no dictionary
                    yield file, key, weights.get_tensor(key)
        except (OSError, SafetensorError):  # not of this model, which has been read
            continue
