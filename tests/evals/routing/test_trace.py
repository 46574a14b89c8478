"""Recorded and replaced routing: padding is left out, fixed experts stay fixed, an excluded expert gets no token."""

from dataclasses import replace

import pytest
import torch
from evals.routing.moe_text import CONTEXT, VOCAB, moe_subject

from kleiber.evals.routing.trace import (
    fixed_experts,
    loss_with,
    mean_margin,
    moe_layers,
    record_routing,
    rerouted,
    served_experts,
    unchanged,
    without_expert,
)
from kleiber.models.transformer import Transformer
from kleiber.nn.routers.topk import TokenChoice
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch, Routing


def test_padding_is_no_token_and_loads_add_up():
    subject = moe_subject()
    record = record_routing(subject, subject.model, 99)
    assert record.num_tokens == 2 * (11 * CONTEXT + 8) and record.experts[0].shape == (record.num_tokens, 2)
    assert float(record.load(0).sum()) == pytest.approx(1)
    assert bool((record.ids < 15).eq(record.domains == 0).all()) and record.names == ["low", "high"]


def test_each_token_has_the_next_token_of_its_row():
    subject = moe_subject()
    record = record_routing(subject, subject.model, 99)
    (batch, *_) = subject.batches("low")
    assert torch.equal(record.ids[:CONTEXT], batch.tokens[0, :-1])
    assert torch.equal(record.following[:CONTEXT], batch.tokens[0, 1:])


def test_layers_with_experts_have_the_number_of_their_block():
    assert list(moe_layers(moe_subject(every=2).model)) == [1]
    assert moe_layers(Transformer(VOCAB, depth=2, width=32, context=CONTEXT, num_heads=2)) == {}


def test_a_hook_is_gone_after_its_context():
    subject, calls = moe_subject(), []

    def count(layer, router, routing):
        calls.append(layer)
        return routing

    batch = Batch(torch.zeros(1, 4, dtype=torch.long))
    with rerouted(subject.model, count):
        subject.model(batch)
    subject.model(batch)
    assert calls == [0, 1]


def test_the_experts_of_the_record_are_those_that_the_model_chooses():
    subject = moe_subject()
    record = record_routing(subject, subject.model, 99)
    assert loss_with(subject, subject.model, 99, unchanged) == record.loss
    assert loss_with(subject, subject.model, 99, fixed_experts(record)) == pytest.approx(record.loss, abs=1e-7)


def test_fixed_experts_stay_with_other_router_weights():
    subject = moe_subject()
    record = record_routing(subject, subject.model, 99)
    router = moe_layers(subject.model)[0].router
    assert isinstance(router, TokenChoice)
    keep, logits = fixed_experts(record), torch.randn(len(record.batches[0][0]), 4)
    routing = keep(0, router, router.route(logits))
    assert torch.equal(routing.experts, record.batches[0][0]) and routing.logits is logits


def test_an_excluded_expert_of_one_layer_gets_no_token():
    router = moe_layers(moe_subject().model)[0].router
    assert isinstance(router, TokenChoice)
    routing = router.route(torch.randn(50, 4))
    assert without_expert(1, 2)(0, router, routing) is routing and bool((routing.experts == 2).any())
    assert not bool((without_expert(0, 2)(0, router, routing).experts == 2).any())


def test_an_assignment_that_is_not_served_has_no_expert_and_no_margin_is_none():
    experts, kept = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[True, False], [True, True]])
    routing = Routing(torch.ones(2, 2), experts, torch.ones(2, 4), margin=torch.tensor([0.5, 0.1]))
    assert served_experts(routing) is experts
    assert served_experts(replace(routing, kept=kept)).tolist() == [[0, -1], [2, 3]]
    assert mean_margin([routing], torch.tensor([True, False])) == 0.5
    assert mean_margin([replace(routing, margin=None)], torch.tensor([True, True])) is None


def test_an_objective_that_reads_its_rows_twice_is_refused():
    class Twice(CLM):
        def __call__(self, model, batch):
            model(batch.map(lambda t: t[:, :-1] if t.dim() == 2 else t))
            return super().__call__(model, batch)

    subject = moe_subject()
    with pytest.raises(ValueError, match="objective=twice"):
        record_routing(replace(subject, objective=Twice()), subject.model, 99)
