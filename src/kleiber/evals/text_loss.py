"""Losses of single samples of text, from which an interval of the mean follows, and losses in overlapping windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.data.mixture import parts_read
from kleiber.data.token_files import ValidationWindows
from kleiber.evals.evaluation import CHUNK, LEVEL, RESAMPLES, Score, Subject
from kleiber.nn.loss import log_probs, target_weights
from kleiber.objectives.clm import CLM
from kleiber.types.batch import Batch
from kleiber.types.contracts import Objective, Samples
from kleiber.types.model import Model


@dataclass
class TextLosses:
    """Losses of samples.

    nats         of the targets of each sample together
    targets      number (or weight) of targets of each sample
    by_position  sums of the losses of the targets at position 1, 2, ... of their rows; empty where not known
    counts       number (or weight) of the targets at each of these positions
    """

    nats: list[float] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    by_position: Float[np.ndarray, "_"] = field(default_factory=lambda: np.zeros(0))
    counts: Float[np.ndarray, "_"] = field(default_factory=lambda: np.zeros(0))

    def add(self, losses: Float[Tensor, "rows _"], weights: Float[Tensor, "rows _"] | None) -> None:
        """Adds rows of losses; a weight of 0 leaves a target out."""
        values = losses.double().cpu()
        w = torch.ones_like(values) if weights is None else weights.double().cpu()
        self.nats += (values * w).sum(1).tolist()
        self.targets += w.sum(1).tolist()
        new_positions = max(0, values.shape[1] - len(self.counts))
        self.by_position = np.pad(self.by_position, (0, new_positions))
        self.counts = np.pad(self.counts, (0, new_positions))
        self.by_position[: values.shape[1]] += (values * w).sum(0).numpy()
        self.counts[: values.shape[1]] += w.sum(0).numpy()

    @property
    def num_targets(self) -> int:
        return round(sum(self.targets))

    def means(self) -> Float[np.ndarray, "_"]:
        """Mean loss per target in nats: of all samples first, then of bootstrap resamples of the samples."""
        nats, targets = np.array(self.nats), np.array(self.targets)
        random, count = np.random.default_rng(0), len(nats)
        size = max(1, CHUNK // count)
        means = [np.array([nats.sum() / targets.sum()])]
        for start in range(0, RESAMPLES, size):
            chosen = random.integers(count, size=(min(size, RESAMPLES - start), count))
            means.append(nats[chosen].sum(1) / targets[chosen].sum(1))
        return np.concatenate(means)

    def score(self, scale: float = 1.0) -> Score:
        """Mean loss per target, times `scale`, with a bootstrap interval over the samples; none for one sample."""
        return resampled_score(self.means() * scale, self.num_targets, len(self.nats))


def resampled_score(means: Float[np.ndarray, "_"], targets: int, samples: int) -> Score:
    """The first value with the percentile interval of the others; without an interval for a single sample."""
    if samples < 2:
        return Score(float(means[0]), n=targets)
    lo, hi = np.quantile(means[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(float(means[0]), float(lo), float(hi), targets)


@torch.inference_mode()
def text_losses(model: Model, objective: Objective, batches: Iterable[Batch], device: torch.device | str) -> TextLosses:
    """Losses of held-out samples: of each row for the prediction of the next token, else of each forward pass."""
    losses = TextLosses()
    for batch in batches:
        batch = batch.to(device)
        if isinstance(objective, CLM):
            inputs = batch.map(lambda tensor: tensor[:, :-1] if tensor.dim() == 2 else tensor)
            nats = -log_probs(model(inputs).hidden, model.head, batch.tokens[:, 1:])
            losses.add(nats, target_weights(batch))
        else:
            loss = objective(model, batch)
            losses.nats.append(float(loss.metrics["ce"]))
            losses.targets.append(float(loss.tokens))
    return losses


def strided_windows(targets: int, context: int, stride: int) -> list[tuple[int, int]]:
    """The windows that score the targets 1 to `targets` of a text: (position of the last target, number of targets).

    The first window scores all its targets. Each further one ends `stride` targets later, or with the text, and scores
    those that the window before it has not.
    """
    ends = [min(context, targets)]
    while ends[-1] < targets:
        ends.append(min(ends[-1] + stride, targets))
    return [(end, end - start) for start, end in zip([0, *ends], ends, strict=False)]


@torch.inference_mode()
def strided_losses(
    model: Model, text: ValidationWindows, stride: int, rows: int, device: torch.device | str
) -> TextLosses:
    """Losses of the targets of a text in overlapping windows; a sample is a window.

    Each target is predicted from at least text.context - stride tokens before it, unless the text begins there.
    """
    windows = strided_windows(text.num_tokens, text.context, stride)
    losses = TextLosses()
    for start in range(0, len(windows), rows):
        for batch, scored in _equal_widths(windows[start : start + rows], text):
            ids = torch.from_numpy(batch).to(device)
            hidden = model(Batch(ids[:, :-1])).hidden[:, -max(scored) :]
            nats = -log_probs(hidden, model.head, ids[:, -max(scored) :])
            first = torch.tensor([max(scored) - count for count in scored], device=device)
            losses.add(nats, (torch.arange(max(scored), device=device) >= first[:, None]).float())
    return losses


def _equal_widths(
    windows: list[tuple[int, int]], text: ValidationWindows
) -> Iterator[tuple[Int[np.ndarray, "rows time"], list[int]]]:
    """The ids of windows, and how many targets each scores; the first window may score more than the others."""
    parts = [windows[:1], windows[1:]] if windows[0][1] != windows[-1][1] else [windows]
    for part in filter(None, parts):
        ids = [text.file.ids[max(0, end - text.context) : end + 1].astype(np.int64) for end, _ in part]
        yield np.stack(ids), [count for _, count in part]


def spread_samples(samples: Samples, targets: int) -> Int[np.ndarray, "_"]:
    """Numbers of samples at equal distances that have about this number of targets together."""
    count = min(len(samples), max(1, round(targets * len(samples) / samples.num_tokens)))
    return np.arange(count) * len(samples) // count


def training_parts(subject: Subject) -> dict[str, Samples]:
    """The training samples that the stage has read, by the name of the validation data of the same text.

    Parts of which it has read nothing are left out. Empty without a run, and where the parts cannot be told apart.
    """
    if subject.train is None or not len(subject.train):
        return {}
    parts = parts_read(subject.train, subject.reading)
    if len(parts) != len(subject.validation):
        return {}
    return {data.name: part for data, part in zip(subject.validation, parts, strict=True) if len(part)}
