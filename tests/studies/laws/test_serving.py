"""The best model to train and serve: exact against a grid, smaller the more it serves, bounded, and in its bands."""

import numpy as np
import pytest

from kleiber.launch.cli import main
from kleiber.studies.fitted_law import fit
from kleiber.studies.laws.allocation import optimum
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.law import Array, Exponent, Part, Scale, describe
from kleiber.studies.laws.serving import Demand, allocate, allocation_lines, check_demand
from tests.studies.test_fitted_law import COLUMNS, PARAMS, ladder

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
SIZES = np.append(np.exp(np.linspace(16, 28, 40_001)), 3e8)


@pytest.fixture(scope="module")
def law():
    noise = np.exp(2e-3 * np.random.default_rng(0).normal(size=20))
    noisy = ladder().assign(loss=lambda rows: rows["loss"] * noise)
    return fit(noisy, "chinchilla", map=COLUMNS, bootstrap=60)


@pytest.mark.parametrize("served", [0.0, 1e11, 1e13])
@pytest.mark.parametrize("limit", [np.inf, 3e8])
def test_the_optimum_is_that_of_a_grid(served, limit):
    N = SIZES[limit >= SIZES]
    with np.errstate(invalid="ignore"):
        rest = 2.4 - HOFFMANN["E"] - HOFFMANN["A"] * N ** -HOFFMANN["alpha"]
        D = np.where(rest > 0, (HOFFMANN["B"] / np.where(rest > 0, rest, 1)) ** (1 / HOFFMANN["beta"]), np.inf)
        total = 6 * N * D + 2 * N * served
        left = np.maximum(3e21 - 2 * N * served, 1e-9) / (6 * N)
        loss = HOFFMANN["E"] + HOFFMANN["A"] * N ** -HOFFMANN["alpha"] + HOFFMANN["B"] * left ** -HOFFMANN["beta"]
    best = Demand(served, loss=2.4, max_params=limit).optimum(HOFFMANN)
    assert best["total"] == pytest.approx(total.min(), rel=1e-6) and best["N"] == pytest.approx(
        N[total.argmin()], rel=1e-3
    )
    assert best["loss"] == pytest.approx(2.4)
    best = Demand(served, flops=3e21, max_params=limit).optimum(HOFFMANN)
    assert best["loss"] == pytest.approx(loss.min(), rel=1e-8) and best["N"] == pytest.approx(
        N[loss.argmin()], rel=1e-3
    )
    assert best["total"] == pytest.approx(3e21)


