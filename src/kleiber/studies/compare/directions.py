"""Whether a lower or a higher value of a measure is better, by the name of the measure or by the claims about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kleiber.studies.compare.decision import Claim

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


def better_direction(measure: str) -> str | None:
    """Returns "lower" or "higher", whichever value of the measure is better; None where its name does not tell.

    The metric is the last part of the name, or the one before it, as in val/docs/position/64.
    """
    for part in reversed(measure.split("/")[-2:]):
        metric = SUFFIX.sub("", part)
        if metric in LOWER or metric.endswith("_ms"):
            return "lower"
        if metric in HIGHER or metric.endswith("_per_s"):
            return "higher"
    return None


def direction_of(measure: str, claims: Sequence[Claim]) -> str:
    """Returns "lower" or "higher", whichever value of the measure is better: by its name, else by the claims about it.

    Raises ValueError where neither tells.
    """
    stated = {claim.criterion.better for claim in claims if claim.measure == measure} - {None}
    direction = better_direction(measure) or (stated.pop() if len(stated) == 1 else None)
    if direction is None:
        raise ValueError(
            f"study.measure={measure} does not tell whether a lower or a higher value is better; state it by claims "
            "of one direction, such as study.claims=[{arm: B, against: A, direction: lower}]"
        )
    return direction
