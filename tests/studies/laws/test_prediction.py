"""The prediction interval of a new run, computed from a record: its parts, its growth, and refusals."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws import analysis, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.prediction import POWER, check_consistent, distance_text, predict

from .. import ladders

LAW = find("chinchilla")
TOP = {"N": 1e9, "D": 8e10}  # the largest row of the ladder


@pytest.fixture(scope="module")
def record():
    grid = ladders.twenty()
    rows = pd.DataFrame({**grid, "L": ladders.noisy(ladders.loss(**grid), 1, 0.002)})
    loaded = table.load(rows, {}, (), ("N", "D"))
    return analysis.analyze(loaded, LAW, analysis.Options(bootstrap=100, backtest=()))


def at(record, factor=1.0, **options):
    """The prediction at `factor` times the largest row's N and D."""
    return predict(record, LAW, {name: value * factor for name, value in TOP.items()}, **options)


def with_misfit(record, rate):
    return {**record, "misfit": {**record["misfit"], "at_one_decade": rate}}


@pytest.mark.slow
def test_the_band_of_a_run_holds_the_interval_of_the_law(record):
    for N in (1e6, 1e7, 1e8, 1e9, 1e10):
        for D in (1e8, 1e9, 8e10, 1e12):
            answer = predict(record, LAW, {"N": N, "D": D}, 10.0)
            assert answer["run_lo"] < answer["lo"] <= answer["value"] <= answer["hi"] < answer["run_hi"]


def test_the_band_grows_with_the_distance(record):
    answers = [at(record, factor) for factor in (1.0, 3.0, 10.0, 30.0)]
    widths = [np.log(answer["run_hi"] / answer["run_lo"]) for answer in answers]
    assert (np.diff(widths) > 0).all()
    assert [answer["decades"] for answer in answers] == pytest.approx([0, 2 * np.log10(3), 2, 2 * np.log10(30)])


def test_the_misfit_widens_the_band_outside_the_rows_alone_and_never_the_interval(record):
    none, large = with_misfit(record, 0.0), with_misfit(record, 0.2)
    assert at(none) == at(large)
    near, far = at(none, 10.0), at(large, 10.0)
    assert far["run_lo"] < near["run_lo"] and far["run_hi"] > near["run_hi"]
    assert (far["lo"], far["hi"]) == (near["lo"], near["hi"])
    grown = (np.log(row["run_hi"] / row["value"]) for row in (near, far))
    narrow, wide = grown
    assert wide == pytest.approx(np.hypot(narrow, 1.6449 * 0.2 * 2**POWER), rel=1e-3)  # two decades in compute


def test_a_flat_parameter_widens_interval_and_band(record):
    """Values along the flat part of a profile fit the rows as well, so the law may be any of them elsewhere."""
    path = np.array([[entry["value"] for entry in record["params"].values()]] * 2)
    path[:, list(LAW.params).index("E")] *= [0.5, 1.5]
    reached = LAW.predict({name: np.array([10 * value]) for name, value in TOP.items()}, path)[:, 0]
    plain, flat = at({**record, "flat": []}, 10.0), at({**record, "flat": path.tolist()}, 10.0)
    assert flat["value"] == plain["value"]
    assert (flat["lo"], flat["hi"]) == pytest.approx((reached[0], reached[1]))
    assert flat["run_lo"] < min(plain["run_lo"], flat["lo"]) and flat["run_hi"] > max(plain["run_hi"], flat["hi"])
    noise = np.hypot(record["residual_sd"], record["misfit"]["at_one_decade"] * 2**POWER)  # two decades in compute
    ends = np.log([flat["lo"] / flat["run_lo"], flat["run_hi"] / flat["hi"]])
    assert ends == pytest.approx(1.6449 * noise, rel=1e-3)


def test_compute_alone_refuses_a_point_beyond_the_limit(record):
    """N and D lie 1.5 decades outside, C 3: the farthest counts, and the limit is the caller's."""
    answer = at(record, 10**1.5, max_decades=2.9)
    assert answer["decades"] == pytest.approx(3.0) and answer["value"] is None and "run_lo" not in answer
    assert "2.9" in answer["refused"] and answer["farthest"] == "C"
    assert predict(record, LAW, {**TOP, "N": TOP["N"] * 10, "D": TOP["D"] / 10})["farthest"] == "N"
    assert at(record)["farthest"] is None, "inside the rows"
    allowed = at(record, 10**1.5, max_decades=3.1)
    assert allowed["value"] is not None and "refused" not in allowed


def test_the_level_of_the_record_is_that_of_both(record):
    """Of the interval from the draws, and of the misfit in the band."""
    low, high = (at({**with_misfit(record, 0.2), "level": level}, 10.0) for level in (0.5, 0.95))
    assert high["lo"] < low["lo"] < low["hi"] < high["hi"]
    ratio = np.log(high["run_hi"] / high["value"]) / np.log(low["run_hi"] / low["value"])
    assert ratio == pytest.approx(1.95996 / 0.67449, rel=0.05)


def test_tokens_per_parameter_are_no_input_of_a_law_of_both(record):
    with pytest.raises(ValueError, match=r"M is no input of law 'chinchilla'; its inputs are N, D"):
        predict(record, LAW, {"M": 1e6, "D": 2e10})
    assert predict(record, LAW, {**TOP, "M": 80.0})["value"] == at(record)["value"]


def test_a_value_that_contradicts_the_others_is_refused_unless_the_law_counts_it_itself(record):
    consistent = {**TOP, "C": 6 * 1e9 * 8e10, "M": 80.2}
    assert predict(record, LAW, consistent)["value"] == at(record)["value"]
    for name, value in (("M", 500), ("C", 4e19)):
        with pytest.raises(ValueError, match=f"{name}={value:g} contradicts .*remove {name}".replace("+", r"\+")):
            predict(record, LAW, {**TOP, name: value})
    with pytest.raises(ValueError, match="M=500 contradicts"):
        predict(record, LAW, {"N": 1e9, "C": 4.8e20, "M": 500})
    check_consistent({**TOP, "M": 500}, {**TOP, "M": 500}, find("replay_grid_ratio").inputs)


@pytest.mark.parametrize(
    ("decades", "text"),
    [(0.0, "within the fitted range"), (0.7, "5 times beyond"), (1.14, "14 times beyond"), (3.0, "1,000 times beyond")],
)
def test_a_distance_is_told_as_a_factor(decades, text):
    assert distance_text(decades).startswith(text)
