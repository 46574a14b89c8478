"""Losses of a policy by which its answers become more likely the better their reward is, as functions of tensors.

The answers are in groups of equal size, each to one prompt. Tokens of all answers are in one vector, and `owner` has
the number of the answer that each belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

LossName = Literal["grpo", "dr_grpo", "reinforce"]
Estimator = Literal["k1", "k3"]
EPSILON = 1e-4  # added to the standard deviation of a group

Tokens = Float[Tensor, "tokens"]
Answers = Float[Tensor, "answers"]


@dataclass(frozen=True)
class PolicyLoss:
    """The settings of a loss.

    loss       "grpo": mean over the tokens of an answer of -min(r A, clip(r) A), r = pi/pi_old of a token, with
               A = (R - mean) / std of the rewards of its group (Shao et al. 2024, arXiv:2402.03300, eq. 3).
               "dr_grpo": the sum over tokens, divided by `longest`, with A = R - mean (Liu et al. 2025,
               arXiv:2503.20783, section 3.2). "reinforce": r is of the whole answer, and A = R - the mean of the others
               in the group, an unbiased policy gradient (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740)
    clip       largest distance of r from 1 with a gradient
    kl         weight of the divergence from the reference, KL(pi || pi_ref)
    estimator  "k3": ref/pi - 1 - log(ref/pi) of each token is added to the loss, whose gradient is on average that of
               KL(ref || pi). "k1": -log(ref/pi) of the whole answer is subtracted from its reward, which gives the
               gradient of KL(pi || ref); as a loss, its gradient would be 0 on average
    longest    most tokens of an answer
    """

    loss: LossName
    clip: float
    kl: float
    estimator: Estimator
    longest: int

    def advantages(self, rewards: Float[Tensor, "groups group"]) -> Float[Tensor, "groups group"]:
        """How much better each answer is than those of its group; all 0 for equal rewards."""
        size = rewards.shape[1]
        centered = rewards - rewards.mean(1, keepdim=True)
        if self.loss == "grpo":
            return centered / (rewards.std(1, keepdim=True) + EPSILON)
        return centered * size / (size - 1) if self.loss == "reinforce" else centered

    def penalized(
        self, rewards: Answers, log_probs: Tokens, reference: Tokens, owner: Int[Tensor, "tokens"]
    ) -> Answers:
        """The rewards minus the divergence of each answer by `kl`, for the estimator k1; else as they are."""
        if not self.kl or self.estimator != "k1":
            return rewards
        return rewards - self.kl * sum_by(owner, log_probs - reference, len(rewards)).to(rewards)

    def __call__(
        self, log_probs: Tokens, old: Tokens, reference: Tokens, owner: Int[Tensor, "tokens"], advantages: Answers
    ) -> tuple[Answers, Answers]:
        """Returns the loss of each answer, and the share of its ratios that are clipped.

        log_probs  of each token under the policy, in nats, with a gradient
        old        the same under the policy that wrote the answers
        reference  the same under the reference
        """
        count = len(advantages)
        lengths = sum_by(owner, torch.ones_like(log_probs), count)
        penalty = self.kl * k3(log_probs, reference) if self.kl and self.estimator == "k3" else log_probs * 0
        if self.loss == "reinforce":
            gain, clipped = self._surrogate(sum_by(owner, log_probs - old, count), advantages)
            return sum_by(owner, penalty, count) - gain, clipped
        gain, clipped = self._surrogate(log_probs - old, advantages[owner])
        sums = sum_by(owner, penalty - gain, count)
        return sums / (lengths if self.loss == "grpo" else self.longest), sum_by(owner, clipped, count) / lengths

    def _surrogate(self, log_ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """min(r A, clip(r) A), and 1 where that has no gradient."""
        ratio = log_ratio.exp()
        plain, clipped = ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages
        return torch.minimum(plain, clipped), (clipped < plain).to(log_ratio.dtype).detach()


def k3(log_probs: Tokens, reference: Tokens) -> Tokens:
    """ref/pi - 1 - log(ref/pi) of each token: >= 0, and KL(pi || ref) on average over the tokens of pi."""
    log_ratio = reference - log_probs
    return log_ratio.exp() - 1 - log_ratio


def estimate_kl(estimator: Estimator, log_probs: Tokens, reference: Tokens) -> Tokens:
    """The estimator of KL(pi || ref) at each token, in nats."""
    return k3(log_probs, reference) if estimator == "k3" else log_probs - reference


def sum_by(owner: Int[Tensor, "tokens"], values: Tokens, count: int) -> Answers:
    """The sum of the values of each answer."""
    return values.new_zeros(count).index_add(0, owner, values)
