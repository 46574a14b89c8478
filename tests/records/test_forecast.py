"""Forecasts on disk: found by the hash of the run, and other files of the name are ignored."""

import json

import pytest

from kleiber.records.forecast import SCHEMA, find_forecast

FORECAST = {
    "schema": SCHEMA, "config_hash": "0123abcd", "written": "2026-01-01T00:00:00+00:00",
    "predicted": {"value": 2.0, "lo": 1.9, "hi": 2.1, "level": 0.9, "decades": 0.0}, "params": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["forecast.json", "forecast-2.json"])
def test_a_forecast_is_found_by_the_hash_of_its_run(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(FORECAST))
    forecast = find_forecast("0123abcdef", [tmp_path / "none", tmp_path])
    assert forecast is not None and forecast.predicted.value == 2.0
    assert forecast.contains(1.9) and forecast.contains(2.1) and not forecast.contains(2.2)
    assert forecast.precedes("2026-01-01T00:00:01+00:00") and not forecast.precedes("2025-12-31T23:59:59+00:00")
    assert find_forecast("ffffffff", [tmp_path]) is None
    (tmp_path / name).write_text(json.dumps({**FORECAST, "written": "2026-01-01T00:00:00.7+00:00"}))
    within = find_forecast("0123abcdef", [tmp_path])
    assert within is not None and within.precedes("2026-01-01T00:00:00+00:00"), "a start is recorded to the second"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", json.dumps({**FORECAST, "schema": "other"}), json.dumps({**FORECAST, "predicted": {}})]
)
def test_a_file_that_is_no_forecast_is_ignored(tmp_path, text):
    (tmp_path / "forecast.json").write_text(text)
    (tmp_path / "forecast-dir.json").mkdir()
    assert find_forecast("0123abcd", [tmp_path]) is None
