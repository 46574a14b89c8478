"""The logit lens ends at the model's own predictions, and reads what transformers reads in between."""

import pytest
import torch

from kleiber.evals.streams import read_streams
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch
from kleiber_topics.interpretability.attention.attention import lens_losses, lens_text, residual_streams

TOKENS = torch.randint(50, (4, 13), generator=torch.Generator().manual_seed(0))


def small() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(50, depth=3, width=32, context=12, soft_cap=5.0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def test_the_last_layer_has_the_loss_of_the_model():
    model, batch = small(), Batch(TOKENS)
    with torch.no_grad():
        loss = CLM()(model, batch)
    losses = lens_losses(model, [Batch(TOKENS[:1]), Batch(TOKENS[1:])])
    assert losses.shape == (4, 4)
    assert float(losses[:, -1].mean()) == pytest.approx(float(loss.total / loss.tokens), rel=1e-5)
    assert torch.allclose(residual_streams(model, Batch(TOKENS[:, :-1]))[-1], model(Batch(TOKENS[:, :-1])).hidden)


def test_rows_without_a_target_have_no_loss():
    weights = torch.ones(4, 13)
    weights[2] = 0
    assert lens_losses(small(), [Batch(TOKENS, weights=weights)]).shape == (3, 4)


def test_transformers_has_the_same_predictions_at_every_layer():
    from transformers import LlamaConfig, LlamaForCausalLM

    from kleiber.models.hf_twin import from_hf

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    twin = LlamaForCausalLM(config).eval()
    states = twin(TOKENS[:1, :-1], output_hidden_states=True).hidden_states
    normed = [twin.model.norm(state) for state in states[:-1]] + [states[-1]]  # of the last, transformers has done it
    expected = torch.stack([twin.lm_head(state).softmax(-1)[0] for state in normed])
    text = lens_text(from_hf(twin), TOKENS[:1])
    assert torch.equal(text.tokens, TOKENS[0, 1:])
    at = TOKENS[0, 1:].expand(len(expected), -1)[..., None]
    assert torch.allclose(text.probability, expected.gather(2, at)[..., 0], atol=1e-5)
    assert torch.equal(text.best, expected.argmax(-1))


def test_inputs_lack_the_last_token():
    batch = Batch(TOKENS, real=TOKENS >= 0, samples=torch.arange(4))
    inputs = batch.columns(-1)
    assert inputs.tokens.shape == inputs.real.shape == (4, 12) and inputs.samples.shape == (4,)


def test_streams_are_the_normalized_ones_that_evaluations_read():
    model, batch = small(), Batch(TOKENS[:, :12])
    with torch.no_grad():
        pairs = zip(read_streams(model, batch), residual_streams(model, batch), strict=True)
        assert all(torch.allclose(model.norm(before), stream, atol=1e-6) for before, stream in pairs)
