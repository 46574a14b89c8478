"""Evaluations: each measures one property of a model on held-out data, and does not train it."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Attention": "attention.attention",
    "Attribution": "attribution.evaluation",
    "Autoencoder": "autoencoder.evaluation",
    "Bias": "bias.evaluation",
    "Calibration": "calibration.evaluation",
    "Choice": "choice",
    "Degeneration": "degeneration.evaluation",
    "ExactMatch": "exact_match",
    "Harness": "harness",
    "Instructions": "instructions.evaluation",
    "Latency": "latency",
    "Memorization": "memorization.memorization",
    "Needle": "needle",
    "NoiseScale": "noise_scale",
    "OOD": "ood",
    "Pairs": "pairs",
    "Patching": "patching.evaluation",
    "Perplexity": "perplexity",
    "Preference": "preference",
    "Probes": "probes.evaluation",
    "Reference": "reference",
    "Retrieval": "retrieval.evaluation",
    "Routing": "routing",
    "WinRate": "win_rate",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
