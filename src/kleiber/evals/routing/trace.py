"""Passes over held-out text with the routing of every layer recorded or changed.

Forward hooks on the routers read and replace routings, so models need no support for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kleiber.evals import Subject
from kleiber.nn.moe import MoE
from kleiber.types.batch import Routing, Sums
from kleiber.types.model import Model

Change = Callable[[int, nn.Module, Routing], Routing]  # (layer, router, what it said) -> what it shall have said


@dataclass(frozen=True)
class Record:
    """What was routed where: per layer the experts of every real token, (tokens, k), -1 where none was taken.

    ids, following, domains  of every token: its id, that of the next one, its domain's number
    batches                  per layer the experts of each batch as they came, padding included, to force them again
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
        return len(self.ids)

    def load(self, layer: int) -> Tensor:
        """Share of the assignments that each expert got."""
        flat = self.experts[layer].flatten()
        counts = torch.bincount(flat[flat >= 0], minlength=self.num_experts).double()
        return counts / counts.sum()


def mixtures(model: Model) -> dict[int, Any]:
    """The layers with experts of our own, by their number; a wrapped model's layers have other names and parts."""
    parts = enumerate(getattr(block, "mlp", None) for block in getattr(model, "blocks", ()))
    return {i: part for i, part in parts if isinstance(part, MoE)}


@contextmanager
def hooked(model: Model, change: Change) -> Iterator[None]:
    """While it holds, every router says what `change` makes of its routing."""
    handles = []
    for layer, moe in mixtures(model).items():

        def hook(router: nn.Module, _: Any, said: Routing, layer: int = layer) -> Routing:
            return change(layer, router, said)

        handles.append(moe.router.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def loss_under(subject: Subject, model: Model, tokens: int, change: Change) -> float:
    """Mean loss in nats per token over all domains, with the routing changed."""
    sums = Sums()
    with hooked(model, change):
        for domain in subject.domains:
            for batch in subject.batches(domain, tokens):
                sums.add(subject.objective(model, batch))
    return sums.means()["ce"].item()


@torch.no_grad()
def read(subject: Subject, model: Model, tokens: int) -> Record:
    """The routing of `model` over the first `tokens` targets of every domain."""
    said: dict[int, list[Routing]] = {layer: [] for layer in mixtures(model)}
    kept, ids, following, domains, sums = [], [], [], [], Sums()

    def note(layer: int, _: nn.Module, routing: Routing) -> Routing:
        said[layer].append(routing)
        return routing

    was = model.training
    model.eval()
    with hooked(model, note):
        for number, domain in enumerate(subject.domains):
            for batch in subject.batches(domain, tokens):
                sums.add(subject.objective(model, batch))
                real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
                kept.append((real[:, :-1] & real[:, 1:]).flatten())
                ids.append(batch.tokens[:, :-1].flatten()[kept[-1]])
                following.append(batch.tokens[:, 1:].flatten()[kept[-1]])
                domains.append(torch.full_like(ids[-1], number))
    model.train(was)
    mask = torch.cat(kept)
    read_here = {sum(routing.experts.shape[0] for routing in all_said) for all_said in said.values()}
    if read_here != {len(mask)}:
        kind = type(subject.objective).__name__.lower()
        raise ValueError(
            f"--evals routing follows the tokens of rows of text, and objective={kind} reads its rows otherwise: ask a "
            "run of clm, mlm or sft"
        )
    return Record(
        experts={layer: torch.cat([taken(r) for r in all_said])[mask].cpu() for layer, all_said in said.items()},
        batches={layer: [r.experts for r in all_said] for layer, all_said in said.items()},
        margins={layer: margin(all_said, mask) for layer, all_said in said.items()},
        num_experts=max(moe.num_experts for moe in mixtures(model).values()),
        ids=torch.cat(ids).cpu(),
        following=torch.cat(following).cpu(),
        domains=torch.cat(domains).cpu(),
        names=subject.domains,
        loss=sums.means()["ce"].item(),
    )


def taken(routing: Routing) -> Tensor:
    return routing.experts if routing.kept is None else routing.experts.masked_fill(~routing.kept, -1)


def margin(all_said: list[Routing], mask: Tensor) -> float | None:
    found = [routing.margin for routing in all_said if routing.margin is not None]
    return torch.cat(found)[mask].mean().item() if found else None


def forced(record: Record) -> Change:
    """Every router keeps the experts of the record, in the order of its batches, and weighs them as it would now."""
    calls = dict.fromkeys(record.batches, 0)

    def change(layer: int, router: Any, said: Routing) -> Routing:
        experts = record.batches[layer][calls[layer]]
        calls[layer] += 1
        return router.route(said.logits, experts)

    return change


def unchanged(layer: int, router: nn.Module, said: Routing) -> Routing:
    return said


def without(layer: int, expert: int) -> Change:
    """One expert is out of the question in one layer: its tokens go to the next best."""

    def change(at: int, router: Any, said: Routing) -> Routing:
        if at != layer:
            return said
        assert said.logits is not None
        logits = said.logits.clone()
        logits[:, expert] = -torch.inf
        return replace(router.route(logits), kept=None)

    return change
