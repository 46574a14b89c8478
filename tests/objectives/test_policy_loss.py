"""Losses of a policy: those of TRL on the same answers, formulas by hand, and the exact policy gradient on average."""

from __future__ import annotations

import itertools
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kleiber.objectives.policy_loss import PolicyLoss, estimate_kl, sum_by

LOSSES, ESTIMATORS = ["grpo", "dr_grpo", "reinforce"], ["k1", "k3"]
LONGEST, GROUP, PROMPTS = 7, 4, 3


class Answers:
    """Random answers of unequal length, with log-probabilities of a policy that has moved since it wrote them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        lengths = torch.randint(1, LONGEST + 1, (PROMPTS * GROUP,))
        self.mask = torch.arange(LONGEST) < lengths[:, None]
        self.now = (-torch.rand(self.mask.shape, dtype=torch.float64) * 2).requires_grad_()
        self.old = self.now.detach() + 0.3 * torch.randn(self.mask.shape, dtype=torch.float64)
        self.start = self.now.detach() + 0.5 * torch.randn(self.mask.shape, dtype=torch.float64)
        self.rewards = torch.rand(PROMPTS * GROUP, dtype=torch.float64)
        self.rewards[:GROUP] = 1.0  # a degenerate group

    @property
    def owner(self) -> Tensor:
        return self.mask.nonzero()[:, 0]

    def loss(self, settings: PolicyLoss) -> Tensor:
        """The mean loss, as training computes it."""
        tokens = [values[self.mask] for values in (self.now, self.old, self.start)]
        rewards = settings.penalized(self.rewards, tokens[1], tokens[2], self.owner)
        advantages = settings.advantages(rewards.view(PROMPTS, GROUP)).flatten()
        return settings(*tokens, self.owner, advantages)[0].mean()


def gradient(answers: Answers, loss: Tensor) -> Tensor:
    answers.now.grad = None
    loss.backward()
    assert answers.now.grad is not None
    return answers.now.grad.clone()


def trl_advantages(answers: Answers, loss: str, kl: float, estimator: str) -> Tensor:
    """As TRL's trainers compute them, written out: they are part of a method that also generates."""
    rewards = answers.rewards
    if estimator == "k1":
        rewards = rewards - kl * ((answers.old - answers.start) * answers.mask).sum(1)
    grouped = rewards.view(PROMPTS, GROUP)
    if loss == "reinforce":
        return (grouped - (grouped.sum(1, keepdim=True) - grouped) / (GROUP - 1)).flatten()
    centered = grouped - grouped.mean(1, keepdim=True)
    return (centered / (grouped.std(1, keepdim=True) + 1e-4) if loss == "grpo" else centered).flatten()


