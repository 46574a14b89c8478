"""Losses of single samples of text, from which an interval of the mean follows, and losses in overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleiber.data.mixture import parts_read
from kleiber.data.token_files import ValidationWindows
from kleiber.evals.evaluation import CHUNK, RESAMPLES, Score, Subject, percentile_score
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
    bytes        of the text of the targets of each sample, as its tokens have them; empty where they are not counted
    """

    nats: list[float] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    by_position: Float[np.ndarray, "_"] = field(default_factory=lambda: np.zeros(0))
    counts: Float[np.ndarray, "_"] = field(default_factory=lambda: np.zeros(0))
    bytes: list[float] = field(default_factory=list)

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
        return resampled_ratios(np.array(self.nats), np.array(self.targets))

    def bits_per_byte(self, bytes_per_target: float) -> Float[np.ndarray, "_"]:
        """Loss in bits per byte of text: of all samples first, then of bootstrap resamples of the samples.

        bytes_per_target  mean over all samples, to which `bytes` are scaled, since a lossy tokenizer counts fewer than
                          the text has; where they are not counted, all targets have as many
        """
        counted = np.array(self.bytes if any(self.bytes) else self.targets)
        sizes = counted * (bytes_per_target * sum(self.targets) / counted.sum())
        return resampled_ratios(np.array(self.nats) / math.log(2), sizes)

    def score(self) -> Score:
        """Mean loss per target in nats, with a bootstrap interval over the samples; none for one sample."""
        return resampled_score(self.means(), self.num_targets, len(self.nats))


def resampled_ratios(parts: Float[np.ndarray, "_"], wholes: Float[np.ndarray, "_"]) -> Float[np.ndarray, "_"]:
    """The sum of `parts` over that of `wholes`: of all samples first, then of bootstrap resamples of the samples."""
    random, count = np.random.default_rng(0), len(parts)
    size = max(1, CHUNK // count)
    ratios = [np.array([parts.sum() / wholes.sum()])]
    for start in range(0, RESAMPLES, size):
        chosen = random.integers(count, size=(min(size, RESAMPLES - start), count))
        ratios.append(parts[chosen].sum(1) / wholes[chosen].sum(1))
    return np.concatenate(ratios)


def resampled_score(means: Float[np.ndarray, "_"], targets: int, samples: int) -> Score:
    """The first value with the percentile interval of the others; without an interval for a single sample."""
    if samples < 2:
        return Score(float(means[0]), n=targets)
    return percentile_score(float(means[0]), means[1:], targets)


@torch.inference_mode()
def text_losses(
    model: Model,
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device | str,
    token_bytes: Int[np.ndarray, "vocab"] | None = None,
) -> TextLosses:
    """Losses of held-out samples: of each row for the prediction of the next token, else of each forward pass.

    token_bytes  bytes of each token of the vocabulary, where the targets are the tokens from the second on; None counts
                 no bytes
    """
    losses = TextLosses()
    for batch in batches:
        sizes = [] if token_bytes is None else target_bytes(batch.tokens[:, 1:], target_weights(batch), token_bytes)
        batch = batch.to(device)
        losses.bytes += sizes if isinstance(objective, CLM) or not sizes else [sum(sizes)]
        if isinstance(objective, CLM):
            inputs = batch.columns(-1)
            nats = -log_probs(model(inputs).hidden, model.head, batch.tokens[:, 1:])
            losses.add(nats, target_weights(batch))
        else:
            loss = objective(model, batch)
            losses.nats.append(float(loss.metrics["ce"]))
            losses.targets.append(float(loss.tokens))
    return losses


def target_bytes(
    targets: Int[Tensor, "rows _"], weights: Float[Tensor, "rows _"] | None, token_bytes: Int[np.ndarray, "vocab"]
) -> list[float]:
    """Bytes of the targets of each row, times their weights."""
    sizes = token_bytes[targets.cpu().numpy()]
    return (sizes if weights is None else sizes * weights.cpu().numpy()).sum(1).astype(float).tolist()


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
    model: Model,
    text: ValidationWindows,
    stride: int,
    rows: int,
    device: torch.device | str,
    token_bytes: Int[np.ndarray, "vocab"] | None = None,
) -> TextLosses:
    """Losses of the targets of a text in overlapping windows; a sample is a window. For token_bytes see `text_losses`.

    Each target is predicted from at least text.context - stride tokens before it, unless the text begins there.
    """
    windows = strided_windows(text.num_tokens, text.context, stride)
    losses = TextLosses()
    for start in range(0, len(windows), rows):
        for batch, scored in _equal_widths(windows[start : start + rows], text):
            ids = torch.from_numpy(batch).to(device)
            hidden = model(Batch(ids[:, :-1])).hidden[:, -max(scored) :]
            targets = ids[:, -max(scored) :]
            first = torch.tensor([max(scored) - count for count in scored], device=device)
            weights = (torch.arange(max(scored), device=device) >= first[:, None]).float()
            losses.add(-log_probs(hidden, model.head, targets), weights)
            if token_bytes is not None:
                losses.bytes += target_bytes(targets, weights, token_bytes)
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
