"""The evaluation `autoencoder`: trains a sparse autoencoder on one layer, and measures what it keeps and shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kleiber.config import Quantity, quantity
from kleiber.evals import (
    Evaluation,
    Results,
    Subject,
    changed_stream,
    mean_score,
    num_layers,
    proportion_score,
    ratio_score,
    read_streams,
)
from kleiber.records import activity
from kleiber.types import (
    Batch,
    Count,
    DataPath,
    Json,
    Metric,
    Metrics,
    Model,
    Natural,
    Objective,
    Positive,
    Samples,
    Scores,
    Seed,
    Width,
)
from kleiber_topics.interpretability.attention.attention import token_text
from kleiber_topics.interpretability.autoencoder.sparse import SparseAutoencoder, most_active, train_autoencoder

if TYPE_CHECKING:
    from altair import TopLevelMixin

AROUND = 12  # tokens in front of the one at which a feature is active, in the report


class Autoencoder(Evaluation):
    """A top-k sparse autoencoder on the residual stream of one layer (Bricken et al. 2023; Gao et al. 2024,
    arXiv:2406.04093), trained by the evaluation and not kept.

    loss_recovered          (loss with zeros - loss with the reconstruction) / (loss with zeros - loss): 1 keeps all of
                            what the layer does for the prediction, 0 no more than a stream of zeros. There is none
                            for a model that predicts better with zeros, as on text that is foreign to it
    loss, loss_reconstructed, loss_zero  of the model, in nats per target token
    explained_variance      1 - squared error over the variance of the vectors
    l0                      mean number of features of a token that are not 0
    dead                    share of the features that are 0 at all held-out tokens

    It trains on the training text of the run; for a Hugging Face model on the part of the data set behind the held-out
    tokens. Intervals are over rows of held-out text.

    layer          0 before the first block, L after block L; null: in the middle
    features       null: 8 times the channels of the stream
    k              features of a token that are not 0, at most
    tokens         to train on, some of which repeat where the text is shorter
    held_out       tokens to measure on, unless the command sets --tokens
    batch          vectors of a step
    learning_rate  of Adam
    shown          features in the report, each with its top contexts
    contexts       of each of them
    data           names or paths of other data; null: that of the run or of the command
    """

    metrics: ClassVar[Metrics] = {
        "loss_recovered": Metric("share of the loss recovered", "higher"),
        "loss": Metric("loss", "lower", "nats per token"),
        "loss_reconstructed": Metric("loss with the reconstructed layer", "lower", "nats per token"),
        "loss_zero": Metric("loss with zeros in place of the layer", "none", "nats per token"),
        "explained_variance": Metric("explained variance", "higher"),
        "l0": Metric("active features of a token", "none"),
        "dead": Metric("share of dead features", "lower"),
    }

    def __init__(
        self,
        layer: Natural | None = None,
        features: Width | None = None,
        k: Count = 16,
        tokens: Quantity = "200K",
        held_out: Quantity = "8K",
        batch: Count = 512,
        learning_rate: Positive = 0.001,
        shown: Natural = 24,
        contexts: Count = 5,
        seed: Seed = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.layer, self.features, self.k, self.seed, self.data = layer, features, k, seed, data
        self.tokens, self.held_out, self.batch = round(quantity(tokens)), round(quantity(held_out)), batch
        self.learning_rate, self.shown, self.contexts = learning_rate, shown, contexts

    def check(self, model: Model) -> None:
        """Raises ValueError for a layer that the model does not have, and for k above the number of features."""
        last, features = num_layers(model) - 1, self.features or 8 * model.width
        if self.layer is not None and self.layer > last:
            raise ValueError(
                f"evals.autoencoder.layer={self.layer} must be <= {last}, the number of layers of this model"
            )
        if self.k > features:
            raise ValueError(f"evals.autoencoder.k={self.k} must be <= {features}, the number of features")

    def evaluate(self, subject: Subject) -> Results:
        """Trains an autoencoder for each data set and measures it. Raises ValueError for too little text."""
        model = subject.model
        layer = num_layers(model) // 2 if self.layer is None else self.layer
        scores: dict[str, Scores] = {}
        details: Json = {"layer": layer, "features": {}}
        for domain in subject.domains:
            held_out = subject.samples(domain, subject.tokens or self.held_out)
            torch.manual_seed(self.seed)
            autoencoder = SparseAutoencoder(model.width, self.features or 8 * model.width, self.k).to(subject.device)
            with activity(f"training a sparse autoencoder on {domain}", self.tokens, "tokens") as work:
                vectors = self.training_vectors(subject, domain, layer, len(held_out))
                train_autoencoder(autoencoder, vectors, self.learning_rate, max(1, self.tokens // 10), work)
            batches = list(subject.batches_of(held_out))
            scores[domain] = {
                **self.losses(model, subject.objective_of(domain), batches, layer, autoencoder),
                **reconstruction(model, batches, layer, autoencoder),
            }
            details["features"][domain] = self.shown_features(subject, batches, layer, autoencoder)
        return Results(scores, details)

    def training_vectors(
        self, subject: Subject, domain: str, layer: int, held_out: int
    ) -> Iterator[Float[Tensor, "rows width"]]:
        """Batches of vectors of the layer, in random order within some rows of text, until `tokens` of them."""
        samples, start = training_samples(subject, domain, held_out)
        random = torch.Generator().manual_seed(self.seed % 2**31)
        rows, drawn = max(subject.rows, 2 * self.batch // subject.model.context), 0
        rest: list[Tensor] = []
        order, epoch = iter(()), 0
        while drawn < self.tokens:
            index = list(islice(order, rows))
            if not index:
                count = len(samples) - start
                order = iter((start + torch.randperm(count, generator=random)).tolist())
                epoch += 1
                continue
            batch = samples.gather(np.array(index), epoch - 1 if start == 0 else 0).to(subject.device)
            rest.append(real_vectors(subject.model, batch, layer))
            pooled = torch.cat(rest)
            pooled = pooled[torch.randperm(len(pooled), generator=random).to(pooled.device)]
            ends = len(pooled) // self.batch * self.batch
            for vectors in pooled[:ends].split(self.batch):
                if drawn < self.tokens:
                    vectors = vectors[: self.tokens - drawn]
                    drawn += len(vectors)
                    yield vectors
            rest = [pooled[ends:]]

    @torch.no_grad()
    def losses(
        self,
        model: Model,
        objective: Objective,
        batches: Sequence[Batch],
        layer: int,
        autoencoder: SparseAutoencoder,
    ) -> Scores:
        """The loss of the model as it is, with the reconstructed stream, and with zeros."""
        kinds = {
            "loss": None,
            "loss_reconstructed": partial(reconstructed, autoencoder),
            "loss_zero": torch.zeros_like,
        }
        pieces = [piece for batch in batches for piece in batch.split(1)]
        totals: dict[str, list[float]] = {name: [] for name in kinds}
        tokens: list[float] = []
        for piece in pieces:
            for name, change in kinds.items():
                with nullcontext() if change is None else changed_stream(model, layer, change):
                    loss = objective(model, piece)
                totals[name].append(float(loss.metrics["ce"]))
            tokens.append(float(loss.tokens))
        kept, counts = np.array(tokens) > 0, np.array(tokens)
        by_kind = {name: np.array(values)[kept] for name, values in totals.items()}
        scores = {name: ratio_score(values, counts[kept]) for name, values in by_kind.items()}
        gained, whole = (by_kind["loss_zero"] - by_kind[name] for name in ("loss_reconstructed", "loss"))
        return {"loss_recovered": ratio_score(gained, whole), **scores} if whole.mean() > 0 else scores

    def shown_features(
        self, subject: Subject, batches: Sequence[Batch], layer: int, autoencoder: SparseAutoencoder
    ) -> list[Json]:
        """Features from frequent to rare, each with the contexts in which it is largest, as plain data."""
        if not self.shown:
            return []
        rows = [inputs_of(batch, subject.model) for batch in batches]
        tokens = [row for batch in rows for row in batch.tokens.tolist()]
        real = torch.cat([batch.is_real for batch in rows]).cpu()
        features = torch.cat([sparse_features(subject.model, batch, layer, autoencoder) for batch in batches])
        places = real.nonzero()
        density = (features > 0).float().mean(0)
        alive = density.argsort(descending=True)[: int((density > 0).sum())]
        if not len(alive):
            return []
        chosen = alive[torch.linspace(0, len(alive) - 1, min(self.shown, len(alive)), device=alive.device).long()]
        top, values = most_active(features[:, chosen], self.contexts)
        listed: list[Json] = []
        for number, feature in enumerate(chosen.tolist()):
            contexts: list[Json] = []
            for place, value in zip(top[number].tolist(), values[number].tolist(), strict=True):
                row, at = places[place].tolist()
                if value > 0:
                    first = max(0, at - AROUND)
                    texts = [token_text(subject.tokenizer, token) for token in tokens[row][first : at + 3]]
                    contexts.append({"tokens": texts, "at": at - first, "value": round(value, 3)})
            share = round(float(density[feature]), 5)
            listed.append({"feature": feature, "density": share, "contexts": contexts})
        return listed

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """The loss with the stream as it is, reconstructed, and zero."""
        from kleiber_topics.interpretability.autoencoder.report import figures

        return figures(results)

    def page(self, results: Json) -> str:
        """The features of each data set, with their top contexts."""
        from kleiber_topics.interpretability.autoencoder.report import features_page

        return features_page(results["details"])


def training_samples(subject: Subject, domain: str, held_out: int) -> tuple[Samples, int]:
    """The samples to train on and the number of the first one: the training text, or what is behind the held-out rows.

    Raises ValueError where nothing is left.
    """
    if subject.train is not None and subject[domain].of_run:
        return subject.train, 0
    samples = subject.samples(domain)
    if len(samples) <= held_out:
        raise ValueError(
            f"evals.autoencoder trains on the text of {domain} behind the {held_out} held-out rows, and there is none: "
            "set --tokens or evals.autoencoder.held_out to less, or choose more text"
        )
    return samples, held_out


def inputs_of(batch: Batch, model: Model) -> Batch:
    """The tokens that the model reads: rows of text without their last token, which is only predicted."""
    end = min(model.context, batch.tokens.shape[1] - (1 if batch.real is None or model.causal else 0))
    return Batch(
        batch.tokens[:, :end],
        real=None if batch.real is None else batch.real[:, :end],
        segments=None if batch.segments is None else batch.segments[:, :end],
    )


def real_vectors(model: Model, batch: Batch, layer: int) -> Float[Tensor, "tokens width"]:
    """The stream of a layer at the real tokens of a batch."""
    inputs = inputs_of(batch, model)
    return read_streams(model, inputs)[layer][inputs.is_real].float()


def reconstructed(autoencoder: SparseAutoencoder, stream: Tensor) -> Tensor:
    """A stream as the autoencoder reconstructs it."""
    return autoencoder(stream.flatten(0, 1).float()).view_as(stream).to(stream.dtype)


@torch.no_grad()
def sparse_features(
    model: Model, batch: Batch, layer: int, autoencoder: SparseAutoencoder
) -> Float[Tensor, "tokens features"]:
    """The features of the real tokens of a batch."""
    return autoencoder.encode(real_vectors(model, batch, layer))


@torch.no_grad()
def reconstruction(model: Model, batches: Sequence[Batch], layer: int, autoencoder: SparseAutoencoder) -> Scores:
    """Explained variance, the number of features of a token, and the share of dead features."""
    pieces = [piece for batch in batches for piece in batch.split(1)]
    vectors = [real_vectors(model, piece, layer) for piece in pieces]
    mean = torch.cat(vectors).mean(0)
    errors, variances, counts, active = [], [], [], torch.zeros(len(autoencoder.decoder), device=mean.device) > 0
    for part in vectors:
        features = autoencoder.encode(part)
        errors.append(float((part - autoencoder.decode(features)).square().sum()))
        variances.append(float((part - mean).square().sum()))
        counts.append(float((features > 0).float().sum(1).mean()))
        active = active | (features > 0).any(0)
    unexplained = ratio_score(np.array(variances) - np.array(errors), np.array(variances))
    dead = (~active).double().cpu().numpy()
    return {"explained_variance": unexplained, "l0": mean_score(counts), "dead": proportion_score(dead)}
