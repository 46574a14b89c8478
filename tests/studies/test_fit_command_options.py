"""The options `--level`, `--fix`, `--at` and `--sigma` of `kleiber fit`, and refused combinations."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.prediction import fitted_values
from kleiber.studies.laws.problem import rho

from . import ladders
from .test_fit_command import csv, fit, run, valid  # noqa: F401  (csv is a fixture)

POINT = "E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28"
PARAMS = {name: float(value) for name, value in (item.split("=") for item in POINT.split(","))}


@pytest.fixture
def record(csv, tmp_path):  # noqa: F811
    def fitted(*words, code=0):
        out = tmp_path / "laws.json"
        done = fit(csv, "--json", out, *words)
        assert done.exit_code == code, done.output
        return valid(out), done.output, out

    return fitted


@pytest.mark.slow
def test_the_level_reaches_every_interval_and_the_printed_percent(record):
    words = ("--backtest", "1e19", "--predict", "N=2e9,D=4e10")
    wide, text, _ = record("--level", "0.95", *words)
    narrow, _, _ = record("--level", "0.5", *words)
    assert (wide["level"], narrow["level"]) == (0.95, 0.5)
    pairs = [(wide[kind][name], narrow[kind][name]) for kind in ("params", "derived") for name in narrow[kind]]
    pairs += list(
        zip(wide["predictions"] + wide["approaches"], narrow["predictions"] + narrow["approaches"], strict=True)
    )
    for exponent, other in pairs:
        assert exponent["lo"] < other["lo"] < other["hi"] < exponent["hi"]
    assert wide["backtests"][0]["half_width"] > 2 * narrow["backtests"][0]["half_width"]
    assert "95%" in text and "90%" not in text


@pytest.mark.slow
def test_a_fixed_parameter_is_held_in_a_law_of_the_others(record):
    free, _, _ = record("--bootstrap", 400)
    held, text, out = record("--fix", "E=1.69", "--predict", "N=2B,D=40B", "--bootstrap", 400)
    assert held["params"]["E"] == {"value": 1.69, "lo": None, "hi": None, "identified": True, "fixed": True}
    assert "E          1.69   fixed" in text and len(held["cov"]) == 4
    assert fitted_values(held).shape == (1, 4)
    assert held["objective"]["value"] > free["objective"]["value"]
    width = [row["params"]["alpha"]["hi"] - row["params"]["alpha"]["lo"] for row in (free, held)]
    assert width[1] < width[0], "what is known of E narrows the rest"
    spread = [row["derived"]["a_opt"]["hi"] - row["derived"]["a_opt"]["lo"] for row in (free, held)]
    assert spread[1] < spread[0] and held["allocation"]
    again = run("predict", out, "N=2B", "D=40B")
    assert again.exit_code == 0 and f"{held['predictions'][0]['value']:.6g}" in again.output
    combined, _, _ = record("--fix", "alpha=0.34", "--fix", "beta=0.28")
    assert combined["derived"]["a_opt"]["value"] == pytest.approx(0.28 / 0.62) and len(combined["cov"]) == 3


@pytest.mark.slow
def test_the_objective_at_given_parameters_is_the_fits_own(record, csv):  # noqa: F811
    result, text, _ = record("--at", POINT)
    rows = pd.read_csv(csv)
    residuals = np.log(ladders.loss(rows["params"].to_numpy(), rows["tokens"].to_numpy()) / rows["loss"].to_numpy())
    assert result["at"]["params"] == PARAMS and "at E=1.69" in text
    assert result["at"]["value"] == pytest.approx(rho(residuals, "huber", 1e-3).sum(), rel=1e-9)
    assert result["at"]["residual_rms"] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-9)
    assert result["at"]["value"] > result["objective"]["value"]
    best = ",".join(f"{name}={row['value']!r}" for name, row in result["params"].items())
    again, _, _ = record("--at", best, "--fix", f"E={result['params']['E']['value']!r}")
    assert again["at"]["value"] == pytest.approx(result["objective"]["value"], rel=1e-9)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--fix", "F=1"), "has no parameter 'F'"),
        (("--fix", "alfa=1"), "did you mean 'alpha'"),
        (("--fix", "E=-1"), "E of law 'chinchilla' must be finite and >= 0"),
        (("--fix", "alpha=7"), "alpha of law 'chinchilla' must be in [0.05, 1.6]"),
        (("--fix", "E"), "NAME=NUMBER"),
        (("--fix", "E=1", "--fix", "E=2"), "contradicts E=1"),
        ([w for item in POINT.split(",") for w in ("--fix", item)], "--fix E, A, B, alpha, beta"),
        (("--fix", "E=1.7", "--rank"), "--fix E"),
        (("--at", "E=1.7"), "A, B, alpha, beta"),
        (("--at", f"{POINT},F=2"), "it also sets F"),
        (("--at", POINT.replace("1.69", "-90")), "not finite on every row"),
        (("--sigma", "sd"), "no column 'sd'"),
        (("--sigma", "set"), "is not a number"),
        (("--sigma", "zero"), "of row 3"),
        (("--level", "0.99"), "at least 200 for 99%"),
    ],
)
def test_an_option_that_cannot_be_honored_exits_2_and_says_why(csv, words, named):  # noqa: F811
    frame = pd.read_csv(csv)
    frame.assign(zero=np.where(np.arange(20) == 3, 0.0, 0.01)).to_csv(csv, index=False)
    done = fit(csv, *words)
    assert done.exit_code == 2 and named in done.output.replace("\n", " "), done.output


@pytest.mark.slow
def test_sigma_weighs_the_rows_of_the_command_and_is_recorded(record, csv):  # noqa: F811
    frame = pd.read_csv(csv)
    frame["loss"] *= np.where(np.arange(20) == 7, 1.05, 1.0)
    frame.assign(se=np.where(np.arange(20) == 7, 0.3, 0.01)).to_csv(csv, index=False)
    blind, _, _ = record("--backtest", "1e19")
    weighted, printed, _ = record("--sigma", "se", "--backtest", "1e19", "--rank", "--at", POINT)
    assert (blind["objective"]["sigma"], weighted["objective"]["sigma"]) == (
        None,
        "se",
    ) and "standard errors se" in printed
    gap = [abs(row["params"]["alpha"]["value"] - 0.34) for row in (blind, weighted)]
    assert gap[1] < gap[0] and weighted["at"]["value"] < 1.0
    assert [row["row"] for row in blind["suspects"]] == [7] and weighted["suspects"] == []
    assert weighted["backtests"][0]["mare"] != blind["backtests"][0]["mare"]
