"""The autoencoder keeps k features, recovers planted directions, and revives dead ones."""

import pytest
import torch

from kleiber.records.progress import Activity
from kleiber_topics.interpretability.autoencoder.sparse import (
    SparseAutoencoder,
    auxiliary_loss,
    most_active,
    train_autoencoder,
)


def planted(
    count: int = 4096, features: int = 12, width: int = 8, active: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors that are each a positive multiple of one of some directions, and the directions."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(features, width), dim=1)
    values = torch.zeros(count, features).scatter(
        1, torch.randint(features, (count, active)), 1 + torch.rand(count, active)
    )
    return values @ directions, directions


def test_at_most_k_features_are_not_zero_and_the_scale_is_undone():
    vectors, _ = planted(64)
    autoencoder = SparseAutoencoder(8, 20, 3)
    autoencoder.initialize(vectors * 50)
    features = autoencoder.encode(vectors * 50)
    assert features.shape == (64, 20) and int((features > 0).sum(1).max()) <= 3
    assert torch.allclose(autoencoder.decoder.norm(dim=1), torch.ones(20))
    assert torch.allclose(autoencoder.decode(torch.zeros(1, 20))[0], vectors.mean(0) * 50, atol=1e-4)


@pytest.mark.slow
def test_training_explains_vectors_that_are_sparse_sums():
    vectors, directions = planted()
    autoencoder, work = SparseAutoencoder(8, 24, 1), Activity("")
    batches = (vectors[torch.randperm(len(vectors))[:256]] for _ in range(200))
    train_autoencoder(autoencoder, batches, 0.01, 10_000, work)
    with torch.no_grad():
        error = (autoencoder(vectors) - vectors).square().sum() / (vectors - vectors.mean(0)).square().sum()
    assert error < 0.1 and work.done == 200 * 256
    likeness = (directions @ autoencoder.decoder.T).amax(1)
    assert likeness.mean() > 0.85, "its directions are the planted ones"


def test_dead_features_learn_what_the_others_leave():
    vectors, _ = planted(512)
    autoencoder = SparseAutoencoder(8, 16, 2)
    with torch.no_grad():
        autoencoder.encoder.bias[8:] = -1e3
    dead = torch.arange(16) >= 8
    with torch.no_grad():
        losses = [float(auxiliary_loss(autoencoder, vectors, vectors, which)) for which in (~dead, dead)]
    assert losses[0] < losses[1], "features that never fire explain nothing"
    with torch.no_grad():
        autoencoder.encoder.bias[8:] = 0.0
    loss = auxiliary_loss(autoencoder, vectors, vectors, dead)
    loss.backward()
    assert autoencoder.encoder.weight.grad[8:].abs().sum() > 0 and autoencoder.encoder.weight.grad[:8].abs().sum() == 0


def test_the_tokens_at_which_a_feature_is_largest():
    features = torch.tensor([[0.0, 3.0], [2.0, 1.0], [1.0, 2.0]])
    places, values = most_active(features, 2)
    assert places.tolist() == [[1, 2], [0, 2]] and values.tolist() == [[2.0, 1.0], [3.0, 2.0]]
