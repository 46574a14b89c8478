"""Measures of a router's choices on held-out text: specialization, redundancy, saturation and sensitivity.

Saturation compares the choices of earlier checkpoints with those of the last one: Muennighoff et al. 2024 (OLMoE),
arXiv:2409.02060, section 5.1. Sensitivity perturbs the router's weights, which changes the chosen experts and their
weights; with the old choice forced, only the weights change. The loss change with free routing less the one with the
choice forced is what the changed choices cost.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.evals import Subject
from kleiber.evals.routing.trace import Record, forced, loss_under, mixtures, read, without
from kleiber.nn.mlp import gated
from kleiber.types import Json
from kleiber.types.model import Model


def specialisation(record: Record) -> Json:
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


def redundancy(subject: Subject, record: Record, tokens: int) -> Json:
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


def settled(subject: Subject, last: Record, tokens: int) -> Json:
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


NOISE = (1e-3, 3e-3, 1e-2, 3e-2)
DRAWS = 3

Perturb = Callable[[Tensor], Tensor]


def sensitivity(subject: Subject, record: Record, tokens: int) -> Json | None:
    """For relative noise W (1 + eps N(0, 1)) on the router's weights, and for their rounding to bf16 and int8:

    flips   share of tokens with another set of experts, per layer and on average; later layers inherit what earlier
            ones changed
    free, frozen   change of the loss in nats per token, with routing free and with the old choice forced
    gating  free - frozen

    Means over draws, each draw in "draws". None for a router that has no weights or no choice of its own per token.
    """
    if not all(hasattr(moe.router, "route") for moe in mixtures(subject.model).values()):
        return None
    frozen = loss_under(subject, subject.model, tokens, forced(record))
    assert abs(frozen - record.loss) < 1e-5 * max(1.0, record.loss), "forcing a model's own choice changes nothing"
    noise = {}
    for eps in NOISE:
        draws = [once(subject, record, tokens, relative(eps, seed)) for seed in range(DRAWS)]
        noise[f"{eps:g}"] = {**average(draws), "draws": draws}
    rounding = {
        name: once(subject, record, tokens, rounded) for name, rounded in (("bf16", to_bf16), ("int8", to_int8))
    }
    return {"noise": noise, "rounding": rounding}


def once(subject: Subject, record: Record, tokens: int, perturb: Perturb) -> Json:
    with perturbed(subject.model, perturb):
        free = read(subject, subject.model, tokens)
        frozen = loss_under(subject, subject.model, tokens, forced(record))
    layers = {layer: flipped(record.experts[layer], free.experts[layer]) for layer in record.experts}
    change = {"free": free.loss - record.loss, "frozen": frozen - record.loss}
    return {
        "flips": statistics.fmean(layers.values()),
        **change,
        "gating": change["free"] - change["frozen"],
        "flips_by_layer": layers,
    }


def average(draws: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.fmean(draw[name] for draw in draws) for name in ("flips", "free", "frozen", "gating")}


@contextmanager
def perturbed(model: Model, perturb: Perturb) -> Iterator[None]:
    """While it holds, every router has other weights."""
    weights = [moe.router.linear.weight for moe in mixtures(model).values()]
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(perturb(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def relative(eps: float, seed: int) -> Perturb:
    generator = torch.Generator().manual_seed(seed)

    def perturb(weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        return weight * (1 + eps * noise)

    return perturb


def to_bf16(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16).to(weight.dtype)


def to_int8(weight: Tensor) -> Tensor:
    """Symmetric, one scale a row: an expert's weights on 255 levels."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale
