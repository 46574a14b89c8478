"""Predictions of the law of mixtures: new runs, the best mixture, its honest gain, and records of other sizes."""

import json

import numpy as np
import pytest

from kleiber.studies.laws.table_laws import Settings
from kleiber_topics.mixtures.law import mixture
from kleiber_topics.mixtures.prediction import MixtureRecord, Model, predict_point, predict_rows, read_weights

from .tables import mixtures

ROLES = {"w": "w_*", "loss": "loss_0"}


@pytest.fixture(scope="module")
def record():
    return mixture().fit_table(mixtures(rows=100)[0], ROLES, Settings("ridge", bootstrap=200)) | {"roles": ROLES}


def test_new_runs_are_inside_their_intervals(record):
    rows, measured = predict_rows(record, mixtures(rows=300, seed=0)[0], ROLES)
    assert np.mean([row["lo"] <= loss <= row["hi"] for row, loss in zip(rows, measured, strict=True)]) > 0.85
    rows, measured = predict_rows(record, mixtures(rows=20)[0].drop(columns="loss_0"), ROLES)
    assert np.isnan(measured).all() and sum(rows[0]["at"].values()) == pytest.approx(1)


def test_the_best_mixture_is_better_than_the_mean_of_the_table_and_than_one_domain(record):
    answer = predict_point(record, {})
    assert answer["better"] is True and answer["gain"]["hi"] < 0 and answer["reference"]["name"] == "proportional"
    assert answer["value"] == answer["best"]["loss"]["value"]
    weights = answer["best"]["weights"]
    assert sum(entry["value"] for entry in weights.values()) == pytest.approx(1)
    assert all(0 <= entry["lo"] <= entry["hi"] <= 1 for entry in weights.values())
    single = predict_point(record, {"a": 1.0})
    assert single["reference"]["name"] == "mixture" and single["gain"]["value"] < answer["gain"]["value"]


def test_the_loss_of_a_chosen_mixture_is_corrected_upwards():
    record = mixture().fit_table(mixtures(rows=60, noise=0.3)[0], ROLES, Settings("linear", bootstrap=200))
    model, answer = Model(record), predict_point(record, {})
    best = np.array([[entry["value"] for entry in answer["best"]["weights"].values()]])
    lo, hi = np.quantile(model.refits(best)[:, 0], [0.05, 0.95])
    assert answer["value"] > float(model.mean(best)[0])
    assert answer["lo"] == pytest.approx(lo) and answer["hi"] > hi


@pytest.mark.parametrize(("at", "word"), [({"x": 1.0}, "x must be one of a, b, c, d"), ({"a": 0.5}, "sum to 0.5")])
def test_other_names_and_parts_of_mixtures_are_refused(record, at, word):
    with pytest.raises(ValueError, match=word):
        predict_point(record, at)


def test_rounded_weights_are_divided_by_their_sum():
    frame = mixtures()[0].filter(like="w_") * 1.004
    assert read_weights(frame, frame.columns).sum(1) == pytest.approx(np.ones(48))


@pytest.mark.parametrize(
    "change", [{"params": [[1.0]]}, {"noise": [1.0]}, {"offset": 0.0}, {"proportional": {"a": 1.0}}, {"losses": []}]
)
def test_a_record_of_other_sizes_is_refused(record, change):
    assert MixtureRecord.model_validate_json(json.dumps(record)).form == "ridge"
    with pytest.raises(ValueError):
        MixtureRecord.model_validate_json(json.dumps(record | change))
