"""Predictions of a law of task scores from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, FiniteFloat, model_validator

from kleiber.studies import (
    POWER,
    Array,
    Law,
    RecordPart,
    TableRecord,
    complete_point,
    decades_outside,
    distance_text,
    find,
    percent,
    predictions,
)
from kleiber.types import Json, NonNegative, Row, format_interval
from kleiber_topics.task_scores.curves import CURVES
from kleiber_topics.task_scores.runs import read_runs

EDGE = 0.01  # relative scores are clipped at this distance from 0 and 1 before their logit is taken


def logit(score: Array, floor: Array | float) -> Array:
    """Returns the logit of a score relative to its floor, clipped away from 0 and 1."""
    share = np.clip((score - floor) / (1 - floor), EDGE, 1 - EDGE)
    return np.log(share / (1 - share))


def law_of(name: str) -> Law:
    """Returns the law of a stage by its name."""
    return CURVES[name] if name in CURVES else find(name)


def evaluate(record: Row, N: Array, D: Array, floor: Array | None) -> tuple[Array, Array, Array]:
    """Returns predicted scores (rows,), refits (draws, rows) and new runs (draws, rows) of a record.

    New runs add the residuals of one run to both stages, and the misfit of an extrapolation.
    """
    rng = np.random.default_rng(0)
    levels = np.full(len(N), record["floor"]) if floor is None and record["floor"] is not None else floor
    residuals, scale = np.array(record["residuals"]).reshape(-1, 2), np.array(record["noise"])
    pair = residuals[rng.integers(len(residuals), size=(len(scale), len(N)))] * scale[:, None, None]
    score = law_of(record["score"]["law"])
    columns = {"N": N, "D": D, "floor": levels}

    def scores(loss: Array | None, params: Array) -> Array:
        inputs = columns | {"loss": loss}
        named = {name: params[:, j : j + 1] for j, name in enumerate(score.params)}
        return np.asarray(score.function(*(inputs[name] for name in score.inputs), **named), dtype=np.float64)

    loss = loss_draws = loss_runs = None
    if record["loss"] is not None:
        law, point = law_of(record["loss"]["law"]), {"N": N, "D": D}
        loss = law.predict(point, np.array([list(record["loss"]["params"].values())]))
        loss_draws = law.predict(point, np.array(record["loss"]["draws"]).reshape(-1, len(law.params)))
        loss_runs = loss_draws * np.exp(pair[:, :, 0])
    params = np.array([list(record["score"]["params"].values())])
    drawn = np.array(record["score"]["draws"]).reshape(-1, len(score.params))
    value = np.broadcast_to(scores(loss, params), (1, len(N)))[0]
    if not len(scale):
        return value, np.zeros((0, len(N))), np.zeros((0, len(N)))
    refits = np.broadcast_to(scores(loss_draws, drawn), (len(scale), len(N)))
    runs = np.broadcast_to(scores(loss_runs, drawn), (len(scale), len(N)))
    bottom = np.minimum(record["score"]["params"].get("floor", 0.0), 1 - EDGE) if levels is None else levels
    far = np.asarray(decades_outside(record["domain"], {"N": N, "D": D, "C": 6 * N * D}))
    away = record["misfit"] * far**POWER * rng.normal(size=runs.shape)
    odds = logit(runs, bottom)
    moved = bottom + (1 - bottom) / (1 + np.exp(-odds - away))
    still = bottom + (1 - bottom) / (1 + np.exp(-odds))
    return value, refits, np.clip(runs + moved - still + pair[:, :, 1], 0.0, 1.0)


def predict_rows(record: Row, frame: pd.DataFrame, roles: Mapping[str, str]) -> tuple[list[Json], Array]:
    """Predicts each row of a table; returns {at, value, lo, hi, decades} of each, and the measured scores or nan.

    lo, hi  prediction interval of a new run; None if the law was fitted without refits
    """
    runs = read_runs(frame, roles, fitted=False)
    value, _, new = evaluate(record, runs.N, runs.D, runs.floor)
    far = decades_outside(record["domain"], {"N": runs.N, "D": runs.D, "C": runs.compute}).tolist()
    at = [{"N": N, "D": D} for N, D in zip(runs.N.tolist(), runs.D.tolist(), strict=True)]
    rows = predictions(at, value, new, record["level"])
    rows = [row | {"decades": decades} for row, decades in zip(rows, far, strict=True)]
    return rows, runs.acc


def predict_point(record: Row, at: Mapping[str, float]) -> Json:
    """Predicts the score at N and D (or C in place of one of them), with the prediction interval of a new run."""
    full = complete_point(at)
    if "N" not in full and {"C", "D"} <= set(full):
        full["N"] = full["C"] / (6 * full["D"])
    unread = [name for name in at if name not in ("N", "D", "C", "floor")]
    missing = [name for name in ("N", "D") if name not in full]
    if unread or missing:
        wrong = f"{unread[0]} is no input" if unread else f"{' and '.join(missing)} missing"
        raise ValueError(f"predict {dict(at)}: {wrong}; a prediction of the law downstream needs N=... D=...")
    wrong = [name for name in ("N", "D") if not 0 < full[name] < np.inf]
    if wrong:
        raise ValueError(f"predict {wrong[0]}={full[wrong[0]]:g} must be a finite number > 0")
    columns = {name: name for name in ("N", "D", "floor") if name in full}
    rows, _ = predict_rows(record, pd.DataFrame({name: [full[name]] for name in columns}), columns)
    return rows[0]


def prediction_lines(record: Row, prediction: Row) -> list[str]:
    """Formats a prediction as a line."""
    at = ", ".join(f"{name}={value:g}" for name, value in prediction["at"].items())
    ends = "no interval" if prediction["lo"] is None else (
        f"{percent(record['level'])} prediction interval of a new run "
        f"{format_interval(prediction['lo'], prediction['hi'], '.3f')}"
    )  # fmt: skip
    return [f"{at}: {prediction['value']:.4f}   {ends}, {distance_text(prediction['decades'])}"]


class StageRecord(RecordPart):
    """One stage of the law: a loss law, or a curve of the score, whose parameters stand in its order."""

    law: str
    params: dict[str, FiniteFloat]
    draws: list[list[FiniteFloat]]

    @model_validator(mode="after")
    def check_law(self) -> StageRecord:
        """Raises ValueError for an unknown law, and for other parameters than it has."""
        names = list(law_of(self.law).params)
        if list(self.params) != names or any(len(row) != len(names) for row in self.draws):
            raise ValueError(f"params and draws of {self.law} must be those of {', '.join(names)}")
        return self


class DownstreamRecord(TableRecord):
    """What a prediction needs of the record."""

    schema_name: Literal["kleiber.downstream/1"] = Field(alias="schema")
    score: StageRecord
    loss: StageRecord | None
    floor: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None
    domain: dict[str, Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    noise: list[NonNegative]
    residuals: list[Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]]
    misfit: NonNegative

    @model_validator(mode="after")
    def check_draws(self) -> DownstreamRecord:
        """Raises ValueError where the stages have other numbers of refits, or the score has no input."""
        stages = [self.score] if self.loss is None else [self.score, self.loss]
        if any(len(stage.draws) != len(self.noise) for stage in stages) or not self.residuals:
            raise ValueError("score, loss and noise must have a refit each, and residuals at least one run")
        inputs = law_of(self.score.law).inputs
        if ("loss" in inputs) != (self.loss is not None) or ("floor" in inputs) != (self.floor is not None):
            raise ValueError(f"the law {self.score.law} of the score needs the inputs {', '.join(inputs)}")
        return self
