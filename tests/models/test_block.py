"""Parts of the model that predict later tokens: their loss against a slow one, and where they do not run."""

import pytest
import torch

from kleiber.models.generation import generate
from kleiber.models.hf_twin import to_hf
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch

VOCAB = 23


def build(**options) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(VOCAB, **{"depth": 2, "width": 32, "context": 16} | options).double()
    torch.nn.init.normal_(model.embedding.weight)
    return model


def test_the_loss_of_later_tokens_equals_a_slow_one_and_leaves_out_padding_and_other_documents():
    model, tokens = build(future=2, future_weight=0.5), torch.randint(VOCAB, (2, 12))
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    real, weights = torch.ones(2, 12, dtype=torch.bool), torch.rand(2, 12)
    real[1, 9:] = False
    loss = CLM()(model, Batch(tokens, real=real, segments=segments, weights=weights))
    output = model(Batch(tokens[:, :-1], real=real[:, :-1], segments=segments[:, :-1]))
    slow = torch.zeros((), dtype=torch.float64)
    for k, hidden in enumerate(output.future, start=1):
        for row in range(2):
            for at in range(12 - 1 - k):
                target = at + 1 + k
                if real[row, target] and segments[row, at] == segments[row, target]:
                    log_p = model.head(hidden[row, at]).log_softmax(-1)[tokens[row, target]]
                    slow -= weights[row, target] * log_p / 2
    torch.testing.assert_close(loss.metrics["future_ce"].double(), slow.detach())
    torch.testing.assert_close(loss.total, loss.metrics["ce"] + 0.5 * slow.float().double(), atol=1e-5, rtol=1e-5)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.future.parameters())


def test_with_weight_0_and_in_evaluation_the_loss_is_the_plain_one():
    plain, batch = build(), Batch(torch.randint(VOCAB, (2, 12)))
    for model in (build(future=1, future_weight=0.0), build(future=1).eval()):
        model.load_state_dict(plain.state_dict(), strict=False)
        losses = [CLM()(each, batch).total for each in (plain, model)]
        torch.testing.assert_close(*losses, rtol=0, atol=0)
        gradients = [
            torch.autograd.grad(loss, each.embedding.weight)[0]
            for loss, each in zip(losses, (plain, model), strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_generation_and_export_leave_the_parts_out():
    model, plain, ids = build(future=1), build(), torch.randint(VOCAB, (1, 4))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(generate(model, ids, 6, temperature=0.0), generate(plain, ids, 6, temperature=0.0))
    theirs, ours = to_hf(model), to_hf(plain)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    with pytest.raises(ValueError, match="causal"):
        build(future=1, causal=False)
