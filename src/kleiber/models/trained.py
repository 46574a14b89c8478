"""The model of a finished run, to be asked and not trained: built from the run's config, with its last weights.

It reads config.yaml, summary.json and safetensors, never a pickle. It refuses a run without a finished stage, and
weights that are not those that their meta.json describes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_model

from kleiber.build import build


@dataclass(frozen=True)
class Trained:
    """A frozen model in evaluation mode, and the hash of the tokenizer whose ids it reads."""

    model: Any
    tokenizer_hash: str


def trained(path: str, key: str) -> Trained:
    """The model of RUN or RUN/STAGE (without one, the last finished stage). `key` is named in errors."""
    folder, stage = _run(Path(path).expanduser(), key)
    try:
        config: Any = OmegaConf.load(folder / "config.yaml")
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}={path} is no folder of a run: {error}") from None
    records = {record["name"]: record for record in summary["stages"]}
    if not records or (stage is not None and stage not in records):
        raise ValueError(f"{key}={path}: there is no such finished stage; finished are {', '.join(records) or 'none'}")
    name = list(records)[-1] if stage is None else stage
    place = _newest(folder / "stages" / name / "checkpoints", f"{key}={path}") / "model.safetensors"
    with safe_open(place, framework="pt") as weights:
        shapes = {tensor: weights.get_slice(tensor).get_shape() for tensor in weights.keys()}  # noqa: SIM118
    # Tied matrices are saved under one of their names.
    model = build(config.model, vocab_size=(shapes.get("embedding.weight") or shapes["head.weight"])[0])
    for head in {tensor.split(".")[1] for tensor in shapes if tensor.startswith("heads.")}:
        model.add_head(head, shapes[f"heads.{head}.weight"][0])
    try:
        load_model(model, place)
    except RuntimeError as error:
        raise ValueError(f"{key}={path}: its weights are not those of its model: {error}") from None
    return Trained(model.eval().requires_grad_(False), records[name]["data"]["tokenizer_hash"])


def _run(path: Path, key: str) -> tuple[Path, str | None]:
    if (path / "config.yaml").is_file():
        return path, None
    if (path.parent / "config.yaml").is_file():
        return path.parent, path.name
    raise ValueError(f"{key}={path}: there is no run (a folder with config.yaml) and no stage of one")


def _newest(folder: Path, told: str) -> Path:
    """The newest checkpoint whose weights have the checksum that meta.json says."""
    for place in sorted(folder.glob("step-*"), reverse=True):
        try:
            said = json.loads((place / "meta.json").read_text())["sha256"]["model.safetensors"]
            found = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
        except (OSError, ValueError, KeyError):
            continue
        if found == said:
            return place
    raise ValueError(f"{told}: no good checkpoint in {folder}")
