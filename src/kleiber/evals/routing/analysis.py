"""Measures of a router's choices on held-out text: specialization, redundancy, saturation and sensitivity.

Saturation compares the choices of earlier checkpoints with those of the last one: Muennighoff et al. 2024 (OLMoE),
arXiv:2409.02060, section 5.1. Sensitivity adds noise to the router's weights, which changes both the chosen experts and
the weights by which they are combined. With the chosen experts fixed, only the combination changes. The loss change
with free routing minus the one with fixed experts is the cost of choosing other experts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.evals.evaluation import Subject
from kleiber.evals.routing.trace import (
    RoutingRecord,
    fixed_experts,
    loss_with,
    moe_layers,
    record_routing,
    without_expert,
)
from kleiber.evals.streams import hooked
from kleiber.nn.mlp import gated
from kleiber.nn.moe import MoE
from kleiber.nn.routers.topk import TokenChoice
from kleiber.types import Json, Row
from kleiber.types.batch import Routing
from kleiber.types.model import Model


def specialization(record: RoutingRecord) -> Json:
    """How much the domain or token of a position says about its expert, as a fraction of an entropy.

    domains            names of the domains
    domain             by layer, MI(expert; domain) / H(domain); null where there is one domain
    lift               by layer, a row per domain: the share of each expert in the domain / its share overall
    token, next_token  by layer, MI(expert; token) / H(expert), minus the value with shuffled tokens, because the mutual
                       information of a finite sample with many different tokens is never 0
    """
    result: Json = {"domains": record.names, "domain": {}, "lift": {}, "token": {}, "next_token": {}}
    for layer, experts in record.experts.items():
        served = experts.flatten() >= 0
        chosen = experts.flatten()[served]
        domains, tokens, next_tokens = (
            labels.repeat_interleave(experts.shape[1])[served]
            for labels in (record.domains, record.ids, record.following)
        )
        joint = contingency_table(domains, chosen, len(record.names), record.num_experts)
        domain_entropy = entropy(joint.sum(1))
        result["domain"][layer] = mutual_information(joint) / domain_entropy if domain_entropy > 0 else None
        share = joint / joint.sum(1, keepdim=True).clamp(min=1)
        result["lift"][layer] = (share / (joint.sum(0) / joint.sum()).clamp(min=1e-12)).tolist()
        result["token"][layer] = token_information(tokens, chosen, record.num_experts)
        result["next_token"][layer] = token_information(next_tokens, chosen, record.num_experts)
    return result


def token_information(
    tokens: Int[Tensor, "assignments"], experts: Int[Tensor, "assignments"], num_experts: int
) -> float:
    """MI(expert; token) / H(expert), minus the same with shuffled tokens."""
    kinds, tokens = tokens.unique(return_inverse=True)
    shuffled = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    information, chance = (
        mutual_information(contingency_table(labels, experts, len(kinds), num_experts)) for labels in (tokens, shuffled)
    )
    expert_entropy = entropy(torch.bincount(experts, minlength=num_experts).double())
    return (information - chance) / expert_entropy if expert_entropy > 0 else 0.0


def coactivation(record: RoutingRecord, layer: int) -> list[list[float]]:
    """Entry (i, j): share of the tokens sent to expert i that are also sent to expert j; 1 on the diagonal."""
    experts = record.experts[layer]
    sent = torch.zeros(len(experts), record.num_experts + 1, dtype=torch.float64)
    sent.scatter_(1, experts.masked_fill(experts < 0, record.num_experts), 1.0)
    sent = sent[:, :-1]
    together = sent.T @ sent
    return (together / together.diagonal().clamp(min=1).unsqueeze(1)).tolist()


def contingency_table(labels: Tensor, experts: Tensor, num_labels: int, num_experts: int) -> Tensor:
    """Number of assignments of each label (row) to each expert (column)."""
    flat = torch.bincount(labels * num_experts + experts, minlength=num_labels * num_experts)
    return flat.view(num_labels, num_experts).double()


def mutual_information(table: Tensor) -> float:
    """Mutual information of rows and columns of a table of counts, in nats."""
    return entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.flatten())


def entropy(counts: Tensor) -> float:
    """Entropy of a vector of counts, in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum())


