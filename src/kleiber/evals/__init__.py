"""Evaluations: each measures one property of a model on held-out data, and does not train it."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.evals.choice import COLUMNS, score_questions
    from kleiber.evals.evaluation import (
        CHUNK,
        LEVEL,
        RESAMPLES,
        Evaluation,
        Items,
        Results,
        Subject,
        mean_score,
        percentile_score,
        proportion_score,
        ratio_score,
        share_difference_score,
    )
    from kleiber.evals.exact_match import final_number, match_answers, numeric_questions
    from kleiber.evals.generation import asked, write_texts
    from kleiber.evals.item_figures import score_figures
    from kleiber.evals.likelihood import (
        LOGITS,
        Ids,
        Pair,
        cut_by_length,
        encode_pairs,
        log_likelihoods,
        pass_tokens,
        target_scores,
    )
    from kleiber.evals.measure import own_sets
    from kleiber.evals.pairs import pseudo_log_likelihoods
    from kleiber.evals.streams import (
        Change,
        Stream,
        changed_input,
        changed_output,
        changed_stream,
        hooked,
        num_layers,
        read_streams,
    )
    from kleiber.evals.task_scores import BITS_PER_BYTE, bytes_per_target
    from kleiber.evals.text_loss import TextLosses, resampled_ratios, resampled_score, training_parts
    from kleiber.evals.text_metrics import answer_values

EXPORTS = {
    "Choice": "choice",
    "ExactMatch": "exact_match",
    "Generation": "generation",
    "Harness": "harness",
    "Latency": "latency",
    "NoiseScale": "noise_scale",
    "OOD": "ood",
    "Pairs": "pairs",
    "Perplexity": "perplexity",
    "Preference": "preference",
    "Quantized": "quantized",
    "Reference": "reference",
    "Reward": "reward",
    "Routing": "routing",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
