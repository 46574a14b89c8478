"""What `--level`, `--fix`, `--at` and `--sigma` of `kleiber fit` do, and the combinations that are refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.allocation import regress, vertices
from kleiber.studies.laws.analysis import Options
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit as fit_law
from kleiber.studies.laws.noise_model import NoiseModel, fit_with_noise
from kleiber.studies.laws.prediction import fitted_values
from kleiber.studies.laws.problem import relative_sigma, rho
from kleiber.studies.laws.table import load
from kleiber.studies.laws.uncertainty import Draws, interval
from kleiber.studies.laws.verdicts import lack_of_fit

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


def test_the_level_reaches_every_interval_and_the_printed_percent(record):
    words = ("--backtest", "1e19", "--predict", "N=2e9,D=4e10")
    wide, told, _ = record("--level", "0.95", *words)
    narrow, _, _ = record("--level", "0.5", *words)
    assert (wide["level"], narrow["level"]) == (0.95, 0.5)
    pairs = [(wide[kind][name], narrow[kind][name]) for kind in ("params", "derived") for name in narrow[kind]]
    pairs += list(
        zip(wide["predictions"] + wide["approaches"], narrow["predictions"] + narrow["approaches"], strict=True)
    )
    for one, other in pairs:
        assert one["lo"] < other["lo"] < other["hi"] < one["hi"]
    assert wide["backtests"][0]["half_width"] > 2 * narrow["backtests"][0]["half_width"]
    assert "95%" in told and "90%" not in told


def test_a_vertex_has_an_interval_of_the_asked_level():
    C = np.repeat(np.geomspace(1e18, 1e20, 4), 6)
    N = np.sqrt(C / 6) * np.tile(np.geomspace(0.03, 0.4, 6), 4)
    D = C / (6 * N)
    points = vertices(N, D, C, ladders.noisy(ladders.loss(N, D), 0, 0.001))
    wide, narrow = (regress("2", points, level) for level in (0.99, 0.9))
    assert wide is not None and narrow is not None
    width = [np.log(one.points[0]["hi"] / one.points[0]["lo"]) for one in (wide, narrow)]
    assert width[0] / width[1] == pytest.approx(2.5758 / 1.6449, rel=1e-4)


def test_a_fixed_parameter_is_held_in_a_law_of_the_others(record):
    free, _, _ = record("--bootstrap", 400)
    held, told, out = record("--fix", "E=1.69", "--predict", "N=2B,D=40B", "--bootstrap", 400)
    assert held["params"]["E"] == {"value": 1.69, "lo": None, "hi": None, "identified": True, "fixed": True}
    assert "E          1.69   fixed" in told and len(held["cov"]) == 4
    assert fitted_values(held).shape == (1, 4)
    assert held["objective"]["value"] > free["objective"]["value"]
    width = [one["params"]["alpha"]["hi"] - one["params"]["alpha"]["lo"] for one in (free, held)]
    assert width[1] < width[0], "what is known of E narrows the rest"
    spread = [one["derived"]["a_opt"]["hi"] - one["derived"]["a_opt"]["lo"] for one in (free, held)]
    assert spread[1] < spread[0] and held["allocation"]
    again = run("predict", out, "N=2B", "D=40B")
    assert again.exit_code == 0 and f"{held['predictions'][0]['value']:.6g}" in again.output
    both, _, _ = record("--fix", "alpha=0.34", "--fix", "beta=0.28")
    assert both["derived"]["a_opt"]["value"] == pytest.approx(0.28 / 0.62) and len(both["cov"]) == 3


def test_a_parameter_fixed_where_the_fit_ends_changes_no_other():
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    free = fit_law("chinchilla", rows, L)
    held = fit_law(find("chinchilla").fix({"E": free.params["E"]}), rows, L)
    assert held.value == pytest.approx(free.value, rel=1e-9)
    assert held.params["alpha"] == pytest.approx(free.params["alpha"], rel=1e-6)
    assert held.problem.num_params == 4 and held.noise < free.noise, "one degree of freedom more"


def test_the_objective_at_given_parameters_is_the_fits_own(record, csv):  # noqa: F811
    found, told, _ = record("--at", POINT)
    rows = pd.read_csv(csv)
    residuals = np.log(ladders.loss(rows["params"].to_numpy(), rows["tokens"].to_numpy()) / rows["loss"].to_numpy())
    assert found["at"]["params"] == PARAMS and "at E=1.69" in told
    assert found["at"]["value"] == pytest.approx(rho(residuals, "huber", 1e-3).sum(), rel=1e-9)
    assert found["at"]["residual_rms"] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-9)
    assert found["at"]["value"] > found["objective"]["value"]
    best = ",".join(f"{name}={one['value']!r}" for name, one in found["params"].items())
    again, _, _ = record("--at", best, "--fix", f"E={found['params']['E']['value']!r}")
    assert again["at"]["value"] == pytest.approx(found["objective"]["value"], rel=1e-9)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fix", "F=1"), "has no parameter 'F'"),
        (("--fix", "alfa=1"), "did you mean 'alpha'"),
        (("--fix", "E=-1"), "E of law 'chinchilla' must be finite and >= 0"),
        (("--fix", "alpha=7"), "alpha of law 'chinchilla' must be in [0.05, 1.6]"),
        (("--fix", "E"), "must be NAME=NUMBER"),
        (("--fix", "E=1", "--fix", "E=2"), "E is already 1"),
        ([w for item in POINT.split(",") for w in ("--fix", item)], "no parameter is left to fit"),
        (("--fix", "E=1.7", "--rank"), "--rank with --fix E"),
        (("--at", "E=1.7"), "A, B, alpha, beta missing"),
        (("--at", f"{POINT},F=2"), "--at F=2"),
        (("--at", POINT.replace("1.69", "-90")), "has no value on every row"),
        (("--sigma", "sd"), "no column 'sd'"),
        (("--sigma", "set"), "is not a number"),
        (("--sigma", "zero"), "row 3 is 0"),
        (("--level", "0.99"), "a 99% interval needs 200 resamples"),
    ],
)
def test_an_option_that_cannot_be_honored_exits_2_and_says_why(csv, words, told):  # noqa: F811
    frame = pd.read_csv(csv)
    frame.assign(zero=np.where(np.arange(20) == 3, 0.0, 0.01)).to_csv(csv, index=False)
    done = fit(csv, *words)
    assert done.exit_code == 2 and told in done.output.replace("\n", " "), done.output


@pytest.mark.parametrize("space", ["log", "linear", "log10"])
def test_equal_errors_change_nothing(space):
    """Equal on the scale of the residuals: of L in linear space, of L relative to itself in log space."""
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    scale = relative_sigma(np.full(20, 0.013) * (1.0 if space == "linear" else L), L, space)
    plain = fit_law("chinchilla", rows, L, space=space)
    told = fit_law("chinchilla", rows, L, space=space, scale=scale)
    assert told.value == pytest.approx(plain.value, rel=1e-12)
    assert list(told.params.values()) == pytest.approx(list(plain.params.values()), rel=1e-12)


@pytest.mark.parametrize(("loss_fn", "share"), [("huber", 0.5), ("squared", 0.05)])
def test_a_row_with_ten_times_the_error_hardly_moves_the_fit(loss_fn, share):
    """Squared errors give it a hundredth of the weight; Huber's loss had bounded its pull before."""
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    off = L * np.where(np.arange(20) == 7, 1.05, 1.0)
    scale = relative_sigma(np.where(np.arange(20) == 7, 0.1, 0.01) * off, off, "log")
    at = {"N": np.array([3e9]), "D": np.array([6e10])}
    moves = []
    for by in (None, scale):
        one, other = (fit_law("chinchilla", rows, loss, loss_fn, scale=by).predict(at)[0] for loss in (L, off))
        moves.append(abs(other - one))
    assert moves[1] < share * moves[0]


