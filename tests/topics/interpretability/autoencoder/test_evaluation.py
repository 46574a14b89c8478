"""The evaluation: an autoencoder without loss recovers all, and every key has its effect."""

from dataclasses import replace

import pytest
import torch
from evals.routing.moe_text import Rows
from evals.small_models import subject_on_rows, tiny

from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.models.transformer import Transformer
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.types.model import Model
from kleiber_topics.interpretability.autoencoder.evaluation import (
    Autoencoder,
    inputs_of,
    reconstruction,
    training_samples,
)
from kleiber_topics.interpretability.autoencoder.sparse import SparseAutoencoder

SMALL = {"tokens": 400, "held_out": 64, "batch": 40, "k": 4, "features": 24, "shown": 3, "contexts": 2}


def subject(model: Model | None = None) -> Subject:
    torch.manual_seed(0)
    model = model or Transformer(272, depth=2, width=16, context=16, num_heads=2).eval()
    objective = CLM() if model.causal else MLM(Bytes())
    return replace(subject_on_rows(model, Rows(0, 30), objective=objective), train=Rows(5, 30, rows=40), rows=4)


def exact(width: int) -> SparseAutoencoder:
    """An autoencoder that reconstructs every vector: each channel has a feature for its sign."""
    autoencoder = SparseAutoencoder(width, 2 * width, width)
    with torch.no_grad():
        both = torch.cat([torch.eye(width), -torch.eye(width)])
        autoencoder.decoder.copy_(both)
        autoencoder.encoder.weight.copy_(both)
    return autoencoder


def taught() -> Subject:
    """A model that has learned which tokens occur, so that zeros predict worse than its stream."""
    case = subject()
    optimizer = torch.optim.Adam(case.model.parameters(), lr=0.02)
    for _ in range(8):
        for batch in case.batches("text"):
            optimizer.zero_grad()
            CLM()(case.model, batch).total.backward()
            optimizer.step()
    return case


@pytest.mark.slow
def test_an_exact_reconstruction_recovers_the_loss():
    case = taught()
    batches = list(case.batches("text"))
    scores = Autoencoder().losses(case.model, CLM(), batches, 1, exact(16))
    assert scores["loss_recovered"].value == pytest.approx(1, abs=1e-4)
    assert scores["loss_reconstructed"].value == pytest.approx(scores["loss"].value, abs=1e-4)
    assert scores["loss_zero"].value != scores["loss"].value
    rest = reconstruction(case.model, batches, 1, exact(16))
    assert rest["explained_variance"].value == pytest.approx(1, abs=1e-5) and rest["l0"].value == pytest.approx(16)
    nothing = SparseAutoencoder(16, 32, 4)
    with torch.no_grad():
        nothing.encoder.bias.fill_(-1e6)
    silent = reconstruction(case.model, batches, 1, nothing)
    assert silent["dead"].value == 1.0 and silent["l0"].value == 0.0
    lost = Autoencoder().losses(case.model, CLM(), batches, 1, nothing)
    assert lost["loss_recovered"].value == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_the_keys_have_their_effect():
    case = subject()
    results = Autoencoder(**SMALL).evaluate(case)
    scores = results.scores["text"]
    assert results.details["layer"] == 1 and len(results.details["features"]["text"]) == 3
    assert len(results.details["features"]["text"][0]["contexts"]) == 2

    def changed(metric: str = "loss_reconstructed", **keys: object) -> bool:
        return Autoencoder(**{**SMALL, **keys}).evaluate(case).scores["text"][metric] != scores[metric]

    assert changed(layer=2) and changed(features=32) and changed("l0", k=2) and changed(tokens=200)
    assert changed(batch=50) and changed(learning_rate=0.01) and changed(seed=1)
    assert Autoencoder(**SMALL).evaluate(case).scores["text"] == scores, "the same seed gives the same numbers"
    assert Autoencoder(**{**SMALL, "shown": 0}).evaluate(case).details["features"]["text"] == []


def test_an_epoch_of_training_reads_every_row_once(monkeypatch):
    case, read = subject(), []
    gather = case.train.gather
    monkeypatch.setattr(case.train, "gather", lambda index, epoch: (read.extend(index.tolist()), gather(index))[1])
    list(Autoencoder(**{**SMALL, "tokens": 40 * 16}).training_vectors(case, "text", 1, 0))
    assert sorted(read[:40]) == list(range(40))


@pytest.mark.slow
def test_masked_models_and_those_without_training_text():
    masked = Autoencoder(**SMALL).evaluate(subject(tiny("masked"))).scores["text"]
    assert masked["loss"].value > 0
    case = replace(subject(), train=None)
    samples, start = training_samples(case, "text", 5)
    assert len(samples) == 12 and start == 5
    with pytest.raises(ValueError, match="behind the 12 held-out rows, and there is none"):
        training_samples(case, "text", 12)
    batch = next(case.batches("text"))
    assert inputs_of(batch, case.model).tokens.shape[1] == 16


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"layer=3 must be <= 2"):
        Autoencoder(layer=3).check(tiny("dense"))
    with pytest.raises(ValueError, match=r"k=200 must be <= 128"):
        Autoencoder(k=200).check(tiny("dense"))


@pytest.mark.slow
def test_nothing_is_recovered_where_zeros_predict_better():
    case = taught()
    with torch.no_grad():
        case.model.norm.weight.neg_()  # what it learned now makes the text unlikely
    scores = Autoencoder().losses(case.model, CLM(), list(case.batches("text")), 1, exact(16))
    assert scores["loss"].value > scores["loss_zero"].value and "loss_recovered" not in scores
