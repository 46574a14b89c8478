"""Labels and units of measures, and names of arms, as sentences, tables and figures show them."""

from __future__ import annotations

from kleiber.studies.compare.directions import split_measure

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
}  # fmt: skip


def readable(name: str) -> str:
    """Returns a name with spaces for underscores and known terms spelled out: `no QK norm` for `no_qk_norm`."""
    return " ".join(TERMS.get(part, part) for part in name.split("_"))


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
    label = MEASURES[measure][0] if measure in MEASURES else f"{readable(metric)} on {where}"
    return label if unit is None else f"{label} ({unit})"
