"""The evaluation `probes`: accuracy of linear probes by layer, and their selectivity over control tasks.

A probe is a multinomial logistic regression on standardized vectors. It predicts features of the tokens of a text that
need no annotation, and random control tasks with the same classes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt, MinLen
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kleiber.data import TEXT, DataSet
from kleiber.evals import Evaluation, Results, Subject, mean_score, num_layers, proportion_score, read_streams
from kleiber.records import activity
from kleiber.types import Batch, Count, DataPath, Json, Metric, Metrics, Model, NonNegative, Scores, Seed, Tokenizer
from kleiber_topics.interpretability.attention.attention import token_text

if TYPE_CHECKING:
    from altair import TopLevelMixin

ITERATIONS = 100
Feature = Literal["character_class", "next_class", "position_in_word"]
CLASSES = ("letter", "digit", "space", "punctuation", "other")
LONGEST_WORD = 4  # characters since the last space that are told apart


def character_class(text: str) -> int:
    """The number in `CLASSES` of the class of a character."""
    kind = unicodedata.category(text) if len(text) == 1 else "Cn"
    if text.isspace():
        return CLASSES.index("space")
    return {"L": 0, "N": 1, "Z": 2, "P": 3, "S": 3}.get(kind[0], 4)


def classes_of_tokens(texts: Sequence[str]) -> Int[np.ndarray, "time"]:
    """The class of the last character of each token; there is none for the last token, which predicts nothing."""
    return np.array([character_class(text[-1:]) for text in texts[:-1]], dtype=np.int64)


def classes_of_next(texts: Sequence[str]) -> Int[np.ndarray, "time"]:
    """The class of the first character of the next token."""
    return np.array([character_class(text[:1]) for text in texts[1:]], dtype=np.int64)


def positions_in_word(texts: Sequence[str]) -> Int[np.ndarray, "time"]:
    """The characters since the last space at the end of each token, at most `LONGEST_WORD`."""
    positions, since = [], 0
    for text in texts[:-1]:
        for character in text:
            since = 0 if character.isspace() else since + 1
        positions.append(min(since, LONGEST_WORD))
    return np.array(positions, dtype=np.int64)


FEATURES: Mapping[str, Callable[[Sequence[str]], Int[np.ndarray, "time"]]] = {
    "character_class": classes_of_tokens,
    "next_class": classes_of_next,
    "position_in_word": positions_in_word,
}


def token_texts(tokenizer: Tokenizer, ids: Int[np.ndarray, "*axes"]) -> dict[int, str]:
    """The text of each token that occurs; special tokens are a single character that is no letter."""
    return {
        int(i): token_text(tokenizer, int(i)) if tokenizer.token_bytes[i] else "\ufffd" for i in np.unique(ids).tolist()
    }


def control_labels(
    types: Int[np.ndarray, "rows"], labels: Int[np.ndarray, "rows"], seed: int
) -> Int[np.ndarray, "rows"]:
    """A random class for each type of token, drawn from the distribution of the labels.

    A probe can only learn it by memorizing the types (Hewitt & Liang 2019, arXiv:1909.03368, section 2).
    """
    random = np.random.default_rng(seed % 2**32)
    distinct, places = np.unique(types, return_inverse=True)
    return labels[random.integers(0, len(labels), len(distinct))][places]


def fit_probe(
    vectors: Float[Tensor, "rows dim"], labels: Int[Tensor, "rows"], classes: int, penalty: float
) -> Float[Tensor, "weights classes"]:
    """Weights and, in the last row, the biases of the classes.

    They minimize the mean cross-entropy plus penalty / 2 times the sum of the squared weights, without the biases.
    """
    weights = torch.zeros(vectors.shape[1] + 1, classes, dtype=vectors.dtype, device=vectors.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        """The loss, with its gradient."""
        optimizer.zero_grad()
        loss = F.cross_entropy(vectors @ weights[:-1] + weights[-1], labels)
        loss = loss + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportUnknownMemberType]
    return weights.detach()


def correct_on_held_out(
    vectors: Float[Tensor, "rows dim"],
    labels: Int[Tensor, "rows"],
    training: Bool[Tensor, "rows"],
    penalty: float,
) -> Bool[Tensor, "_"]:
    """Whether a probe that is fit to the training items predicts the class of each of the others."""
    fitted = vectors[training]
    mean, std = fitted.mean(0), fitted.std(0)
    scaled = (vectors - mean) / torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
    weights = fit_probe(scaled[training], labels[training], int(labels.max()) + 1, penalty)
    return (scaled[~training] @ weights[:-1] + weights[-1]).argmax(1) == labels[~training]


@dataclass(frozen=True)
class Items:
    """What is probed: tokens, or texts as means over their tokens.

    vectors  at each layer
    types    token of each item; of a text the first one
    texts    number of the text of each item
    labels   class of each item, by feature
    """

    vectors: Sequence[Float[Tensor, "rows dim"]]
    types: Int[np.ndarray, "rows"]
    texts: Int[np.ndarray, "rows"]
    labels: Mapping[str, Int[np.ndarray, "rows"]]


class Probes(Evaluation):
    """Held-out accuracy of logistic regressions on the residual stream of each layer, and of control tasks.

    <feature>/layer<L>/accuracy     share of held-out items whose class is predicted; layer 0 is the embedding
    <feature>/layer<L>/control      the same where each type of token has a random class
    <feature>/layer<L>/selectivity  accuracy less control (Hewitt & Liang 2019, arXiv:1909.03368)
    <feature>/majority              share of the most frequent class among the held-out items

    A table with the columns text and label is probed for its label, with the mean over the tokens of a text. Other text
    is probed token by token for features of its own: the class of its last character (letter, digit, space,
    punctuation, other), that of the next character, and the characters since the last space. Half of the texts train
    the probes, the other half is held out; intervals are over held-out texts.

    features  of tokens; null: all
    label     column of a table that is probed; null: none, tables are probed as text
    texts     of each data set
    length    tokens of a text that are read, at most the context
    layers    that are probed; null: all
    training  share of the texts that train the probes
    penalty   of the squared weights
    data      names or paths of other data; null: that of the run or of the command
    """

    metrics: ClassVar[Metrics] = {
        "{feature}/layer{layer}/accuracy": Metric("accuracy of a probe for {feature} in layer {layer}", "higher"),
        "{feature}/layer{layer}/control": Metric("accuracy of a control task for {feature} in layer {layer}", "none"),
        "{feature}/layer{layer}/selectivity": Metric("selectivity for {feature} in layer {layer}", "higher"),
        "{feature}/majority": Metric("share of the most frequent {feature}", "none"),
    }

    def __init__(
        self,
        features: Annotated[Sequence[Feature], MinLen(1)] | None = None,
        label: str | None = "label",
        texts: Annotated[int, Ge(4)] = 200,
        length: Count = 64,
        layers: Annotated[Sequence[Annotated[int, Ge(0)]], MinLen(1)] | None = None,
        training: Annotated[float, Gt(0), Lt(1)] = 0.5,
        penalty: NonNegative = 0.001,
        seed: Seed = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.features, self.label, self.texts, self.length = features, label, texts, length
        self.layers, self.training, self.penalty, self.seed, self.data = layers, training, penalty, seed, data

    def check(self, model: Model) -> None:
        """Raises ValueError for a layer that the model does not have."""
        last = num_layers(model) - 1
        wrong = [layer for layer in self.layers or () if layer > last]
        if wrong:
            raise ValueError(f"evals.probes.layers={wrong[0]} must be <= {last}, the number of layers of this model")

    def evaluate(self, subject: Subject) -> Results:
        """Probes each data set. Raises ValueError for one of which the held-out half or the other has no item."""
        scores: dict[str, Scores] = {}
        for domain in subject.domains:
            scores[domain] = self.score(subject, self.read(subject, domain), domain)
        return Results(scores)

    def layers_of(self, model: Model) -> list[int]:
        """The layers that are probed."""
        return list(range(num_layers(model))) if self.layers is None else sorted(set(self.layers))

    def read(self, subject: Subject, domain: str) -> Items:
        """The items of a data set."""
        data = subject[domain]
        count = self.texts if subject.limit is None else min(self.texts, max(4, subject.limit))
        if self.label is not None and {TEXT, self.label} <= set(data.columns):
            return self.read_table(subject, data, count)
        samples = subject.samples(domain)
        raw = samples.gather(np.arange(min(count, len(samples))))
        length = min(self.length, subject.model.context)
        raw = raw.columns(length + 1)
        ids = raw.tokens.numpy()
        real = raw.is_real.numpy()
        text_of = token_texts(subject.tokenizer, ids)
        names = list(FEATURES) if self.features is None else list(dict.fromkeys(self.features))
        kept = real[:, :-1] & real[:, 1:]
        by_row = [[text_of[i] for i in row] for row in ids.tolist()]
        labels = {name: np.stack([FEATURES[name](row) for row in by_row])[kept] for name in names}
        rows = np.broadcast_to(np.arange(len(ids))[:, None], kept.shape)[kept]
        inputs = Batch(raw.tokens[:, :-1], real=None if raw.real is None else raw.real[:, :-1])
        mask = torch.from_numpy(kept)
        streams = self.streams(subject, inputs, lambda stream, rows: stream[mask[rows]])
        return Items(streams, ids[:, :-1][kept], rows, labels)

    def read_table(self, subject: Subject, data: DataSet, count: int) -> Items:
        """The texts of a table with labels, each as the mean over its tokens."""
        assert self.label is not None
        rows = data.rows(count)
        length = min(self.length, subject.model.context)
        encoded = [ids[:length] for ids in subject.tokenizer.encode_many([str(row[TEXT]) or " " for row in rows])]
        classes = {label: i for i, label in enumerate(sorted({str(row[self.label]) for row in rows}))}
        labels = np.array([classes[str(row[self.label])] for row in rows], dtype=np.int64)
        longest = max(len(ids) for ids in encoded)
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, ids in enumerate(encoded):
            tokens[row, : len(ids)] = torch.from_numpy(np.asarray(ids, np.int64))
        real = torch.arange(longest) < torch.tensor([len(ids) for ids in encoded])[:, None]

        def pooled(stream: Tensor, rows: slice) -> Tensor:
            weights = real[rows].to(stream)[:, :, None]
            return (stream * weights).sum(1) / weights.sum(1)

        streams = self.streams(subject, Batch(tokens, real=real), pooled)
        return Items(streams, tokens[:, 0].numpy(), np.arange(len(rows)), {self.label: labels})

    def streams(self, subject: Subject, batch: Batch, pick: Callable[[Tensor, slice], Tensor]) -> list[Tensor]:
        """What `pick` takes of the stream of some rows, at each layer that is probed."""
        layers = self.layers_of(subject.model)
        parts: list[list[Tensor]] = [[] for _ in layers]
        for start in range(0, len(batch), subject.rows):
            rows = slice(start, min(start + subject.rows, len(batch)))
            part = batch.map(lambda tensor, rows=rows: tensor[rows]).to(subject.device)
            streams = read_streams(subject.model, part)
            for kept, layer in zip(parts, layers, strict=True):
                kept.append(pick(streams[layer].float().cpu(), rows))
        return [torch.cat(kept) for kept in parts]

    def score(self, subject: Subject, items: Items, domain: str) -> Scores:
        """The scores of each feature and layer."""
        training = self.training_items(items.texts, domain)
        held_out = items.texts[~training.numpy()]
        layers = self.layers_of(subject.model)
        scores: Scores = {}
        with activity(f"probing {domain}", 2 * len(layers) * len(items.labels), "probes") as work:
            for feature, labels in items.labels.items():
                control = control_labels(items.types, labels, self.seed)
                counts = np.bincount(labels[training.numpy()])
                majority = labels[~training.numpy()] == counts.argmax()
                scores[f"{feature}/majority"] = proportion_score(means_of_texts(majority, held_out))
                for layer, vectors in zip(layers, items.vectors, strict=True):
                    accuracy, memorized = (
                        means_of_texts(
                            correct_on_held_out(vectors, torch.from_numpy(task), training, self.penalty).numpy(),
                            held_out,
                        )
                        for task in work.track((labels, control))
                    )
                    scores[f"{feature}/layer{layer}/accuracy"] = proportion_score(accuracy)
                    scores[f"{feature}/layer{layer}/control"] = proportion_score(memorized)
                    scores[f"{feature}/layer{layer}/selectivity"] = mean_score(accuracy - memorized)
        return scores

    def training_items(self, texts: Int[np.ndarray, "rows"], domain: str) -> Bool[Tensor, "rows"]:
        """Whether each item is of a text that trains the probes."""
        count = int(texts.max()) + 1
        order = np.random.default_rng(self.seed % 2**32).permutation(count)
        chosen = torch.from_numpy(np.isin(texts, order[: round(self.training * count)]))
        if not 0 < int(chosen.sum()) < len(chosen):
            raise ValueError(
                f"evals.probes needs texts to train on and others to hold out, and {domain} has {count}: choose other "
                "data, or another evals.probes.training"
            )
        return chosen

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """Accuracy of the probes and of their control tasks by layer."""
        from kleiber_topics.interpretability.probes.figures import figures

        return figures(results)


def means_of_texts(correct: np.ndarray, texts: Int[np.ndarray, "rows"]) -> Float[np.ndarray, "_"]:
    """The mean of each text over its items."""
    _, places, counts = np.unique(texts, return_inverse=True, return_counts=True)
    return np.bincount(places, correct.astype(np.float64)) / counts
