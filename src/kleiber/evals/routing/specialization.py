"""What experts specialise in: domains, input tokens, next tokens, as mutual information; and which go together.

Whether experts are redundant: how alike their outputs are on the same tokens, and what each one's removal costs.

When routing settled: the choices of earlier checkpoints against those of the last one, and of their neighbours.

Saturation: Muennighoff et al. 2024 (OLMoE), arXiv:2409.02060, section 5.1.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.evals.routing.trace import Record, loss_under, mixtures, read, without
from kleiber.evals.subject import Subject
from kleiber.nn.mlp import gated


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


SAMPLE = 512  # tokens whose every expert is computed


def redundancy(subject: Subject, record: Record, tokens: int) -> dict[str, Any]:
    """Per layer:

    similarity  cosine between the outputs of experts i and j on the same tokens, all chosen or not, averaged
    alike       the mean of it over pairs
    removal     loss change in nats per token when an expert is out of the question, and its tokens go to the next best;
                null where a token needs all experts, or where experts are not chosen by score
    """
    inputs = read_inputs(subject, tokens)
    similar = {layer: similarity(moe, inputs[layer]) for layer, moe in mixtures(subject.model).items()}
    return {
        "similarity": {layer: matrix.tolist() for layer, matrix in similar.items()},
        "alike": {layer: off_diagonal(matrix) for layer, matrix in similar.items()},
        "removal": {layer: removal(subject, record, tokens, layer) for layer in record.experts},
    }


@torch.no_grad()
def read_inputs(subject: Subject, tokens: int) -> dict[int, Tensor]:
    """What the experts of each layer read at the first tokens of every domain."""
    share = max(1, SAMPLE // len(subject.domains))
    seen: dict[int, list[Tensor]] = {layer: [] for layer in mixtures(subject.model)}
    handles = [
        moe.experts.register_forward_pre_hook(lambda _, args, layer=layer: seen[layer].append(args[0][:share]))
        for layer, moe in mixtures(subject.model).items()
    ]
    try:
        for domain in subject.domains:
            subject.objective(subject.model, next(iter(subject.batches(domain, tokens))))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: torch.cat(parts) for layer, parts in seen.items()}


@torch.no_grad()
def similarity(moe: Any, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "experts experts"]:
    y = torch.matmul(gated(torch.matmul(x, moe.experts.gate_up)), moe.experts.down)
    y = torch.nn.functional.normalize(y, dim=-1)
    return torch.einsum("itd,jtd->ij", y, y).cpu() / len(x)


def off_diagonal(matrix: Tensor) -> float:
    n = len(matrix)
    return float((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)))


def removal(subject: Subject, record: Record, tokens: int, layer: int) -> list[float] | None:
    moe = mixtures(subject.model)[layer]
    if not hasattr(moe.router, "route") or moe.k == moe.num_experts:
        return None
    return [
        loss_under(subject, subject.model, tokens, without(layer, expert)) - record.loss
        for expert in range(moe.num_experts)
    ]


def settled(subject: Subject, last: Record, tokens: int) -> dict[str, Any]:
    """For each earlier checkpoint and layer: overlap with the last one, and churn towards the next checkpoint.

    Churn is 1 less the overlap. There is nothing to say of a run that kept one checkpoint (callbacks.checkpoints.keep).
    """
    steps, records = [], []
    for step, model in subject.earlier():
        steps.append(step)
        records.append(read(subject, model.to(subject.device), tokens))
    following = [*records[1:], last] if records else []
    return {
        "steps": steps,
        "saturation": {layer: [overlap(r.experts[layer], x) for r in records] for layer, x in last.experts.items()},
        "churn": {
            layer: [1 - overlap(r.experts[layer], n.experts[layer]) for r, n in zip(records, following, strict=True)]
            for layer in last.experts
        },
        "loss": [r.loss for r in records],
    }


def overlap(one: Tensor, two: Tensor) -> float:
    """|one n two| / k, averaged over tokens; of experts that choose, over the pairs that either took."""
    same = (one.unsqueeze(-1) == two.unsqueeze(-2)) & (one >= 0).unsqueeze(-1)
    shared = same.any(-1).sum().item()
    return 2 * shared / max(1, int((one >= 0).sum() + (two >= 0).sum()))


def flipped(one: Tensor, two: Tensor) -> float:
    """Share of tokens whose set of experts is another."""
    return (one.sort(-1).values != two.sort(-1).values).any(-1).to(torch.float64).mean().item()
