"""Attributions: exact on a model that adds up its inputs, complete, and equal to those of captum."""

import pytest
import torch
from evals.small_models import TIME, VOCAB, Sums, tiny
from topics.interpretability.attribution.explained import predictions
from torch import Tensor

from kleiber.data.tokenizers import Bytes
from kleiber.models.transformer import Transformer
from kleiber.nn.patterns import NoMixing
from kleiber.records.progress import Activity
from kleiber.types.model import Model
from kleiber_topics.interpretability.attention.heads import read_attention
from kleiber_topics.interpretability.attribution.methods import METHODS, Explainer, without_attention
from kleiber_topics.interpretability.attribution.predictions import baseline_embedding


def explainer(model: Model, steps: int = 64, baseline: str = "zero") -> Explainer:
    return Explainer(model.eval(), baseline_embedding(model, Bytes(), baseline), steps, 64, Activity(""))


def test_on_a_model_that_adds_up_its_inputs_every_method_gives_each_token_its_share():
    model = Sums(torch.zeros(VOCAB, 3))
    with torch.no_grad():
        model.embedding.weight[:, 0] = torch.linspace(-0.02, 0.02, VOCAB)  # in the linear range of the softmax
    chosen = predictions(model)
    shares = model.embedding.weight[chosen.batch.tokens, 0].detach() / 2
    for method in ("gradient_x_input", "integrated_gradients", "occlusion"):
        values = explainer(model).explain(method, chosen)
        assert torch.allclose(values, shares, atol=6e-4), method
        assert (values[:, 1:].argmax(1) == shares[:, 1:].argmax(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "lstm", "masked"])
def test_integrated_gradients_sum_up_to_the_difference_from_the_baseline(kind):
    model = tiny(kind)
    chosen = predictions(model, 2, causal=kind != "masked")
    explain = explainer(model, 48, "mean")
    values = explain.explain("integrated_gradients", chosen)
    with torch.no_grad():
        whole, start = chosen.log_probs(model), chosen.log_probs(model, explain.without_information(chosen))
    assert torch.allclose(values.sum(1), whole - start, atol=2e-3)
    assert (values[~chosen.candidates] == 0).all()


@pytest.mark.slow
def test_integrated_gradients_and_gradient_x_input_are_those_of_captum():
    captum = pytest.importorskip("captum.attr")
    model = tiny("dense")
    chosen, explain = predictions(model, 2), explainer(model, 8, "mean")
    vectors, start = explain.embed(chosen), explain.without_information(chosen)

    def forward(embeddings: Tensor) -> Tensor:
        repeated = chosen.select(torch.arange(len(chosen)).repeat(len(embeddings) // len(chosen)))
        return repeated.log_probs(model, embeddings)

    expected = captum.IntegratedGradients(forward).attribute(vectors, start, n_steps=8, method="gausslegendre")
    values = explain.explain("integrated_gradients", chosen)
    assert torch.allclose(values, expected.sum(2).float(), atol=1e-5)
    expected = captum.InputXGradient(forward).attribute(vectors.clone().requires_grad_())
    assert torch.allclose(explain.explain("gradient_x_input", chosen), expected.sum(2), atol=1e-6)


def test_occlusion_is_the_loss_of_each_token_by_itself():
    model = tiny("lstm")
    chosen, explain = predictions(model), explainer(model, baseline="mean")
    values, vectors = explain.explain("occlusion", chosen), explain.embed(chosen)
    changed = vectors.clone()
    changed[:, 2] = explain.baseline
    with torch.no_grad():
        assert torch.allclose(values[:, 2], chosen.log_probs(model) - chosen.log_probs(model, changed), atol=1e-5)


def test_rollout_is_the_product_of_the_weights_with_the_residual():
    model = tiny("dense")
    chosen, weights = predictions(model), []
    read_attention(model, chosen.batch, lambda _, __, heads: weights.append(heads.weights.mean(1)))
    eye = torch.eye(TIME)
    expected = ((weights[1] + eye) / 2 @ (weights[0] + eye) / 2)[:, -1]
    values = explainer(model).explain("rollout", chosen)
    assert torch.allclose(values, expected, atol=1e-6) and torch.allclose(values.sum(1), torch.ones(4))


@pytest.mark.slow
def test_chunks_change_nothing_and_experts_have_all_methods():
    model = tiny("moe")
    chosen = predictions(model, 3)
    for method in METHODS:
        whole, split = (
            Explainer(model, baseline_embedding(model, Bytes(), "mean"), 4, tokens, Activity("")).explain(
                method, chosen
            )
            for tokens in (10_000, TIME)
        )
        assert torch.allclose(whole, split, atol=1e-5), method


def test_rollout_needs_attention_in_every_layer():
    assert without_attention(tiny("dense")) == ""
    assert "LSTM" in without_attention(tiny("lstm"))
    assert "0 of the 1" in without_attention(Transformer(VOCAB, 1, 16, context=TIME, attention=NoMixing))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_models_of_transformers_have_all_methods(kind):
    from kleiber.models.hf import HFModel

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = HFModel(272, kind, weights="random", config=sizes, context=16).eval()
    chosen = predictions(model, causal=model.causal)
    explain = explainer(model, baseline="mean")
    kept = model.config._attn_implementation
    values = {method: explain.explain(method, chosen) for method in METHODS}
    assert model.config._attn_implementation == kept
    assert torch.allclose(values["rollout"].sum(1) <= 1.0001, torch.tensor(True))
    with torch.no_grad():
        gap = chosen.log_probs(model) - chosen.log_probs(model, explain.without_information(chosen))
    assert torch.allclose(values["integrated_gradients"].sum(1), gap, atol=0.01)
