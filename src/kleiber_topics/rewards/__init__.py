"""Rewards: programs that verify answers, and problems whose answers they can verify."""

from kleiber.types import lazy_exports

EXPORTS = {
    "AnswerPairs": "own_answers",
    "Countdown": "problems",
    "Divergence": "divergence",
    "ProxyReward": "proxy_reward",
    "RightAnswers": "own_answers",
    "Sorting": "problems",
    "matched_forgetting": "matched",
    "scores_at_distances": "over_optimization",
}
REWARDS = {
    "arithmetic": "verifiers.arithmetic",
    "countdown": "verifiers.countdown",
    "format": "verifiers.format_score",
    "length": "verifiers.length",
    "number": "verifiers.number",
    "sorting": "verifiers.sorting",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
