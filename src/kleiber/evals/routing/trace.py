"""Passes over held-out text in which the routing of every layer is recorded or replaced.

Forward hooks on the routers read and replace routings, so models need no code for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kleiber.evals.evaluation import Subject
from kleiber.evals.streams import hooked
from kleiber.nn.moe import MoE
from kleiber.nn.routers.topk import TokenChoice
from kleiber.types.batch import Routing, Sums
from kleiber.types.model import Model, Router, evaluation_mode

Reroute = Callable[[int, Router, Routing], Routing]  # (layer, router, its routing) -> the routing to use instead


@dataclass(frozen=True)
class RoutingRecord:
    """The experts that each layer chose for the tokens of a text, in one forward pass.

    experts    by layer, the k experts of every real token (tokens, k); -1 for an assignment that was dropped because
               the expert was full
    batches    by layer, the experts of each batch in the order of the pass, padding included
    margins    by layer, the mean over tokens of the router score of the k-th expert minus that of the next one; None
               for a router without such scores
    ids        id of every real token (tokens,)
    following  id of the token after each real token (tokens,)
    domains    index in `names` of the domain of each real token (tokens,)
    names      names of the domains
    loss       mean loss of the pass, in nats per target token
    """

    experts: dict[int, Tensor]
    batches: dict[int, list[Tensor]]
    margins: dict[int, float | None]
    num_experts: int
    ids: Tensor
    following: Tensor
    domains: Tensor
    names: list[str]
    loss: float

    @property
    def num_tokens(self) -> int:
        """Number of real tokens."""
        return len(self.ids)

    def load(self, layer: int) -> Tensor:
        """Share of the assignments that each expert of a layer gets."""
        flat = self.experts[layer].flatten()
        counts = torch.bincount(flat[flat >= 0], minlength=self.num_experts).double()
        return counts / counts.sum()


def moe_layers(model: Model) -> dict[int, MoE]:
    """The mixtures of experts in a model, by the number of their block. A wrapped Hugging Face model has none."""
    return {
        number: part for number, block in enumerate(model.blocks) for part in block.children() if isinstance(part, MoE)
    }


@contextmanager
def rerouted(model: Model, reroute: Reroute) -> Iterator[None]:
    """Context in which every router of the model uses the routing that `reroute` returns, instead of its own."""

    def hook(layer: int, router: Router, inputs: tuple[object, ...], routing: Routing) -> Routing:
        return reroute(layer, router, routing)

    with hooked([moe.router.register_forward_hook(partial(hook, layer)) for layer, moe in moe_layers(model).items()]):
        yield


@torch.no_grad()
def loss_with(subject: Subject, model: Model, tokens: int, reroute: Reroute) -> float:
    """Mean loss in nats per target over the first `tokens` targets of every domain, with routings from `reroute`."""
    sums = Sums()
    with rerouted(model, reroute):
        for domain in subject.domains:
            for batch in subject.batches(domain, tokens):
                sums.add(subject.objective_of(domain)(model, batch))
    return sums.means()["ce"].item()


@torch.no_grad()
def record_routing(subject: Subject, model: Model, tokens: int) -> RoutingRecord:
    """The routing of `model` over the first `tokens` targets of every domain.

    Raises ValueError for an objective whose model input is not the rows of text as they are.
    """
    routings: dict[int, list[Routing]] = {layer: [] for layer in moe_layers(model)}
    masks, ids, following, domains, sums = [], [], [], [], Sums()

    def collect(layer: int, router: Router, routing: Routing) -> Routing:
        routings[layer].append(routing)
        return routing

    with evaluation_mode(model), rerouted(model, collect):
        for number, domain in enumerate(subject.domains):
            for batch in subject.batches(domain, tokens):
                sums.add(subject.objective_of(domain)(model, batch))
                real = batch.is_real
                mask = (real[:, :-1] & real[:, 1:]).flatten()
                masks.append(mask)
                ids.append(batch.tokens[:, :-1].flatten()[mask])
                following.append(batch.tokens[:, 1:].flatten()[mask])
                domains.append(torch.full_like(ids[-1], number))
    mask = torch.cat(masks)
    if any(sum(len(routing.experts) for routing in by_batch) != len(mask) for by_batch in routings.values()):
        raise ValueError(
            f"--evals routing needs an objective whose model reads each row of text once, and objective="
            f"{type(subject.objective).__name__.lower()} does not: evaluate a run with objective=clm, mlm or sft"
        )
    return RoutingRecord(
        experts={
            layer: torch.cat([served_experts(routing) for routing in by_batch])[mask].cpu()
            for layer, by_batch in routings.items()
        },
        batches={layer: [routing.experts for routing in by_batch] for layer, by_batch in routings.items()},
        margins={layer: mean_margin(by_batch, mask) for layer, by_batch in routings.items()},
        num_experts=max(moe.num_experts for moe in moe_layers(model).values()),
        ids=torch.cat(ids).cpu(),
        following=torch.cat(following).cpu(),
        domains=torch.cat(domains).cpu(),
        names=subject.domains,
        loss=sums.means()["ce"].item(),
    )


def served_experts(routing: Routing) -> Tensor:
    """The experts of each token (tokens, k), with -1 for an assignment that was dropped (expert full)."""
    return routing.experts if routing.kept is None else routing.experts.masked_fill(~routing.kept, -1)


def mean_margin(routings: list[Routing], mask: Tensor) -> float | None:
    """Returns the mean router score of the k-th expert minus that of the next one; None for a router without margins.

    routings  routings of successive batches of one layer
    mask      which of their tokens are averaged (tokens,)
    """
    margins = [routing.margin for routing in routings if routing.margin is not None]
    return torch.cat(margins)[mask].mean().item() if margins else None


def fixed_experts(record: RoutingRecord) -> Reroute:
    """Returns a rerouting that uses the experts of the record, batch by batch, with the router's present weights."""
    calls = dict.fromkeys(record.batches, 0)

    def reroute(layer: int, router: Router, routing: Routing) -> Routing:
        experts = record.batches[layer][calls[layer]]
        calls[layer] += 1
        return route_tokens(router, routing, experts)

    return reroute


def unchanged(layer: int, router: Router, routing: Routing) -> Routing:
    """Returns `routing` unchanged; the rerouting of the baseline."""
    return routing


def without_expert(layer: int, expert: int) -> Reroute:
    """Returns a rerouting that excludes one expert of a layer: its tokens go to the next best expert."""

    def exclude(number: int, router: Router, routing: Routing) -> Routing:
        """Routes the tokens of the layer again, with the lowest score for the expert."""
        if number != layer:
            return routing
        assert routing.logits is not None
        logits = routing.logits.clone()
        logits[:, expert] = -torch.inf
        return replace(route_tokens(router, replace(routing, logits=logits)), kept=None)

    return exclude


def route_tokens(router: Router, routing: Routing, experts: Tensor | None = None) -> Routing:
    """Routes tokens again by the logits of `routing`, to `experts` (tokens, k) or, for None, to those of top score."""
    assert isinstance(router, TokenChoice) and routing.logits is not None, "only routers by score can route anew"
    return router.route(routing.logits, experts)
