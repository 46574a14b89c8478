"""What experts specialise in: domains, input tokens, next tokens, as mutual information; and which go together."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kleiber.evals.routing.record import Record


def specialisation(record: Record) -> dict[str, Any]:
    """Per layer, in shares of an entropy, 0 (none) to 1:

    domain  MI(expert; domain) / H(domain), null where there is one domain; lift: f_i|domain / f_i, a row a domain
    token, next_token  MI(expert; token) / H(expert), less what the same counts with shuffled tokens give, since the
            mutual information of a sample with many tokens is never 0
    """
    found: dict[str, Any] = {"domains": record.names, "domain": {}, "lift": {}, "token": {}, "next_token": {}}
    for layer, experts in record.experts.items():
        flat = experts.flatten()
        here = flat >= 0

        def of(labels: Int[Tensor, "tokens"], k: int = experts.shape[1], here: Tensor = here) -> Tensor:
            return labels.repeat_interleave(k)[here]

        chosen = flat[here]
        joint = counts(of(record.domains), chosen, len(record.names), record.num_experts)
        spread = entropy(joint.sum(1))
        found["domain"][layer] = mutual(joint) / spread if spread > 0 else None
        share = joint / joint.sum(1, keepdim=True).clamp(min=1)
        found["lift"][layer] = (share / (joint.sum(0) / joint.sum()).clamp(min=1e-12)).tolist()
        for name, labels in (("token", record.ids), ("next_token", record.following)):
            found[name][layer] = by_label(of(labels), chosen, record.num_experts)
    return found


def by_label(labels: Int[Tensor, "assignments"], experts: Int[Tensor, "assignments"], num_experts: int) -> float:
    """MI(expert; label) / H(expert), above that of shuffled labels."""
    kinds, labels = labels.unique(return_inverse=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    real, chance = (mutual(counts(x, experts, len(kinds), num_experts)) for x in (labels, labels[order]))
    spread = entropy(torch.bincount(experts, minlength=num_experts).double())
    return (real - chance) / spread if spread > 0 else 0.0


def coactivation(record: Record, layer: int) -> list[list[float]]:
    """P(j | i): of the tokens that go to i, the share that goes to j as well; 1 on the diagonal."""
    experts = record.experts[layer]
    goes = torch.zeros(len(experts), record.num_experts + 1, dtype=torch.float64)
    goes.scatter_(1, experts.masked_fill(experts < 0, record.num_experts), 1.0)
    goes = goes[:, :-1]
    both = goes.T @ goes
    return (both / both.diagonal().clamp(min=1).unsqueeze(1)).tolist()


def counts(labels: Tensor, experts: Tensor, num_labels: int, num_experts: int) -> Tensor:
    flat = torch.bincount(labels * num_experts + experts, minlength=num_labels * num_experts)
    return flat.view(num_labels, num_experts).double()


def mutual(joint: Tensor) -> float:
    """Mutual information in nats of a table of counts."""
    return entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.flatten())


def entropy(counted: Tensor) -> float:
    """Entropy in nats of a vector of counts."""
    share = counted[counted > 0] / counted.sum()
    return float(-(share * share.log()).sum())
