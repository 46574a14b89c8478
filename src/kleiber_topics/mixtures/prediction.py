"""Predictions of a law of data mixtures from its record: the loss of a mixture, and the best mixture.

The best mixture of a fit looks better than it is, since it was chosen by the same fit. So each refit chooses its own
mixture, and the error of what it says of this mixture, against the fit that the refits were drawn from, is subtracted
from the estimate (basic bootstrap). Where one mixture is clearly the best, there is less luck than the refits have: the
intervals of its loss and gain also contain those of the chosen mixture without a correction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, FiniteFloat, model_validator

from kleiber.studies import (
    Array,
    TableRecord,
    check_range,
    interval,
    interval_ends,
    numbers,
    percent,
    predictions,
    required,
    row_of,
)
from kleiber.types import Json, NonNegative, Row, format_interval
from kleiber_topics.mixtures.forms import Form, best_mixtures

SUM = 0.01  # largest difference of the sum of weights from 1, by their rounding


def read_weights(frame: pd.DataFrame, columns: Iterable[str]) -> Array:
    """Returns the weights (rows, domains), divided by their sums. Raises ValueError, with row and column, where they
    are negative or do not sum to 1."""
    names = [required(frame, {"w": name}, "w") for name in columns]
    weights = np.column_stack([numbers(frame, name) for name in names])
    for name, column in zip(names, weights.T, strict=True):
        check_range(frame, name, column, "a weight must be >= 0", column >= 0)
    total = weights.sum(1)
    if (wrong := np.abs(total - 1) > SUM).any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"the weights in {row_of(frame, row)}, columns {names[0]!r} to {names[-1]!r}, must sum to 1, but they sum "
            f"to {total[row]:.4g}: correct the row, or leave it out with --where"
        )
    return weights / total[:, None]


def design(frame: pd.DataFrame, roles: Mapping[str, str], weights: Array, extra: Iterable[str]) -> Array:
    """Returns the inputs (rows, columns) of a form: the weights, and the logs of N and D where the law has them."""
    columns = [weights]
    for role in extra:
        column = numbers(frame, required(frame, roles, role))
        check_range(frame, roles.get(role, role), column, f"{role} must be > 0", column > 0)
        columns.append(np.log(column)[:, None])
    return np.concatenate(columns, axis=1)


class Model:
    """The fitted form of a record, with its refits."""

    def __init__(self, record: Row) -> None:
        self.form = Form(record["form"], len(record["columns"]), record["offset"], record["penalty"])
        self.params = np.array(record["params"])
        self.draws = np.array(record["draws"]).reshape(-1, *self.params.shape)
        self.noise = np.array(record["noise"])
        self.residuals, self.level = np.array(record["residuals"]), record["level"]

    def mean(self, inputs: Array) -> Array:
        """Predicts the mean loss, (rows,)."""
        return self.form.predict(self.params, inputs).mean(0)

    def refits(self, inputs: Array) -> Array:
        """Predicts the mean loss with each refit, (draws, rows)."""
        return self.form.predict(self.draws, inputs[None, None]).mean(1) if len(self.draws) else self.none(inputs)

    def none(self, inputs: Array) -> Array:
        return np.zeros((0, len(inputs)))

    def runs(self, inputs: Array) -> Array:
        """Predicts the mean loss of new runs with each refit, (draws, rows)."""
        refits = self.refits(inputs)
        drawn = np.random.default_rng(0).integers(len(self.residuals), size=refits.shape)
        return refits + self.residuals[drawn] * self.noise[:, None] if len(refits) else refits


def predict_rows(record: Row, frame: pd.DataFrame, roles: Mapping[str, str]) -> tuple[list[Json], Array]:
    """Predicts each row of a table; returns {at, value, lo, hi} of each, and the measured mean losses or nan.

    lo, hi  prediction interval of a new run; None if the law was fitted without refits
    """
    weights = read_weights(frame, record["columns"].values())
    inputs = design(frame, roles, weights, record["inputs"])
    model = Model(record)
    value, runs = model.mean(inputs), model.runs(inputs)
    at = [dict(zip(record["columns"], mixture.tolist(), strict=True)) for mixture in weights]
    rows = predictions(at, value, runs, record["level"])
    pattern = roles.get("loss", "loss")
    losses = record["losses"] if "*" in pattern else [pattern]
    if any(name not in frame.columns for name in losses):
        return rows, np.full(len(frame), np.nan)
    return rows, np.mean([numbers(frame, name) for name in losses], axis=0)


def predict_point(record: Row, at: Mapping[str, float]) -> Json:
    """Returns the best mixture, its loss and its gain over another mixture, with intervals.

    at  weights of the mixture to compare with, by domain (default: the mean of the table), and N and D where the law
        has them (default: the largest of the table)

    value, lo, hi of the answer are the loss of the best mixture with the confidence interval of the law. `better` is
    True or False where the interval of the gain is below or above 0, else None. Raises ValueError for other names and
    for weights that are no mixture.
    """
    names = list(record["columns"])
    if unread := [name for name in at if name not in (*names, *record["inputs"])]:
        allowed = ", ".join([*names, *record["inputs"]])
        raise ValueError(f"predict {unread[0]}={at[unread[0]]:g}: {unread[0]} must be one of {allowed}")
    mapped = any(name in at for name in names)
    frame = pd.DataFrame({name: [at.get(name, 0.0)] if mapped else [record["proportional"][name]] for name in names})
    other = read_weights(frame, names)
    further = {name: at.get(name, largest) for name, largest in record["inputs"].items()}
    if wrong := [name for name, value in further.items() if not 0 < value < np.inf]:
        raise ValueError(f"predict {wrong[0]}={further[wrong[0]]:g} must be a finite number > 0")
    logs = np.log(np.array([list(further.values())])).reshape(1, -1)
    model = Model(record)
    mixtures = best_mixtures(model.form, np.concatenate([model.params[None], model.draws]))
    points = np.concatenate([mixtures, other])
    inputs = np.concatenate([points, np.repeat(logs, len(points), axis=0)], axis=1)
    truth, refits = model.mean(inputs), model.refits(inputs)
    chosen = refits[np.arange(len(refits)), np.arange(1, len(refits) + 1)]
    errors = chosen - truth[1:-1]
    gains = errors - (refits[:, -1] - truth[-1])
    loss = _corrected(float(truth[0]), errors, refits[:, 0], record["level"])
    gain = _corrected(float(truth[0] - truth[-1]), gains, refits[:, 0] - refits[:, -1], record["level"])
    ends = [interval_ends(mixtures[1:, j], record["level"]) for j in range(len(names))]
    weights = {name: {"value": float(mixtures[0, j]), **ends[j]} for j, name in enumerate(names)}
    certain = gain["lo"] is not None and (gain["hi"] < 0 or gain["lo"] > 0)
    reference = {
        "name": "mixture" if mapped else "proportional", "weights": dict(zip(names, other[0].tolist(), strict=True)),
        "loss": {"value": float(truth[-1]), **interval_ends(refits[:, -1], record["level"])},
    }  # fmt: skip
    return {"at": dict(at), **loss, "best": {"weights": weights, "loss": loss}, "reference": reference, "gain": gain,
            "better": bool(gain["hi"] < 0) if certain else None}  # fmt: skip


def _corrected(value: float, errors: Array, refits: Array, level: float) -> Json:
    """Returns an estimate less the median error of the refits, with the interval that the module describes.

    errors  of what each refit says of the mixture that it chooses
    refits  what each refit says of the mixture that the fit chose
    """
    if not len(errors):
        return {"value": value, "lo": None, "hi": None}
    ends = [*(value - interval(errors, level)[end] for end in (1, 0)), *interval(refits, level)]
    return {"value": value - float(np.median(errors)), "lo": float(min(ends)), "hi": float(max(ends))}


def prediction_lines(record: Row, prediction: Row) -> list[str]:
    """Formats a prediction: that of a row of a table as a line, the best mixture as a table."""
    level = percent(record["level"])

    def ends(entry: Row, form: str = ".4f") -> str:
        text = "no interval" if entry["lo"] is None else f"{level} {format_interval(entry['lo'], entry['hi'], form)}"
        return f"{entry['value']:{form}}   {text}"

    if "best" not in prediction:
        return [f"loss {ends(prediction)}"]
    best, reference = prediction["best"], prediction["reference"]
    out = [f"best mixture: loss {ends(best['loss'])}"]
    out += [f"  {name:<20} {ends(entry, '.3f')}" for name, entry in best["weights"].items()]
    against = "the mean of the table" if reference["name"] == "proportional" else "the given mixture"
    verdict = {True: "the best mixture is better", False: "the best mixture is worse", None: "not decided"}
    return [*out, f"gain over {against}: {ends(prediction['gain'])}: {verdict[prediction['better']]}"]


class MixtureRecord(TableRecord):
    """What a prediction needs of the record."""

    schema_name: Literal["kleiber.mixture/1"] = Field(alias="schema")
    form: Literal["ridge", "exponential", "linear"]
    columns: dict[str, str]
    losses: Annotated[list[str], Field(min_length=1)]
    inputs: dict[Literal["N", "D"], FiniteFloat]
    offset: NonNegative
    penalty: NonNegative
    params: list[list[FiniteFloat]]
    draws: list[list[list[FiniteFloat]]]
    noise: list[NonNegative]
    residuals: Annotated[list[FiniteFloat], Field(min_length=1)]
    proportional: dict[str, NonNegative]

    @model_validator(mode="after")
    def check_sizes(self) -> MixtureRecord:
        """Raises ValueError for parameters of other numbers of losses and domains, and draws without noise."""
        count = 1 + len(self.columns) + len(self.inputs)
        for fitted in (self.params, *self.draws):
            if len(fitted) != len(self.losses) or any(len(row) != count for row in fitted):
                raise ValueError(f"params and draws must have {count} numbers for each of {', '.join(self.losses)}")
        if len(self.noise) != len(self.draws) or set(self.proportional) != set(self.columns):
            raise ValueError("noise must have a number for each draw, and proportional a weight for each domain")
        if self.form == "ridge" and not self.offset > 0:
            raise ValueError("offset must be > 0 for the form ridge")
        return self
