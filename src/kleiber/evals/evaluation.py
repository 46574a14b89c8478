"""The base class of evaluations, the model and data that they read, and the scores that they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from kleiber.data.evaluation_sets import DataSet
from kleiber.data.order import Reading
from kleiber.records.evaluations import LEVEL
from kleiber.types import Json
from kleiber.types.access import DataPath
from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus, HeldOut, Objective, Samples
from kleiber.types.model import Model
from kleiber.types.score import Metrics, Score, Scores
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from altair import TopLevelMixin


RESAMPLES = 2000
CHUNK = 1 << 22  # resampled numbers in memory at once


@dataclass(frozen=True)
class Items:
    """The values of each item of a data set, by which two models can be compared on equal items.

    contents  a text that only equal items have, of each
    values    by metric; the mean of the items is its score
    """

    contents: Sequence[str]
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Results:
    """What an evaluation returns.

    scores   by name of the data set, then by metric
    details  plain data that the figures and the page read, such as matrices; kept in RUN/evals/<name>.json
    items    by name of the data set; empty where scores are of no items, or other models have others
    """

    scores: dict[str, Scores]
    details: Json = field(default_factory=dict)
    items: Mapping[str, Items] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model, and the data that it is evaluated on.

    data       held-out data sets, those that the evaluation accepts
    validation held-out data of the run; empty for a Hugging Face model
    train      training samples of the run; None for a Hugging Face model
    corpus     prepared data of the run; None where the model has none
    tokens     number of target tokens to score per data set; None leaves the number to the evaluation
    limit      number of rows to score per table; None for all of them
    rows       samples per forward pass
    objective  of the run, for its own data; next-token prediction for a Hugging Face model
    language   objective that reads any text: that of the run if it is one, else next-token or masked prediction
    folder     folder of the run; None for a Hugging Face model
    earlier    returns (step, model) for each earlier checkpoint of the run, oldest first
    reading    how far the stage has read `train`; None where that is not known
    """

    model: Model
    tokenizer: Tokenizer
    objective: Objective
    language: Objective
    data: Sequence[DataSet]
    train: Samples | None = None
    validation: Sequence[DataSet] = ()
    tokens: int | None = None
    limit: int | None = None
    rows: int = 16
    device: torch.device | str = "cpu"
    folder: Path | None = None
    earlier: Callable[[], Iterable[tuple[int, Model]]] = tuple
    corpus: Corpus | None = None
    reading: Reading | None = None

    def after(self, steps: int) -> Subject:
        """The subject after so many steps of the stage."""
        return self if self.reading is None else replace(self, reading=replace(self.reading, steps=steps))

    def objective_of(self, domain: str) -> Objective:
        """The objective that reads the samples of a data set."""
        return self.objective if self[domain].of_run else self.language

    def __getitem__(self, domain: str) -> DataSet:
        return next(data for data in self.data if data.name == domain)

    @property
    def domains(self) -> list[str]:
        """Names of the data sets, which are scored separately."""
        return [data.name for data in self.data]

    def samples(self, domain: str, tokens: int | None = None) -> HeldOut:
        """The first samples of a data set, with about `tokens` targets; all of them for None."""
        return self[domain].samples().first(tokens)

    def batches(self, domain: str, tokens: int | None = None) -> Iterator[Batch]:
        """Batches of `samples(domain, tokens)`, the same at every call."""
        return self.batches_of(self.samples(domain, tokens))

    def batches_of(self, samples: HeldOut) -> Iterator[Batch]:
        """Batches of held-out samples, in order."""
        for start in range(0, len(samples), self.rows):
            index = np.arange(start, min(start + self.rows, len(samples)))
            yield samples.gather(index).to(self.device)


