"""Large tables: rows of a cell become their mean, which changes no squared-loss estimate and no noise of a run."""

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws import problem
from kleiber.studies.laws.analysis import Options, analyze
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.fit import fit
from kleiber.studies.laws.noise_model import fit_with_noise
from kleiber.studies.laws.problem import MOST_ROWS, cells_of_rows, pool, scale_of, trunks
from kleiber.studies.laws.solve import descend
from kleiber.studies.laws.table import Table, load

from .. import ladders

LAW = find("chinchilla")
CELLS = ladders.small()  # 30


def runs(count, sd=0.01, seed=0, **columns) -> Table:
    """A table of `count` runs in 30 cells, unequally many in each."""
    rng = np.random.default_rng(seed)
    cell = np.concatenate([np.arange(30), rng.choice(30, count - 30, p=np.arange(1, 31) / 465)])
    rows = {name: column[cell] for name, column in CELLS.items()}
    noise = rng.normal(0, sd, count)
    return load(
        pd.DataFrame({**rows, "L": ladders.small_loss(**rows) * np.exp(noise), **columns}),
        {"sigma": "sigma"} if "sigma" in columns else {},
    )


def least_squares(table, space=None):
    """The parameters of a fit of all rows without pooling, from 30 rows, refined on all of them."""
    start = fit(LAW, table.inputs(LAW), table.target, "squared", space=space, scale=scale_of(table, space or LAW.space))
    return start.values[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "has_sigma"),
    [
        ("log", False),
        ("linear", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("log", True), ("linear", False), ("log10", True))),
    ],
)
def test_a_squared_fit_of_pooled_rows_is_that_of_all_rows(space, has_sigma):
    sigma = {"sigma": np.random.default_rng(1).uniform(0.01, 0.1, MOST_ROWS + 1)} if has_sigma else {}
    table = runs(MOST_ROWS + 1, **sigma)
    pooled = fit_with_noise(table, LAW, "squared", 1e-3, space, None)
    assert pooled.fit.problem.num_rows == 30 and pooled.pooled == MOST_ROWS + 1
    assert pooled.fit.values[0] == pytest.approx(least_squares(table, space), rel=1e-7)


@pytest.mark.slow
def test_200_000_rows_of_30_cells_are_fitted_as_the_30_means():
    table = runs(200_000)
    record = analyze(table, LAW, Options(loss_fn="squared", bootstrap=40))
    assert record["n"] == 30 and record["pooled"] == 200_000
    assert [verdict["code"] for verdict in record["verdicts"]].count("pooled") == 1
    model = fit_with_noise(table, LAW, "squared", 1e-3, None, None)
    everything = model.fit.on_rows(table)
    theta, value = descend(everything.problem, everything.theta[None], rounds=100, tolerance=1e-14)
    assert theta[0] == pytest.approx(model.fit.theta, abs=1e-7)
    assert record["objective"]["value"] == pytest.approx(value[0], rel=1e-9), "a sum over all rows"
    assert record["residual_rms"] == pytest.approx(0.01, rel=0.02)
    assert record["noise"]["within"] == pytest.approx(0.01**2, rel=0.02), "the noise of a run, not of a mean"
    for name, true in {"E": 1.2, "alpha": 0.3, "beta": 0.25}.items():
        assert record["params"][name]["lo"] < true < record["params"][name]["hi"]


@pytest.mark.slow
def test_the_intervals_of_pooled_rows_are_those_of_all_rows(monkeypatch):
    table, widths = runs(1200), []
    for limit in (1200, 1199):
        monkeypatch.setattr(problem, "MOST_ROWS", limit)
        model = fit_with_noise(table, LAW, "squared", 1e-3, None, None)
        lo, hi = np.quantile(model.draws(200, 0).values[:, 3], [0.05, 0.95])
        widths.append(np.log(hi / lo))
        assert model.fit.problem.num_rows == (1200 if limit == 1200 else 30)
    assert widths[1] == pytest.approx(widths[0], rel=0.35)


def test_rows_that_scatter_around_the_law_are_worth_fewer_runs():
    table = runs(20_000)
    misfit = np.random.default_rng(2).normal(0, 0.01, 30)
    cell, _ = cells_of_rows(table.inputs(LAW))
    table.columns["L"] = table.target * np.exp(misfit[cell])
    noisy, clean = (fit_with_noise(t, LAW, "squared", 1e-3, None, None) for t in (table, runs(20_000)))
    assert clean.layout.averaged[0] > 50 and noisy.layout.averaged[0] < 5
    scale = noisy.run_scale(np.arange(30))
    assert scale == pytest.approx(noisy.fit.problem.scale / np.sqrt(noisy.layout.averaged[0]))


@pytest.mark.slow
def test_a_huber_fit_is_that_of_the_means_and_says_so():
    record = analyze(runs(6000), LAW, Options(bootstrap=0))
    text = next(verdict["text"] for verdict in record["verdicts"] if verdict["code"] == "pooled")
    assert "6,000 rows pooled into 30 cells" in text and "huber" in text


@pytest.mark.slow
def test_few_rows_are_left_as_they_are_and_too_many_cells_are_refused_with_numbers():
    table = runs(MOST_ROWS)
    assert pool(table, LAW, "log") is None and "pooled" not in analyze(
        table.drop(np.arange(len(table)) > 40, "x"), LAW, Options(bootstrap=0)
    )
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"N": rng.uniform(1e6, 1e9, 7000), "D": 1e9, "L": rng.uniform(2, 3, 7000)})
    with pytest.raises(ValueError, match=r"7,000 rows have 7,000 .* N, D.*5,000.*--where"):
        analyze(load(frame, {}), LAW, Options())


def test_rows_of_different_trunks_stay_apart():
    names = np.array(["b", "a"] * 3000)
    table = runs(6000, name=names)
    pooled = pool(table, LAW, "log", "name")
    assert len(pooled.table) == 60 and (pooled.trunk == (names == "b")).all()
    assert (trunks(table, "name")[pooled.table.frame.index] == pooled.trunk[pooled.table.frame.index]).all()
    model = fit_with_noise(table, LAW, "squared", 1e-3, None, "name")
    assert model.averaged and len(model.runs.row) == 6000 and model.fit.problem.num_rows == 30


def test_a_row_without_the_name_of_its_trunk_is_refused():
    frame = pd.DataFrame({"N": [1e6, 2e6], "D": [1e8, 2e8], "loss": [3.0, 2.9], "x": ["a", None]})
    table = load(frame, {}, (), ("N", "D"))
    with pytest.raises(ValueError, match=r"--cluster x: row 1 "):
        trunks(table, "x")


def test_the_mean_of_a_cell_and_its_weight_are_those_by_hand():
    table = runs(6000)
    pooled = pool(table, LAW, "log")
    cell, first = cells_of_rows(table.inputs(LAW))
    assert (pooled.cell == cell).all() and (pooled.table.frame.index == first).all()
    means = [np.exp(np.log(table.target[cell == number]).mean()) for number in range(30)]
    assert pooled.table.target == pytest.approx(np.array(means), rel=1e-12)
    counts = np.bincount(cell)
    assert pooled.table.sigma == pytest.approx(np.array(means) / np.sqrt(counts), rel=1e-12)
    assert pooled.weight == pytest.approx(1 / np.mean(1 / counts))
