"""The metric of a measure, and whether a lower or a higher value of it is better, by its name or by claims about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LOWER = {
    "loss", "loss_reconstructed", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "nats", "error",
    "mae", "mse", "rmse", "gap", "position",
    "ece", "ece_equal_width", "ece_excess", "brier", "aurc", "excess_aurc",
    "rep", "seq_rep", "self_bleu", "longest_repeat", "loop_rate", "unigram_kl", "unasked",
    "exposure", "extracted", "membership_auc", "membership_tpr", "epsilon", "contamination", "biased_groups",
    "max_violation", "dead", "load_shift", "kl", "alarms", "deletion", "completeness_error",
    "store_bytes", "memory_bytes", "store_seconds", "seconds_per_token",
}  # fmt: skip
HIGHER = {
    "accuracy", "accuracy_per_byte", "reward_accuracy", "acc", "acc_norm", "acc_bytes", "exact_match", "log_prob",
    "f1", "micro_f1", "macro_f1", "mcc", "auc", "pearson", "spearman", "r2", "margin", "margin_per_byte",
    "bleu", "rouge1", "rouge2", "rougeL", "distinct", "mauve", "win_rate", "utility", "lift", "answer_retrieved",
    "load_entropy", "icat", "lm_score", "selectivity", "loss_recovered", "explained_variance",
    "planted_first", "planted_found", "deletion_gain", "insertion", "insertion_gain",
}  # fmt: skip
SUFFIX = re.compile(r"(_at)?_[\d.]+$|_change$")  # of n-grams and coverages, as in distinct_2; and changes of a metric


def split_measure(measure: str) -> tuple[str, str, str]:
    """Returns place, metric and detail of a measure: latency, decode_p50_ms and 1 of latency/decode_p50_ms/1.

    The metric is the last part of the name, or the one before it where that alone is known or the last is a number.
    The detail is what comes after it, and the place what comes before it.
    """
    *places, last = measure.removeprefix("eval/").removeprefix("val/").split("/")
    if places and _direction(last) is None and (_direction(places[-1]) or re.fullmatch(r"[\d.]+", last)):
        return "/".join(places[:-1]), places[-1], last
    return "/".join(places), last, ""


def better_direction(measure: str) -> str | None:
    """Returns "lower" or "higher", whichever value of the measure is better; None where its metric does not tell."""
    return _direction(split_measure(measure)[1])


def _direction(metric: str) -> str | None:
    stem = SUFFIX.sub("", metric)
    if stem in LOWER or stem.endswith("_ms"):
        return "lower"
    return "higher" if stem in HIGHER or stem.endswith("_per_s") else None


def direction_of(measure: str, claims: Sequence[Mapping[str, object]]) -> str:
    """Returns "lower" or "higher", whichever value of the measure is better: by its name, else by the claims about it.

    claims  nodes of the config; one without a measure is about this one

    Raises ValueError where neither tells.
    """
    asked = [str(node.get("direction") or "lower") for node in claims if node.get("measure", measure) == measure]
    stated = {
        "higher" if direction in ("higher", "not_lower") else "lower" for direction in asked if direction != "within"
    }
    direction = better_direction(measure) or (stated.pop() if len(stated) == 1 else None)
    if direction is None:
        raise ValueError(
            f"study.measure={measure} does not tell whether a lower or a higher value is better; state it by claims "
            "of one direction, such as study.claims=[{arm: B, against: A, direction: lower}]"
        )
    return direction