def test_sigma_weighs_the_rows_of_the_command_and_is_recorded(record, csv):  # noqa: F811
    frame = pd.read_csv(csv)
    frame["loss"] *= np.where(np.arange(20) == 7, 1.05, 1.0)
    frame.assign(se=np.where(np.arange(20) == 7, 0.3, 0.01)).to_csv(csv, index=False)
    blind, _, _ = record("--backtest", "1e19")
    told, printed, _ = record("--sigma", "se", "--backtest", "1e19", "--rank", "--at", POINT)
    assert (blind["objective"]["sigma"], told["objective"]["sigma"]) == (
        None,
        "se",
    ) and "residuals divided by se" in printed
    gap = [abs(one["params"]["alpha"]["value"] - 0.34) for one in (blind, told)]
    assert gap[1] < gap[0] and told["at"]["value"] < 1.0
    assert [one["row"] for one in blind["suspects"]] == [7] and told["suspects"] == []
    assert told["backtests"][0]["mare"] != blind["backtests"][0]["mare"]


def test_a_problem_on_its_own_rows_is_scaled_alike_whole_and_in_part():
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    scale = relative_sigma(np.linspace(0.01, 0.05, 20), L, "log")
    found = fit_law("chinchilla", rows, L, scale=scale)
    raw = np.log(found.predict(rows) / L)
    np.testing.assert_allclose(found.residuals * scale, raw, atol=1e-12)
    part = found.problem.rows(np.arange(5))
    np.testing.assert_allclose(part.predict(found.theta[None])[0] - part.observed, (raw / scale)[:5], atol=1e-12)
    np.testing.assert_allclose(np.exp(part.predict(found.theta[None], part.inputs)[0]), found.predict(part.inputs))
    assert np.mean(relative_sigma(np.linspace(0.01, 0.05, 20), L, "linear") ** 2) == pytest.approx(1)


