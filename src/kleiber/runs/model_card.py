"""The model card of an exported run: what it is, how it was trained and scored, and how it is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from kleiber.config.stages import has_pretrained_weights
from kleiber.models.counting import count_parameters
from kleiber.records.environment import versions
from kleiber.records.terminal import printable
from kleiber.runs.open import TrainedModel
from kleiber.types import Config, Json

AUTO_CLASSES = {  # by the ending of transformers' class names: the AutoModel that loads the class, and its pipeline
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}


@dataclass(frozen=True)
class ModelCard:
    """The README of an exported folder: what the model is, where it comes from, and how to load it.

    architecture  transformers' class name of the exported model
    parameters    number of parameters of the exported model
    name          under which transformers loads the folder
    license       of the weights; None where it is not stated
    chats         a sentence on the chat template; "" for a model that was not trained on conversations
    """

    trained: TrainedModel
    architecture: str
    parameters: int
    name: str
    license: str | None = None
    chats: str = ""

    def text(self) -> str:
        """Returns the card in Markdown, with metadata for the hub."""
        rows = "".join(f"| {card_cell(name)} | {card_cell(value)} |\n" for name, value in self.facts().items())
        auto_class, pipeline = "AutoModel", "feature-extraction"
        for ending, names in AUTO_CLASSES.items():
            if self.architecture.endswith(ending):
                auto_class, pipeline = names
        libraries = [f"{name} {number}" for name, number in versions().items() if name in ("torch", "transformers")]
        metadata = "" if self.license is None else f"license: {self.license}\n"
        license_text = (
            "The license of the weights is not stated: it depends on the licenses of the training data and of the "
            "weights that the run started from. `kleiber export --license NAME` states it."
            if self.license is None
            else f"The license of the weights is {self.license}."
        )
        return f"""---
{metadata}library_name: transformers
pipeline_tag: {pipeline}
tags: [kleiber]
---

# {card_cell(self.trained.folder.name)}

{self.architecture}, exported from a kleiber run; the multipliers of its parametrization are folded into the weights.
{f"{self.chats} " if self.chats else ""}{license_text}

| | |
| --- | --- |
{rows}
```python
from transformers import {auto_class}, AutoTokenizer
model, tokenizer = (kind.from_pretrained({json.dumps(self.name)}) for kind in ({auto_class}, AutoTokenizer))
```

Written with {", ".join(libraries)}.
"""

    def facts(self) -> Json:
        """Returns the table of the card: facts from the run's summary by name, with the metrics of the stage."""
        trained = self.trained
        record, summary = trained.record, trained.summary
        data, counts = record.get("data") or {}, count_parameters(trained.model)
        start = start_name(trained.config) or (Path(str(summary["source"])).name if "source" in summary else None)
        facts: Json = {
            "run": f"{trained.folder.name}, stage {trained.stage}, step {trained.step:,}",
            "config hash": summary.get("config_hash"),
            "commit": f"{summary.get('commit')}{' with uncommitted changes' if summary.get('dirty') else ''}",
            "objective": record.get("objective"),
            **({} if start is None else {"started from": start}),
            "data": " ".join(str(data[key]) for key in ("name", "config") if data.get(key)),
            "data hash": data.get("hash"),
            "tokenizer hash": data.get("tokenizer_hash"),
            "training tokens": _format_count(record.get("tokens")),
            "unique tokens": _format_count(record.get("unique_tokens")),
            "parameters": f"{self.parameters:,}, {self.parameters - counts.total + counts.active:,} active",
            "learning rate": record.get("lr"),
            "seed": summary.get("seed"),
        }
        facts |= {name: value for name, value in (record.get("metrics") or {}).items() if value is not None}
        if trained.model.heads:
            facts["task heads, not exported"] = ", ".join(trained.model.heads)
        return facts


def start_name(config: Config) -> str | None:
    """Returns the name of what a run started from, such as RUN/STAGE or a Hugging Face folder; None for nothing."""
    init, model = config.get("init") or {}, config.get("model") or {}
    if init.get("path"):
        path = Path(str(init["path"]))
        return path.name if str(init["_target_"]).endswith(".HF") else f"{path.parent.name}/{path.name}"
    return Path(str(model["path"])).name if model and has_pretrained_weights(model) else None


def card_cell(value: object) -> str:
    """Returns a recorded value as text of a card: a name could otherwise end the table, or add links or HTML."""
    text = "unknown" if value in (None, "") else " ".join(printable(str(value)).split())
    return re.sub(r"[\\`*\[\]|]", r"\\\g<0>", escape(text, quote=False))


def _format_count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"
