"""Labels and units of measures, and names of arms, as sentences, tables and figures show them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kleiber.config.model_size import width_of
from kleiber.studies.compare.directions import split_measure
from kleiber.types import Row

if TYPE_CHECKING:
    from kleiber.records.catalog import Run

LOSS = "loss"
UNITS = {"loss": "nats", "bits_per_byte": "bits/byte"}  # of metrics of one task; those of others are their names
MEASURES = {  # label and unit of measures; those of others are parts of their names
    LOSS: ("loss", "nats per token"),
    "moe/max_violation": ("excess load of the busiest expert", "of the mean load"),
    "moe/load_entropy": ("entropy of the expert loads", "of its maximum"),
    "moe/dead": ("number of dead experts", "experts per layer"),
}
TERMS = {
    "moe": "mixture of experts", "agem": "A-GEM", "lora": "LoRA", "lstm": "LSTM", "qk": "QK", "relu2": "ReLU²",
    "gelu": "GELU", "gqa": "GQA", "topk": "top-k", "lossfree": "loss-free", "mcc": "Matthews correlation",
    "gpt2": "GPT-2", "llama": "Llama", "mixtral": "Mixtral", "bert": "BERT", "modernbert": "ModernBERT",
    "muon": "Muon", "clm": "CLM", "mlm": "MLM",
    "sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC", "stsb": "STS-B", "qnli": "QNLI",
    "qqp": "QQP", "rte": "RTE", "wnli": "WNLI", "mnli": "MNLI", "boolq": "BoolQ", "cb": "CB", "copa": "COPA",
    "wic": "WiC", "wsc": "WSC", "multirc": "MultiRC", "record": "ReCoRD", "trec": "TREC", "ag_news": "AG News",
    "mbpp": "MBPP", "gsm8k": "GSM8K", "tinystories": "TinyStories", "alpaca": "Alpaca", "dolly": "Dolly",
}  # fmt: skip
COUNTED = {"digits": "sums of {} digits", "length": "length {}"}  # parts of measures that end in a number


def readable(name: str) -> str:
    """Returns a name with spaces for underscores and known terms spelled out: `no QK norm` for `no_qk_norm`."""
    return TERMS.get(name) or " ".join(TERMS.get(part, part) for part in name.split("_"))


def arm_labels(runs: Sequence[Run], arm_of: Callable[[Run], str | None]) -> dict[str, str]:
    """Returns what figures call each arm that has runs.

    Where the name of an arm ends in the width of its model, such as moe_96, every arm of one width is called by its
    width: `mixture of experts, width 96`.
    """
    widths: dict[str, set[int | None]] = {}
    for run in runs:
        arm, model = arm_of(run), run.config.get("model") or {}
        if arm is not None:
            widths.setdefault(arm, set()).add(width_of(model) if model.get("width") or model.get("aspect") else None)
    width = {arm: each.pop() if len(each) == 1 else None for arm, each in widths.items()}
    if not any(arm.endswith(f"_{width[arm]}") for arm in width):
        return {arm: readable(arm) for arm in width}
    stems = {arm: readable(arm.removesuffix(f"_{size}")) for arm, size in width.items()}
    return {arm: stems[arm] if size is None else f"{stems[arm]}, width {size}" for arm, size in width.items()}


def with_labels(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Row]:
    """Returns rows with the labels of their arms in the columns arm and against."""
    return [{**row, **{key: labels[row[key]] for key in ("arm", "against") if key in row}} for row in rows]


def text_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Returns what figures call the texts of data.path that one data.config chooses: `domains (law)` for domains."""
    configs: dict[str, set[str]] = {}
    for run in runs:
        data = run.config.get("data") or {}
        for task in run.stage.get("tasks") or ():
            if data.get("path") and data.get("config") and not data.get("name"):
                configs.setdefault(task, set()).add(data["config"])
    return {task: f"{readable(task)} ({each.pop()})" for task, each in configs.items() if len(each) == 1}


def arm_from_text(kind: str, text: str) -> str:
    """The name of an arm that is a kind of model, pre-trained on one of several texts."""
    return f"{kind} from {text}"


def label_of(measure: str) -> str:
    """The name of a measure in sentences: `accuracy (sst2)` for val/sst2/accuracy."""
    if measure in MEASURES:
        return MEASURES[measure][0]
    place, metric, detail = split_measure(measure)
    return f"{metric} ({', '.join(filter(None, [place, detail]))})"


def unit_of(measure: str) -> str:
    _, metric, _ = split_measure(measure)
    return MEASURES[measure][1] if measure in MEASURES else UNITS.get(metric, metric)


def axis_label(measure: str) -> str:
    """The label of an axis: the name of a measure, with its unit where that is known."""
    if measure == LOSS:
        return "validation loss (nats per token)"
    place, metric, detail = split_measure(measure)
    unit = MEASURES[measure][1] if measure in MEASURES else UNITS.get(metric)
    where = ", ".join(readable(part.replace("/", "_")) for part in (place.removesuffix("/all"), detail) if part)
    where = re.sub(rf"\b({'|'.join(COUNTED)})(\d+)", lambda match: COUNTED[match[1]].format(match[2]), where)
    label = MEASURES[measure][0] if measure in MEASURES else f"{readable(metric)} on {where}"
    return label if unit is None else f"{label} ({unit})"
