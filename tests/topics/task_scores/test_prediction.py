"""Predictions of the law of task scores: intervals of new runs grow outside the runs, and records are checked."""

import json

import numpy as np
import pytest

from kleiber.studies.laws.table_laws import Settings
from kleiber_topics.task_scores.law import downstream
from kleiber_topics.task_scores.prediction import DownstreamRecord, logit, predict_point, predict_rows

from .tables import scores

ROLES = {"floor": "0.25"}


@pytest.fixture(scope="module", params=["chained", "direct"])
def record(request):
    return downstream().fit_table(scores(), ROLES, Settings(route=request.param, bootstrap=200)) | {"roles": ROLES}


def test_a_point_equals_the_row_of_a_table(record):
    frame = scores()
    rows, measured = predict_rows(record, frame, ROLES)
    assert np.mean([row["lo"] <= score <= row["hi"] for row, score in zip(rows, measured, strict=True)]) >= 0.8
    point = predict_point(record, {"N": frame["N"][0], "D": frame["D"][0]})
    assert point["value"] == pytest.approx(rows[0]["value"])
    by_compute = predict_point(record, {"D": frame["D"][0], "C": 6 * frame["N"][0] * frame["D"][0]})
    assert by_compute["value"] == pytest.approx(point["value"])


def test_intervals_widen_with_the_distance_and_stay_between_0_and_1(record):
    near, far = (predict_point(record, {"N": N, "D": 80 * N}) for N in (1.5e9, 5e10))
    assert far["decades"] > 2.9 and far["hi"] - far["lo"] > near["hi"] - near["lo"]
    assert 0 <= far["lo"] <= far["value"] <= far["hi"] <= 1


def test_without_refits_there_is_no_interval():
    record = downstream().fit_table(scores(), ROLES, Settings(bootstrap=0))
    assert predict_point(record, {"N": 1e9, "D": 2e10})["lo"] is None


@pytest.mark.parametrize("at", [{"N": 1e9}, {"N": 1e9, "D": 1e10, "X": 2.0}, {"N": -1.0, "D": 1e10}])
def test_other_points_are_refused(record, at):
    with pytest.raises(ValueError, match="predict"):
        predict_point(record, at)


def test_logits_are_relative_to_the_floor():
    assert logit(np.array([0.625, 0.25, 1.0]), 0.25) == pytest.approx([0.0, np.log(0.01 / 0.99), np.log(99)])


@pytest.mark.parametrize(
    "change",
    [{"noise": [1.0]}, {"residuals": []}, {"floor": None}, {"level": 2.0}, {"misfit": -1.0}, {"score": {"law": "x"}}],
)
def test_a_damaged_record_is_refused(record, change):
    assert DownstreamRecord.model_validate_json(json.dumps(record)).score.law == record["score"]["law"]
    with pytest.raises(ValueError):
        DownstreamRecord.model_validate_json(json.dumps(record | change))


def test_stages_have_the_parameters_of_their_law(record):
    stage = record["score"]
    for wrong in (stage | {"params": {"A": 1.0}}, stage | {"draws": [[1.0]] * 200}, stage | {"law": "chinchilla"}):
        with pytest.raises(ValueError):
            DownstreamRecord.model_validate_json(json.dumps(record | {"score": wrong}))