SAMPLE = 512  # tokens on which the outputs of all experts are computed


def redundancy(subject: Subject, record: RoutingRecord, tokens: int) -> Json:
    """How similar the experts of each layer are, and what the loss gains from each.

    similarity  entry (i, j): mean cosine of the outputs of experts i and j on the same tokens, chosen or not
    alike       mean similarity over pairs of different experts
    removal     for each expert, the loss change in nats per token when its tokens go to the next best expert instead;
                null where every token needs all experts, or where experts are not chosen by score
    """
    inputs = expert_inputs(subject, tokens)
    similarity = {layer: output_similarity(moe, inputs[layer]) for layer, moe in moe_layers(subject.model).items()}
    return {
        "similarity": {layer: matrix.tolist() for layer, matrix in similarity.items()},
        "alike": {layer: mean_off_diagonal(matrix) for layer, matrix in similarity.items()},
        "removal": {layer: removal_costs(subject, record, tokens, layer) for layer in record.experts},
    }


@torch.no_grad()
def expert_inputs(subject: Subject, tokens: int) -> dict[int, Tensor]:
    """By layer, the inputs (tokens, dim) of the experts at the first tokens of every domain."""
    share = max(1, SAMPLE // len(subject.domains))
    inputs: dict[int, list[Tensor]] = {layer: [] for layer in moe_layers(subject.model)}

    def collect(layer: int, experts: nn.Module, args: tuple[Tensor, Routing]) -> None:
        inputs[layer].append(args[0][:share])

    handles = [
        moe.experts.register_forward_pre_hook(partial(collect, layer))
        for layer, moe in moe_layers(subject.model).items()
    ]
    with hooked(handles):
        for domain in subject.domains:
            subject.objective_of(domain)(subject.model, next(iter(subject.batches(domain, tokens))))
    return {layer: torch.cat(parts) for layer, parts in inputs.items()}


@torch.no_grad()
def output_similarity(moe: MoE, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "experts experts"]:
    """Mean cosine of the outputs of every two experts on the same inputs."""
    outputs = torch.matmul(gated(torch.matmul(x, moe.experts.gate_up)), moe.experts.down)
    outputs = torch.nn.functional.normalize(outputs, dim=-1)
    return torch.einsum("itd,jtd->ij", outputs, outputs).cpu() / len(x)


def mean_off_diagonal(matrix: Tensor) -> float:
    """Mean of the entries off the diagonal of a square matrix."""
    size = len(matrix)
    return float((matrix.sum() - matrix.diagonal().sum()) / (size * (size - 1)))


def removal_costs(subject: Subject, record: RoutingRecord, tokens: int, layer: int) -> list[float] | None:
    """For each expert of a layer, the loss change in nats per token without it; None where none can be left out."""
    moe = moe_layers(subject.model)[layer]
    if not isinstance(moe.router, TokenChoice) or moe.k == moe.num_experts:
        return None
    return [
        loss_with(subject, subject.model, tokens, without_expert(layer, expert)) - record.loss
        for expert in range(moe.num_experts)
    ]


def saturation(subject: Subject, last: RoutingRecord, tokens: int) -> Json:
    """How far the choices of earlier checkpoints agree with those of the last one.

    steps       steps of the earlier checkpoints; none where the run kept one checkpoint (callbacks.checkpoints.keep)
    saturation  by layer and checkpoint, the overlap with the choices of the last checkpoint
    churn       by layer and checkpoint, 1 minus the overlap with the next checkpoint
    loss        of each earlier checkpoint, in nats per token
    """
    steps, records = [], []
    for step, model in subject.earlier():
        steps.append(step)
        records.append(record_routing(subject, model.to(subject.device), tokens))
    following = [*records[1:], last] if records else []
    overlaps, churn = {}, {}
    for layer, experts in last.experts.items():
        overlaps[layer] = [overlap(record.experts[layer], experts) for record in records]
        churn[layer] = [
            1 - overlap(record.experts[layer], later.experts[layer])
            for record, later in zip(records, following, strict=True)
        ]
    return {"steps": steps, "saturation": overlaps, "churn": churn, "loss": [record.loss for record in records]}


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of the experts of a token (tokens, k) that are in both choices, averaged over tokens.

    With experts that choose tokens (-1 for none), twice the shared assignments over the assignments of both choices.
    """
    same = (first.unsqueeze(-1) == second.unsqueeze(-2)) & (first >= 0).unsqueeze(-1)
    shared = same.any(-1).sum().item()
    return 2 * shared / max(1, int((first >= 0).sum() + (second >= 0).sum()))


def changed_share(first: Tensor, second: Tensor) -> float:
    """Share of the tokens whose set of experts (tokens, k) differs."""
    return (first.sort(-1).values != second.sort(-1).values).any(-1).to(torch.float64).mean().item()


NOISE = (1e-3, 3e-3, 1e-2, 3e-2)
DRAWS = 3

Perturb = Callable[[Tensor], Tensor]  # the router's weights -> the weights to use instead


def sensitivity(subject: Subject, record: RoutingRecord, tokens: int) -> Json | None:
    """Effect of noise W (1 + eps N(0, 1)) in the router's weights, by eps, and of rounding them to bf16 and int8.

    flips           share of tokens whose set of experts changes, on average over layers; "flips_by_layer" by layer.
                    Later layers also see the changed outputs of earlier ones
    free, frozen    loss change in nats per token with free routing, and with the experts of `record`
    gating          free - frozen
    draws           the same numbers for each draw of the noise, of which those above are the means

    None where a router has no weights or does not choose for each token.
    """
    if not all(isinstance(moe.router, TokenChoice) for moe in moe_layers(subject.model).values()):
        return None
    frozen_loss = loss_with(subject, subject.model, tokens, fixed_experts(record))
    same = abs(frozen_loss - record.loss) < 1e-5 * max(1.0, record.loss)
    assert same, "the loss with the recorded experts is that of the record"
    noise = {}
    for eps in NOISE:
        draws = [perturbation_effect(subject, record, tokens, relative_noise(eps, seed)) for seed in range(DRAWS)]
        noise[f"{eps:g}"] = {**mean_effect(draws), "draws": draws}
    rounding = {
        name: perturbation_effect(subject, record, tokens, rounded)
        for name, rounded in (("bf16", to_bf16), ("int8", to_int8))
    }
    return {"noise": noise, "rounding": rounding}


def perturbation_effect(subject: Subject, record: RoutingRecord, tokens: int, perturb: Perturb) -> Json:
    """The entries of `sensitivity` for one perturbation of the router's weights."""
    with perturbed_routers(subject.model, perturb):
        free = record_routing(subject, subject.model, tokens)
        frozen_loss = loss_with(subject, subject.model, tokens, fixed_experts(record))
    flips = {layer: changed_share(record.experts[layer], free.experts[layer]) for layer in record.experts}
    free_change, frozen_change = free.loss - record.loss, frozen_loss - record.loss
    return {
        "flips": statistics.fmean(flips.values()),
        "free": free_change,
        "frozen": frozen_change,
        "gating": free_change - frozen_change,
        "flips_by_layer": flips,
    }


def mean_effect(draws: Sequence[Row]) -> dict[str, float]:
    """Means of the entries of `perturbation_effect` over draws."""
    return {name: statistics.fmean(draw[name] for draw in draws) for name in ("flips", "free", "frozen", "gating")}


@contextmanager
def perturbed_routers(model: Model, perturb: Perturb) -> Iterator[None]:
    """Context in which the weights of every router are replaced by `perturb(weights)`; restores them afterwards."""
    routers = [moe.router for moe in moe_layers(model).values()]
    weights = [router.linear.weight for router in routers if isinstance(router, TokenChoice)]
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(perturb(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


def relative_noise(eps: float, seed: int) -> Perturb:
    """Returns a perturbation that multiplies each weight by 1 + eps n, with n standard normal by `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def perturb(weight: Tensor) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        return weight * (1 + eps * noise)

    return perturb


def to_bf16(weight: Tensor) -> Tensor:
    """Returns the weights rounded to bf16 and converted back to their dtype."""
    return weight.to(torch.bfloat16).to(weight.dtype)


def to_int8(weight: Tensor) -> Tensor:
    """The weights rounded to 255 levels: symmetric, with one scale per row (one per expert)."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale
