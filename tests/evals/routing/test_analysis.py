"""Measures of routing on models whose result can be worked out: hash routing, random routing, copied experts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from evals.routing.moe_text import CONTEXT, VOCAB, moe_subject

from kleiber.evals.evaluation import Subject
from kleiber.evals.routing import Routing
from kleiber.evals.routing.analysis import (
    changed_share,
    coactivation,
    contingency_table,
    entropy,
    mutual_information,
    overlap,
    perturbed_routers,
    redundancy,
    relative_noise,
    saturation,
    sensitivity,
    specialization,
    to_bf16,
    to_int8,
)
from kleiber.evals.routing.trace import RoutingRecord, fixed_experts, loss_with, record_routing
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import PerSequence
from kleiber.nn.routers.hash import Hash, Random
from kleiber.nn.routers.sigmoid import LossFree
from kleiber.nn.routers.topk import TopK


def recorded(subject: Subject) -> RoutingRecord:
    return record_routing(subject, subject.model, 99)


def test_information_of_independent_and_of_equal_labels():
    independent = torch.outer(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0, 1.0]))
    assert mutual_information(independent) == pytest.approx(0, abs=1e-6)
    equal = torch.diag(torch.tensor([4.0, 4.0]))
    assert mutual_information(equal) == pytest.approx(np.log(2)) == entropy(torch.tensor([4, 4]))
    table = contingency_table(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0]), 2, 3)
    assert table.tolist() == [[0, 0, 1], [2, 0, 0]]


def test_hash_routing_depends_on_the_token_and_random_routing_on_nothing():
    by_hash, at_random = (
        specialization(recorded(moe_subject(router=router, balance=PerSequence(0.0)))) for router in (Hash, Random)
    )
    for layer in (0, 1):
        assert by_hash["token"][layer] > 0.35 > 0.1 > abs(by_hash["next_token"][layer])
        assert by_hash["domain"][layer] > 10 * abs(at_random["domain"][layer])
        assert abs(at_random["token"][layer]) < 0.06 and at_random["domain"][layer] < 0.02


def test_lift_has_a_row_per_domain_and_coactivations_add_up_to_k():
    record = recorded(moe_subject())
    lift = specialization(record)["lift"][0]
    assert len(lift) == 2 and len(lift[0]) == 4
    together = torch.tensor(coactivation(record, 0))
    assert torch.equal(together.diagonal(), torch.ones(4, dtype=together.dtype))
    torch.testing.assert_close(together.sum(1), torch.full((4,), 2.0, dtype=together.dtype))


def test_noise_changes_experts_and_loss_and_is_removed_afterwards():
    subject = moe_subject()
    record = recorded(subject)
    with perturbed_routers(subject.model, relative_noise(1.0, 0)):
        free, frozen_loss = recorded(subject), loss_with(subject, subject.model, 99, fixed_experts(record))
    assert changed_share(free.experts[0], record.experts[0]) > 0.1
    assert free.loss != pytest.approx(frozen_loss, abs=1e-6)
    assert recorded(subject).loss == record.loss


@pytest.mark.parametrize("router", [TopK, LossFree])
@pytest.mark.slow
def test_sensitivity_grows_with_the_noise(router):
    subject = moe_subject(router=router)
    result = sensitivity(subject, recorded(subject), 99)
    assert result is not None
    flips = [entry["flips"] for entry in result["noise"].values()]
    assert flips[-1] > flips[0] and len(flips) == 4
    strongest = result["noise"]["0.03"]
    assert strongest["gating"] == pytest.approx(strongest["free"] - strongest["frozen"])
    assert len(strongest["draws"]) == 3 and set(result["rounding"]) == {"bf16", "int8"}


def test_a_router_without_weights_has_no_sensitivity_and_no_removal():
    result = Routing().evaluate(moe_subject(router=Hash, balance=PerSequence(0.0))).details
    assert result["sensitivity"] is None and result["margin"] == {0: None, 1: None}
    assert result["redundancy"]["removal"] == {0: None, 1: None}


def test_rounding_has_the_levels_of_its_format():
    weight = torch.randn(4, 64)
    assert len((to_int8(weight)[0] / (weight[0].abs().max() / 127)).round().unique()) <= 64
    assert float((to_int8(weight) - weight).abs().max()) <= float(weight.abs().max()) / 254 * 1.01
    assert torch.equal(to_bf16(weight), weight.bfloat16().float())


@pytest.mark.slow
def test_copied_experts_are_alike_and_removal_costs_the_loss_without_the_expert():
    subject = moe_subject()
    stack = subject.model.blocks[0].mlp.experts
    with torch.no_grad():
        stack.gate_up[1], stack.down[1] = stack.gate_up[0], stack.down[0]
    record = recorded(subject)
    result = redundancy(subject, record, 99)
    assert result["similarity"][0][0][1] == pytest.approx(1) and abs(result["similarity"][0][0][2]) < 0.5
    for layer, expert in ((0, 2), (1, 0)):
        without = recorded_without(subject, layer, expert)
        assert not bool((without.experts[layer] == expert).any())
        assert result["removal"][layer][expert] == pytest.approx(without.loss - record.loss, abs=1e-6)


def recorded_without(subject: Subject, layer: int, expert: int) -> RoutingRecord:
    """The record of a model whose router gives one expert the lowest score."""
    handle = subject.model.blocks[layer].mlp.router.linear.register_forward_hook(
        lambda _, __, logits: logits.index_fill(1, torch.tensor([expert]), -torch.inf)
    )
    record = recorded(subject)
    handle.remove()
    return record


def test_overlap_counts_shared_experts_in_any_order():
    first, second = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 0]])
    assert overlap(first, second) == 0.75 and overlap(first, first) == 1 and changed_share(first, second) == 0.5
    assert overlap(torch.tensor([[0, -1]]), torch.tensor([[0, 1]])) == pytest.approx(2 / 3)


def test_saturation_compares_with_the_last_checkpoint_and_churn_with_the_next():
    subject, other = moe_subject(), moe_subject(k=2, num_experts=4)
    last = recorded(subject)
    torch.manual_seed(9)
    torch.nn.init.normal_(other.model.blocks[0].mlp.router.linear.weight)
    subject = replace(subject, earlier=lambda: iter([(5, other.model), (9, subject.model)]))
    result = saturation(subject, last, 99)
    assert result["steps"] == [5, 9] and result["saturation"][0][1] == 1 and result["saturation"][0][0] < 0.9
    assert result["churn"][0] == pytest.approx([1 - result["saturation"][0][0], 0])


def test_a_dense_model_is_refused():
    dense = Transformer(VOCAB, depth=1, width=32, context=CONTEXT, num_heads=2)
    with pytest.raises(ValueError, match="--evals routing"):
        Routing().check(dense)