class Evaluation:
    """Base class of evaluations: each measures one property of a model on held-out data, and does not train it.

    The arguments of a class are the keys of `evals.<name>`. An evaluation has an argument `data` if it may have data of
    its own: names or paths, as for `kleiber eval --data`; without them it reads those of the command or of the run.

    columns       sets of columns, one of which a table must have to be accepted; empty: the evaluation reads samples of
                  text, as training does
    reads_data    whether it reads held-out data
    reads         what data it reads where `columns` is empty, for errors
    default_data  names of the data that it reads where it has none of its own and accepts none of the others
    causal        whether the model must predict each token from those before it
    metrics       what each of its scores is, by the name of the metric or a pattern such as distinct_{n}
    data_labels   what figures call data that the evaluation makes up, by its name in the scores
    """

    columns: ClassVar[Sequence[Sequence[str]]] = ()
    reads_data: ClassVar[bool] = True
    reads: ClassVar[str] = "text, in a column text"
    default_data: ClassVar[Sequence[str]] = ()
    causal: ClassVar[bool] = False
    metrics: ClassVar[Metrics] = MappingProxyType({})
    data_labels: ClassVar[Mapping[str, str]] = MappingProxyType({})
    data: Sequence[DataPath] | None = None

    def accepts(self, data: DataSet) -> bool:
        """Whether the evaluation can read a data set."""
        if self.columns:
            return any(set(columns) <= set(data.columns) for columns in self.columns)
        return not data.columns or "text" in data.columns

    def check(self, model: Model) -> None:
        """Raises ValueError, before anything is measured, for a model that has not what the evaluation measures."""

    def evaluate(self, subject: Subject) -> Results:
        """Measures the model; the mode and the random state of which the caller restores."""
        raise NotImplementedError

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """Charts of the results, by name.

        results  {"scores": ..., "details": ...} as RUN/evals/<name>.json has them
        folder   of the run, whose logged metrics a chart may show; None for a Hugging Face model
        """
        return {}

    def page(self, results: Json) -> str:
        """HTML of the results that no chart shows, such as colored text, for `kleiber eval --report`; "" for none."""
        return ""


def flatten_numbers(values: Mapping[str, object] | Mapping[int, object], prefix: str = "") -> dict[str, float]:
    """All numbers of nested dictionaries by their path, such as "sensitivity/noise/0.01/flips"; without lists."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def percentile_score(value: float, draws: Sequence[float] | np.ndarray, count: int) -> Score:
    """A value of `count` items with its percentile interval over resamples."""
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, float(lo), float(hi), count)


def mean_score(values: Sequence[float] | Sequence[bool] | np.ndarray) -> Score:
    """The mean of values, one for each item, with a percentile bootstrap interval over the items.

    Equal numbers of items get equal resamples, so metrics of the same items can be compared.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Score(mean, mean, mean, len(values))
    random = np.random.default_rng(0)
    size = max(1, CHUNK // len(values))
    means = np.concatenate(
        [
            values[random.integers(len(values), size=(min(size, RESAMPLES - start), len(values)))].mean(1)
            for start in range(0, RESAMPLES, size)
        ]
    )
    return percentile_score(mean, means, len(values))


def ratio_score(parts: np.ndarray, wholes: np.ndarray) -> Score:
    """The ratio of the means of two values of each item, with a percentile bootstrap interval over the items."""
    value, count = float(parts.mean() / wholes.mean()), len(parts)
    if count < 2:
        return Score(value, n=count)
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    return percentile_score(value, parts[drawn].mean(1) / wholes[drawn].mean(1), count)


def proportion_score(shares: Sequence[float] | Sequence[bool] | np.ndarray) -> Score:
    """The mean of shares from 0 to 1, one for each item, such as whether it is answered right.

    The interval is the exact one of a binomial share (Clopper and Pearson 1934) where all shares are 0 or 1, and that
    of `mean_score` otherwise: a bootstrap of items that are all right would have no width.
    """
    from scipy.special import betaincinv

    if not np.isin(shares, (0, 1)).all():
        return mean_score(shares)
    count, hits = len(shares), int(np.sum(shares))
    tail = (1 - LEVEL) / 2
    lo = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    hi = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return Score(hits / count, lo, hi, count)


def share_difference_score(differences: np.ndarray) -> Score:
    """The mean of differences of two shares, one for each item and from -1 to 1, with the interval of `mean_score`.

    Where all are equal, a bootstrap would have no width: the interval has that of a share which no item shows.
    """
    if np.ptp(differences):
        return mean_score(differences)
    value, unseen = float(differences[0]), proportion_score(np.zeros(len(differences))).hi or 0.0
    return Score(value, max(-1.0, value - unseen), min(1.0, value + unseen), len(differences))