def test_without_serving_it_is_the_compute_optimal_model_and_serving_makes_it_smaller():
    values = {name: np.array(value) for name, value in HOFFMANN.items()}
    for flops in (1e12, 1e22, 1e30):
        best = Demand(0.0, flops=flops).optimum(HOFFMANN)
        assert [best["N"], best["D"]] == pytest.approx([float(end) for end in optimum(values, flops)], rel=1e-9)
    sizes = [Demand(served, loss=2.2).optimum(HOFFMANN)["N"] for served in (0, 1e11, 1e12, 1e13)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.7 * sizes[0]
    assert np.isnan(Demand(1e11, loss=1.6).optimum(HOFFMANN)["N"])
    tied = {key: value for key, value in HOFFMANN.items() if key != "beta"}
    assert Demand(1e12, loss=2.2).optimum(tied)["loss"] == pytest.approx(2.2)


@pytest.mark.slow
def test_bands_contain_the_optimum_of_the_planted_law(law):
    answer = allocate(law.record, law.form, Demand(1e12, loss=2.1))
    truth = Demand(1e12, loss=2.1).optimum(PARAMS)
    assert all(answer[name]["lo"] <= truth[name] <= answer[name]["hi"] for name in ("N", "D", "total"))
    assert answer["training_only"]["total"] > answer["total"]["value"]
    lines = allocation_lines(answer, 0.9)
    assert f"{answer['N']['value']:.4g}" in lines[1] and "compute-optimal" in lines[-1]
    assert law.allocate(1e12, L=2.1) == answer


def test_the_distance_from_the_rows_is_that_of_a_prediction_at_the_best_model(law):
    answer = law.allocate(0.0, C=3e21)
    at = {name: answer[name]["value"] for name in "ND"}
    assert answer["decades"] == pytest.approx(law.predict(**at)["decades"]) and answer["decades"] > 1


def moved(record, name, factors):
    """Rows of parameters: those of the fit, with one of them multiplied by each factor."""
    values = {key: entry["value"] for key, entry in record["params"].items()}
    return [list({**values, name: values[name] * factor}.values()) for factor in factors]


def test_an_optimum_that_the_rows_do_not_determine_has_no_interval(law):
    free = {**law.record, "untold": moved(law.record, "alpha", (1 + 1e-4, 1 - 1e-4))}
    answer = allocate(free, law.form, Demand(1e12, loss=2.1))
    assert [answer[name]["lo"] for name in ("N", "D", "total")] == [None] * 3 and answer["loss"]["lo"] is not None
    free["untold"] = moved(law.record, "E", (1 + 1e-4, 1 - 1e-4))  # E moves the loss at a fixed budget, not its optimum
    answer = allocate(free, law.form, Demand(1e12, flops=1e21))
    assert answer["loss"]["lo"] is None and answer["N"]["lo"] is not None


def test_intervals_contain_the_optima_along_a_flat_profile(law):
    demand = Demand(1e12, loss=2.1)
    flat = {**law.record, "flat": moved(law.record, "E", (0.5, 1.1))}
    answer, narrow = allocate(flat, law.form, demand), allocate(law.record, law.form, demand)
    ends = [demand.optimum(dict(zip(PARAMS, row, strict=True)))["N"] for row in flat["flat"]]
    assert answer["N"]["lo"] == min(ends) < narrow["N"]["lo"] and answer["N"]["hi"] == max(ends) > narrow["N"]["hi"]
    flat["flat"] = moved(law.record, "E", (0.5, 1.3))  # with the larger E, no model reaches the loss
    assert allocate(flat, law.form, demand)["N"]["hi"] is None


def scaled(N: Array, D: Array, *, E: Part, A: Scale, B: Scale, alpha: Exponent, beta: Exponent) -> Array:
    """Names of Chinchilla in another formula: L = E + (A/N)^alpha + (B/D)^beta."""
    return E + (A / N) ** alpha + (B / D) ** beta


@pytest.mark.parametrize("form", [find("interaction"), describe(scaled)], ids=["interaction", "scaled"])
def test_a_law_of_other_terms_is_refused_whatever_its_parameters_are_called(form):
    with pytest.raises(ValueError, match="no others, which"):
        check_demand(form, {"L": 2.1}, 1e9, None)
    for name in ("chinchilla", "chinchilla_tied", "no_floor"):
        check_demand(find(name).fix({"alpha": 0.3}), {"L": 2.1}, 1e9, None)


@pytest.mark.parametrize(
    ("name", "at", "served", "message"),
    [("kaplan", {"L": 2.0}, 1e9, "kaplan"), ("chinchilla", {"N": 1e9}, 1e9, "it got N"),
     ("chinchilla", {}, 1e9, "none"), ("chinchilla", {"L": -1}, 1e9, "L=-1"),
     ("chinchilla", {"L": 2.0}, -1, "--serve=-1")],
)  # fmt: skip
def test_wrong_demands_are_refused(name, at, served, message):
    with pytest.raises(ValueError, match=message):
        check_demand(find(name), at, served, None)


@pytest.mark.slow
def test_the_command_prints_the_allocation_and_refuses_what_it_cannot_do(law, tmp_path, capsys):
    law.write(tmp_path / "laws.json")
    file = str(tmp_path / "laws.json")
    assert main(["predict", file, "L=2.1", "--serve", "1T"]) == 0
    printed = capsys.readouterr().out
    assert f"{allocate(law.record, law.form, Demand(1e12, loss=2.1))['D']['value']:.4g}" in printed
    assert main(["predict", file, "C=1e21", "--serve", "1T", "--max-params", "100M"]) == 0
    for wrong in (
        ["L=1.2", "--serve", "1T"],
        ["L=2.1", "--serve", "much"],
        ["L=2.1", "--max-params", "1B"],
        ["L=1.75", "--serve", "1T"],
    ):
        assert main(["predict", file, *wrong]) == 2, wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--on", "ROWS", "--serve", "1T"], "--serve and --max-params"),
     (["--on", "ROWS", "--max-params", "10"], "--serve and --max-params"),
     (["L=2.1", "--serve", "1T", "--where", "tokens > 1"], "--on is missing"),
     (["L=2.1", "--serve", "1T", "--map", "L=loss"], "--on is missing")],
)  # fmt: skip
def test_the_command_refuses_options_that_it_would_ignore(law, words, message, tmp_path, capsys):
    law.write(tmp_path / "laws.json")
    ladder().rename(columns={"params": "N", "tokens": "D", "loss": "L"}).to_csv(tmp_path / "rows.csv")
    words = [str(tmp_path / "rows.csv") if word == "ROWS" else word for word in words]
    assert main(["predict", str(tmp_path / "laws.json"), *words]) == 2 and message in capsys.readouterr().err
