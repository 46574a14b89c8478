"""A top-k sparse autoencoder and its training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kleiber.records import Activity


class SparseAutoencoder(nn.Module):
    """decode(encode(x)), where encode keeps the k largest features of relu(W (x - b) + c).

    Gao et al. 2024, arXiv:2406.04093, section 2.3. Vectors are divided by one scale, so that their mean squared norm is
    the number of channels, and directions of the decoder have norm 1.

    width, features  channels of a vector, and number of features
    k                features of a vector that are not 0
    """

    scale: Tensor

    def __init__(self, width: int, features: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(width, features)
        self.decoder = nn.Parameter(torch.randn(features, width))
        self.center = nn.Parameter(torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        with torch.no_grad():
            self.normalize()
            self.encoder.weight.copy_(self.decoder)
            self.encoder.bias.zero_()

    @torch.no_grad()
    def normalize(self) -> None:
        """Gives every direction of the decoder norm 1."""
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def initialize(self, vectors: Float[Tensor, "rows width"]) -> None:
        """Sets the scale and the center from some vectors."""
        mean = vectors.mean(0)
        variance = (vectors - mean).square().mean()
        self.scale.copy_(variance.sqrt().clamp(min=1e-12))
        self.center.copy_(mean / self.scale)

    def activations(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows features"]:
        """The features before the choice of the k largest."""
        return torch.relu(self.encoder(vectors / self.scale - self.center))

    def encode(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows features"]:
        """The features of each vector, at most k of which are not 0."""
        values, places = self.activations(vectors).topk(self.k, dim=1)
        return torch.zeros(len(vectors), len(self.decoder), device=vectors.device).scatter(1, places, values)

    def decode(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows width"]:
        """The vectors of features."""
        return (features @ self.decoder + self.center) * self.scale

    def forward(self, vectors: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return self.decode(self.encode(vectors))


def train_autoencoder(
    autoencoder: SparseAutoencoder,
    batches: Iterator[Float[Tensor, "rows width"]],
    learning_rate: float,
    patience: int,
    work: Activity,
) -> None:
    """Minimizes the squared error with Adam, one step for each batch of vectors.

    patience  vectors without a feature after which it is dead: dead features learn to reconstruct the error that the
              others leave (the auxiliary loss of Gao et al. 2024, section 2.4, with weight 1/32)
    """
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)
    idle = torch.zeros(len(autoencoder.decoder), dtype=torch.int64, device=autoencoder.decoder.device)
    first = True
    with torch.enable_grad():
        for vectors in batches:
            if first:
                autoencoder.initialize(vectors)
                first = False
            scale = autoencoder.scale
            features = autoencoder.encode(vectors)
            errors = (vectors - autoencoder.decode(features)) / scale
            loss = errors.square().sum(1).mean()
            dead = idle > patience
            if bool(dead.any()):
                loss = loss + auxiliary_loss(autoencoder, vectors, errors.detach(), dead) / 32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            autoencoder.normalize()
            idle += len(vectors)
            idle[(features > 0).any(0)] = 0
            work.done += len(vectors)


def auxiliary_loss(autoencoder: SparseAutoencoder, vectors: Tensor, errors: Tensor, dead: Tensor) -> Float[Tensor, ""]:
    """Squared error of the reconstruction of `errors` by the largest dead features of each vector."""
    values = autoencoder.activations(vectors) * dead
    chosen, places = values.topk(min(2 * autoencoder.k, int(dead.sum())), dim=1)
    features = torch.zeros_like(values).scatter(1, places, chosen)
    return (errors - features @ autoencoder.decoder).square().sum(1).mean()


def most_active(
    features: Float[Tensor, "tokens features"], count: int
) -> tuple[Int[Tensor, "features count"], Float[Tensor, "features count"]]:
    """The tokens at which each feature is largest, and its values there, in falling order."""
    values, places = features.topk(min(count, len(features)), dim=0)
    return places.T, values.T