@pytest.mark.slow
@pytest.mark.parametrize("kl", [0.0, 0.2])
@pytest.mark.parametrize(("loss", "estimator"), [*itertools.product(LOSSES, ESTIMATORS)])
def test_loss_and_gradient_are_those_of_trl(loss, estimator, kl):
    if loss == "reinforce" and estimator == "k3":
        pytest.skip("TRL's RLOO knows the estimator k1 alone")
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="pip install trl")
    rloo = pytest.importorskip("trl.trainer.rloo_trainer", reason="pip install trl")
    answers, accelerator = Answers(), SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (answers.now, torch.zeros_like(answers.now), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", beta=kl if estimator == "k3" else 0.0, loss_type=loss, epsilon_low=0.2,
        epsilon_high=0.2, max_completion_length=LONGEST, current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False, accelerator=accelerator, model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    ids = torch.zeros(len(answers.mask), LONGEST, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": answers.mask.double(),
        "advantages": trl_advantages(answers, loss, kl, estimator), "old_per_token_logps": answers.old,
        "ref_per_token_logps": answers.start, "old_logps": (answers.old * answers.mask).sum(1),
    }  # fmt: skip
    compute = rloo.RLOOTrainer._compute_loss if loss == "reinforce" else grpo.GRPOTrainer._compute_loss
    theirs = compute(trainer, None, inputs)
    expected = gradient(answers, theirs)
    ours = answers.loss(PolicyLoss(loss, 0.2, kl, estimator, LONGEST))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(gradient(answers, ours), expected, atol=1e-5) and expected.abs().max() > 1e-3


@pytest.mark.parametrize("kl", [0.0, 0.2])
@pytest.mark.parametrize(("loss", "estimator"), [*itertools.product(LOSSES, ESTIMATORS)])
def test_loss_and_gradient_are_the_formulas_token_by_token(loss, estimator, kl):
    answers = Answers()
    advantages = trl_advantages(answers, loss, kl, estimator)
    total = torch.zeros((), dtype=torch.float64)
    for i, length in enumerate(answers.mask.sum(1).tolist()):
        now, old, start = (values[i, :length] for values in (answers.now, answers.old, answers.start))
        penalty = kl * ((start - now).exp() - 1 - (start - now)) if estimator == "k3" else 0 * now
        ratio = (now.sum() - old.sum()).exp() if loss == "reinforce" else (now - old).exp()
        bounded = ratio.clamp(0.8, 1.2)
        gain = torch.minimum(ratio * advantages[i], bounded * advantages[i])
        if loss == "reinforce":
            total = total + penalty.sum() - gain
        else:
            total = total + (penalty - gain).sum() / (length if loss == "grpo" else LONGEST)
    ours = answers.loss(PolicyLoss(loss, 0.2, kl, estimator, LONGEST))
    mean = total / len(answers.mask)
    assert ours.item() == pytest.approx(mean.item(), abs=1e-12)
    assert torch.allclose(gradient(answers, ours), gradient(answers, mean), atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_toy_of_two_tokens_by_hand(loss):
    """Two answers of one token to a prompt, of which one is right: probabilities 1/4 and 3/4, rewards 1 and 0."""
    logits = torch.tensor([0.0, torch.tensor(3.0).log()], dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(0)
    settings = PolicyLoss(loss, 0.2, 0.0, "k3", 2)
    advantages = settings.advantages(torch.tensor([[1.0, 0.0]], dtype=torch.float64)).flatten()
    spread = 0.5 / (0.5**0.5 + 1e-4)
    expected = {"grpo": [spread, -spread], "dr_grpo": [0.5, -0.5], "reinforce": [1.0, -1.0]}[loss]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    losses, clipped = settings(log_probs, log_probs.detach(), log_probs.detach(), torch.arange(2), advantages)
    losses.sum().backward()
    a, b = expected
    scale = 2 if loss == "dr_grpo" else 1  # divided by the longest answer
    # d log p / d logits is (1 - p, p - 1) on the first logit.
    first = -(a * 0.75 + b * -0.25) / scale
    assert logits.grad is not None and logits.grad.tolist() == pytest.approx([first, -first], abs=1e-9)
    assert losses.tolist() == pytest.approx([-a / scale, -b / scale], abs=1e-9) and clipped.sum() == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_averages_to_the_exact_one_on_an_enumerable_toy(estimator):
    """One token of four: the gradient of E[R] - kl KL(pi || ref) is a sum over four answers."""
    torch.manual_seed(1)
    kl, draws, group = 0.3, 20_000, 4
    logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
    start = torch.randn(4, dtype=torch.float64).log_softmax(0)
    reward = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64)
    log_probs = logits.log_softmax(0)
    (log_probs.exp() @ (reward - kl * (log_probs - start))).backward()
    assert logits.grad is not None
    exact = logits.grad.clone()
    settings = PolicyLoss("reinforce", 0.2, kl, estimator, 1)
    tokens = torch.multinomial(log_probs.detach().exp().expand(draws, 4), group, replacement=True)
    values = log_probs.detach()[tokens.flatten()].requires_grad_()
    owner, of_start = torch.arange(draws * group), start[tokens.flatten()]
    rewards = settings.penalized(reward[tokens.flatten()], values.detach(), of_start, owner)
    advantages = settings.advantages(rewards.view(draws, group)).flatten()
    settings(values, values.detach(), of_start, owner, advantages)[0].sum().backward()
    assert values.grad is not None
    jacobian = torch.eye(4, dtype=torch.float64) - log_probs.detach().exp()  # of log p by the logits
    each = -(values.grad.view(draws, group, 1) * jacobian[tokens]).mean(1)
    if estimator == "k3":  # as a loss, its gradient is that of KL(ref || pi) on policy: only the reward's is exact
        penalty = (log_probs.detach().exp() - start.exp()) * kl
        logits.grad = None
        (logits.softmax(0) @ reward).backward()
        exact = logits.grad - penalty
    error = each.std(0) / draws**0.5
    assert ((each.mean(0) - exact).abs() < 3 * error).all() and (exact.abs() > 10 * error).any()


def test_equal_rewards_teach_nothing_and_ratios_beyond_the_clip_have_no_gradient():
    for loss in LOSSES:
        settings = PolicyLoss(loss, 0.2, 0.0, "k3", 4)
        assert settings.advantages(torch.full((2, 3), 0.7)).abs().max() < 1e-6
    values = torch.tensor([0.5, -0.5], requires_grad=True)  # twice too likely, and half as likely
    settings = PolicyLoss("grpo", 0.2, 0.0, "k3", 4)
    losses, clipped = settings(values, torch.zeros(2), torch.zeros(2), torch.arange(2), torch.tensor([1.0, -1.0]))
    losses.sum().backward()
    assert clipped.tolist() == [1, 1] and values.grad is not None and values.grad.tolist() == [0, 0]


def test_both_estimators_have_the_mean_of_the_divergence():
    torch.manual_seed(0)
    policy, start = (torch.randn(5, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = policy.exp() @ (policy - start)
    tokens = torch.multinomial(policy.exp(), 50_000, replacement=True)
    for name in ESTIMATORS:
        values = estimate_kl(name, policy[tokens], start[tokens])
        assert values.mean().item() == pytest.approx(exact.item(), abs=3 * values.std().item() / 50_000**0.5)
        assert name == "k1" or values.min() >= 0
    assert sum_by(torch.tensor([0, 0, 2]), torch.ones(3), 3).tolist() == [2, 0, 1]
