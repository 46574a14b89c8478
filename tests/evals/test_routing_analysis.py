"""What the analyses of routing say of models whose answer is known: by hash, at random, with copies of an expert."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kleiber.data.tokenizers.byte_level import Bytes
from kleiber.evals import Subject
from kleiber.evals.routing import evaluate
from kleiber.evals.routing.analysis import (
    coactivation,
    counts,
    entropy,
    flipped,
    mutual,
    overlap,
    perturbed,
    redundancy,
    relative,
    sensitivity,
    settled,
    specialisation,
    to_bf16,
    to_int8,
)
from kleiber.evals.routing.trace import forced, loss_under, read, unchanged, without
from kleiber.models.transformer import Transformer
from kleiber.nn.moe import PerSequence, interleaved_moe
from kleiber.nn.routers.hash import Hash, Random
from kleiber.nn.routers.sigmoid import LossFree
from kleiber.nn.routers.topk import TopK
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch
from kleiber.types.contracts import HeldOut

VOCAB, CONTEXT = 30, 16


class Rows(HeldOut):
    """Rows of random tokens from a part of the vocabulary; the last row is half padding."""

    def __init__(self, low: int, high: int, rows: int = 12) -> None:
        self.tokens = np.random.default_rng(low).integers(low, high, (rows, CONTEXT + 1))
        self.num_tokens, self.num_bytes = rows * CONTEXT, rows * CONTEXT

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, tokens: int | None) -> "Rows":
        return self

    def gather(self, index: np.ndarray, epoch: int = 0) -> Batch:
        real = torch.ones(len(index), CONTEXT + 1, dtype=torch.bool)
        real[torch.from_numpy(index) == len(self) - 1, 9:] = False
        tokens, samples = torch.from_numpy(self.tokens[index]), torch.from_numpy(index)
        return Batch(tokens, real=real, weights=real.float(), samples=samples)


def subject(**options) -> Subject:
    torch.manual_seed(0)
    mlp = partial(interleaved_moe, **{"num_experts": 4} | options)
    model = Transformer(VOCAB, depth=2, width=32, context=CONTEXT, num_heads=2, mlp=mlp).eval()
    parts = {"low": Rows(0, 15), "high": Rows(15, 30)}
    tokenizer = Bytes()
    corpus = SimpleNamespace(name="", config="", hash="", tokenizer=tokenizer, train=parts["low"], validation=parts)
    return Subject(model, corpus, CLM(), rows=5)  # type: ignore[arg-type]


def test_information_of_tables_that_are_known():
    assert mutual(torch.outer(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0, 1.0]))) == pytest.approx(0, abs=1e-6)
    assert mutual(torch.diag(torch.tensor([4.0, 4.0]))) == pytest.approx(np.log(2)) == entropy(torch.tensor([4, 4]))
    assert counts(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0]), 2, 3).tolist() == [[0, 0, 1], [2, 0, 0]]


def test_hash_is_all_of_the_token_and_random_is_none():
    off = {"balance": PerSequence(0.0)}
    by_hash, at_random = (specialisation(read(s := subject(router=r, **off), s.model, 99)) for r in (Hash, Random))
    for layer in (0, 1):
        assert by_hash["token"][layer] > 0.35 > 0.1 > abs(by_hash["next_token"][layer])
        assert by_hash["domain"][layer] > 10 * abs(at_random["domain"][layer])
        assert abs(at_random["token"][layer]) < 0.06 and at_random["domain"][layer] < 0.02


def test_padding_is_no_token_and_shares_add_up():
    s = subject()
    record = read(s, s.model, 99)
    assert record.num_tokens == 2 * (11 * CONTEXT + 8) and record.experts[0].shape == (record.num_tokens, 2)
    assert float(record.load(0).sum()) == pytest.approx(1)
    assert bool((record.ids < 15).eq(record.domains == 0).all())
    lift = specialisation(record)["lift"][0]
    assert len(lift) == 2 and len(lift[0]) == 4
    together = torch.tensor(coactivation(record, 0))
    assert torch.equal(together.diagonal(), torch.ones(4, dtype=together.dtype))
    torch.testing.assert_close(together.sum(1), torch.full((4,), 2.0, dtype=together.dtype))


def test_a_forced_choice_is_kept_and_ones_own_changes_nothing():
    s = subject()
    record = read(s, s.model, 99)
    assert loss_under(s, s.model, 99, unchanged) == record.loss
    assert loss_under(s, s.model, 99, forced(record)) == pytest.approx(record.loss, abs=1e-7)
    with perturbed(s.model, relative(1.0, 0)):
        other, held = read(s, s.model, 99), loss_under(s, s.model, 99, forced(record))
    assert flipped(other.experts[0], record.experts[0]) > 0.1 and other.loss != pytest.approx(held, abs=1e-6)
    assert read(s, s.model, 99).loss == record.loss, "the weights are those from before"


@pytest.mark.parametrize("router", [TopK, LossFree])
def test_sensitivity_grows_with_the_noise_and_frozen_routing_does_not_flip(router):
    s = subject(router=router)
    found = sensitivity(s, read(s, s.model, 99), 99)
    assert found is not None
    flips = [entry["flips"] for entry in found["noise"].values()]
    assert flips[-1] > flips[0] and len(flips) == 4
    worst = found["noise"]["0.03"]
    assert worst["gating"] == pytest.approx(worst["free"] - worst["frozen"]) and len(worst["draws"]) == 3
    assert set(found["rounding"]) == {"bf16", "int8"}


def test_a_router_without_weights_has_no_sensitivity():
    s = subject(router=Hash, balance=PerSequence(0.0))
    found = evaluate(s)
    assert found["sensitivity"] is None and found["margin"] == {0: None, 1: None}
    assert found["redundancy"]["removal"] == {0: None, 1: None}


def test_rounding_is_as_coarse_as_its_name():
    weight = torch.randn(4, 64)
    assert len((to_int8(weight)[0] / (weight[0].abs().max() / 127)).round().unique()) <= 64
    assert float((to_int8(weight) - weight).abs().max()) <= float(weight.abs().max()) / 254 * 1.01
    assert torch.equal(to_bf16(weight), weight.bfloat16().float())


def test_copies_are_alike_and_removing_who_is_not_used_costs_nothing():
    s = subject()
    stack = s.model.blocks[0].mlp.experts
    with torch.no_grad():
        stack.gate_up[1], stack.down[1] = stack.gate_up[0], stack.down[0]
        s.model.blocks[1].mlp.router.linear.weight[3] = 0
        s.model.blocks[1].mlp.router.linear.weight[3] -= s.model.blocks[1].mlp.router.linear.weight[:3].sum(0) * 50
    found = redundancy(s, read(s, s.model, 99), 99)
    assert found["similarity"][0][0][1] == pytest.approx(1) and abs(found["similarity"][0][0][2]) < 0.5
    record = read(s, s.model, 99)
    for layer, expert in ((0, 2), (1, 0)):
        changed = read_without(s, layer, expert)
        assert not bool((changed.experts[layer] == expert).any())
        assert found["removal"][layer][expert] == pytest.approx(changed.loss - record.loss, abs=1e-6)


def read_without(s: Subject, layer: int, expert: int):
    bias = s.model.blocks[layer].mlp.router
    handle = bias.linear.register_forward_hook(
        lambda _, __, logits: logits.index_fill(1, torch.tensor([expert]), -torch.inf)
    )
    found = read(s, s.model, 99)
    handle.remove()
    return found


def test_overlap_and_churn_of_checkpoints():
    one, two = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 0]])
    assert overlap(one, two) == 0.75 and flipped(one, two) == 0.5 and overlap(one, one) == 1
    assert overlap(torch.tensor([[0, -1]]), torch.tensor([[0, 1]])) == pytest.approx(2 / 3)
    s = subject()
    last = read(s, s.model, 99)
    other = subject(k=2, num_experts=4)
    torch.manual_seed(9)
    torch.nn.init.normal_(other.model.blocks[0].mlp.router.linear.weight)
    s = Subject(s.model, s.corpus, s.objective, earlier=lambda: iter([(5, other.model), (9, s.model)]))
    found = settled(s, last, 99)
    assert found["steps"] == [5, 9] and found["saturation"][0][1] == 1 and found["saturation"][0][0] < 0.9
    assert found["churn"][0] == pytest.approx([1 - found["saturation"][0][0], 0])


def test_without_leaves_the_other_layers_alone():
    s = subject()
    logits = torch.randn(5, 4)
    router = s.model.blocks[0].mlp.router
    said = router.route(logits)
    assert without(1, 0)(0, router, said) is said
    assert not bool((without(0, 2)(0, router, said).experts == 2).any())


def test_a_dense_model_is_refused():
    s = subject()
    plain = Transformer(VOCAB, depth=1, width=32, context=CONTEXT, num_heads=2)
    with pytest.raises(ValueError, match="no experts"):
        evaluate(Subject(plain, s.corpus, s.objective))


def test_rows_that_are_read_otherwise_are_refused():
    s = subject()

    class Twice(CLM):
        def __call__(self, model, batch):
            model(batch.map(lambda t: t[:, :-1] if t.dim() == 2 else t))
            return super().__call__(model, batch)

    with pytest.raises(ValueError, match="objective=twice reads its rows otherwise"):
        read(replace(s, objective=Twice()), s.model, 99)