def test_seeds_that_are_averaged_combine_their_errors():
    """Two seeds of errors s and s give s / sqrt(2), so a size with two seeds weighs more than one with one."""
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 4), indexing="ij"))
    frame = pd.DataFrame({"N": N, "D": D, "se": 0.02, "trunk": [f"{n:g}-a" for n in N]})
    more = frame[frame["N"] == N[0]].assign(trunk="again")
    both = pd.concat([frame, more], ignore_index=True)
    both["L"] = ladders.noisy(ladders.loss(both["N"], both["D"]), 0, 0.002)
    law = find("chinchilla")
    even = fit_with_noise(load(both, {"sigma": "se"}), law, None, 1e-3, "linear", "trunk").fit.problem
    scale, small = even.scale, even.inputs["N"] == N[0]
    assert scale is not None and scale[small] / scale[~small][0] == pytest.approx(1 / np.sqrt(2))
    uneven = both.assign(se=np.where(both["trunk"] == "again", 0.06, 0.02))
    scale = fit_with_noise(load(uneven, {"sigma": "se"}), law, None, 1e-3, "linear", "trunk").fit.problem.scale
    assert scale is not None and scale[small] / scale[~small][0] == pytest.approx(np.hypot(0.06, 0.02) / 2 / 0.02)


def test_misfit_of_a_cell_is_no_noise_of_its_replicates():
    """Two replicates a cell, one with ten times the error of the other, and cells that are 3 % off the law."""
    rows = {name: np.repeat(column, 2) for name, column in ladders.twenty().items()}
    rng, error = np.random.default_rng(3), np.tile([0.0005, 0.005], 20)
    misfit = np.repeat(rng.normal(0, 0.03, 20), 2)
    L = ladders.loss(rows["N"], rows["D"]) * np.exp(rng.normal(size=40) * error + misfit)
    test = lack_of_fit(fit_law("chinchilla", rows, L, "squared", scale=relative_sigma(error * L, L, "log")))
    assert test is not None and test.p_value < 1e-6
    assert test.seed_noise == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.35)


def test_the_interval_of_a_run_with_a_larger_error_is_as_much_wider():
    rows = ladders.twenty()
    found = fit_law("chinchilla", rows, ladders.noisy(ladders.loss(**rows), 1, 0.01))
    noise = NoiseModel.of(found).components()
    assert noise is not None
    draws = Draws(found, np.repeat(found.values, 4000, axis=0), "bootstrap", replace(noise, slope=0.0))
    lo, hi = interval(np.log(draws.predict_runs(rows, 0, np.where(np.arange(20) == 7, 10.0, 1.0))))
    width = hi - lo
    assert width[7] / np.delete(width, 7).mean() == pytest.approx(10, rel=0.05)


def test_the_draws_of_every_refit_are_enough_for_the_level():
    for level in (0.5, 0.9, 0.995, 0.999):
        few = Options(bootstrap=4000, level=level).few
        assert few >= 200 and few * (1 - level) / 2 >= 1 - 1e-9
    assert Options(bootstrap=50).few == 50
