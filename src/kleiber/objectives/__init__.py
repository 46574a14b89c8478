"""Objectives: from a batch and a model to a loss, as sums over target tokens."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.objectives.answer_rewards import VERIFIER, Answer, AnswerRewards, RewardModel
    from kleiber.objectives.clm import CLM, next_token_inputs
    from kleiber.objectives.dpo import answer_log_probs
    from kleiber.objectives.rollouts import (
        Question,
        answer_limit,
        frozen_log_probs,
        questions_of,
        to_batch,
        write_answers,
    )

EXPORTS = {
    "Classify": "classify",
    "CLM": "clm",
    "SFT": "sft",
    "Distill": "distill",
    "DPO": "dpo",
    "GRPO": "grpo",
    "KTO": "kto",
    "MLM": "mlm",
    "Reward": "reward",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
