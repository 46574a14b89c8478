"""Names of configs and measures as figures show them."""

from __future__ import annotations

WORDS = {
    "moe": "mixture of experts", "agem": "A-GEM", "lora": "LoRA", "lstm": "LSTM", "qk": "QK", "relu2": "ReLU²",
    "gelu": "GELU", "gqa": "GQA", "topk": "top-k", "lossfree": "loss-free", "mcc": "Matthews correlation",
    "gpt2": "GPT-2", "llama": "Llama", "mixtral": "Mixtral", "bert": "BERT", "modernbert": "ModernBERT",
}  # fmt: skip


def readable(name: str) -> str:
    """Returns a name with spaces for underscores and known terms spelled out: `no QK norm` for `no_qk_norm`."""
    return " ".join(WORDS.get(word, word) for word in name.split("_"))
