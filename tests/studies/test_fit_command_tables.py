"""Tables and folders of runs that `kleiber fit` reads: columns, groups, trunks and rows that it leaves out."""

import json

import numpy as np
import pandas as pd
import pytest
from small_run import REPOSITORY

from . import ladders
from .test_fit_command import csv, fit, run, valid  # noqa: F401  (csv is a fixture)

GOLDEN = REPOSITORY / "multirun" / "golden"


def test_a_table_without_a_column_for_the_size_is_told_so(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame({"size": [1.0, 2.0], "tokens": [1.0, 2.0], "loss": [3.0, 2.0]}).to_csv(path, index=False)
    done = run("fit", path, "--data", "tokens")
    assert done.exit_code == 2 and "--map N=COL" in done.output


@pytest.mark.slow
def test_a_folder_of_runs_needs_no_map_and_knows_its_trunks():
    done = run("fit", GOLDEN, "--where", "D >= 1.9e6", "--bootstrap", 20, "--backtest", "5e12")
    assert done.exit_code in (0, 3), done.output
    assert "intervals by cluster t" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_or_two_sizes_give_no_exponent_and_no_interval_at_another_size(tmp_path, sizes):
    """Draws begin at the fit and stay near it, so their spread hides that alpha may be anything."""
    N, D = (
        np.tile(exponent.ravel(), 2)
        for exponent in np.meshgrid(np.array([1e8, 4e8])[:sizes], np.geomspace(1e9, 3e10, 6))
    )
    L = ladders.noisy(ladders.loss(N, D), 1, 0.002)
    pd.DataFrame({"N": N, "D": D, "L": L}).to_csv(tmp_path / "few.csv", index=False)
    out = tmp_path / "laws.json"
    done = run("fit", tmp_path / "few.csv", "--bootstrap", 50, "--predict", "N=1e8,D=1e10", "--predict",
               "N=1e9,D=1e10", "--json", out)  # fmt: skip
    assert done.exit_code == 3, done.output
    record = valid(out)
    inside, outside = record["predictions"]
    assert inside["lo"] < inside["value"] < inside["hi"] < inside["lo"] * 1.01
    assert outside["lo"] is None and outside["value"] is not None
    assert not record["derived"]["a_opt"]["identified"] and record["allocation"] == []
    assert not [exponent for exponent in record["approaches"] if exponent["approach"].startswith("3")]
    assert "not identified" in run("predict", out, "N=1e9", "D=1e10").output


@pytest.mark.slow
def test_each_group_tells_its_own_excluded_rows(csv, tmp_path):  # noqa: F811
    out = tmp_path / "laws.json"
    frame = pd.read_csv(csv)
    frame.loc[[0, 2, 4], "loss"] = np.nan
    frame.to_csv(csv, index=False)
    fit(csv, "--law", "chinchilla_tied", "--by", "set", "--json", out)
    content = json.loads(out.read_text())["laws"]
    assert [len(content[name]["excluded"]) for name in ("a", "b")] == [3, 0]


@pytest.mark.slow
def test_the_interval_of_one_run_holds_what_trunks_differ_by(tmp_path):
    """Seeds are averaged before the fit, so its residuals do not show how far a new trunk may lie."""
    rows = [(N, D, seed) for N in np.geomspace(1e7, 1e9, 5) for D in np.geomspace(2e8, 2e10, 5) for seed in range(4)]
    N, D, seed = np.array(rows).T
    shift = np.random.default_rng(0).normal(size=(5, 4)) * 0.01
    trunk = np.repeat(np.arange(5), 20)
    L = ladders.noisy(ladders.loss(N, D), 1, 0.0005) * np.exp(shift[trunk, seed.astype(int)])
    frame = pd.DataFrame({"N": N, "D": D, "L": L, "trunk": [f"{a}-{b:.0f}" for a, b in zip(trunk, seed, strict=True)]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "laws.json"
    run("fit", tmp_path / "t.csv", "--cluster", "trunk", "--bootstrap", 20, "--json", out)
    content = json.loads(out.read_text())
    assert content["noise"]["between"] ** 0.5 >= 0.9 * content["trunk_noise"]["between"] > 0.0045


def test_a_foreign_status_names_the_rule_that_left_no_row(csv):  # noqa: F811
    frame = pd.read_csv(csv)
    frame["status"] = "ok"
    frame.to_csv(csv, index=False)
    done = fit(csv, "--exclude", "suspects")
    assert done.exit_code == 2 and "rule unfinished" in done.output and "--exclude none" in done.output


@pytest.mark.slow
def test_of_a_folder_the_finished_runs_alone_are_fitted_and_the_others_recorded(tmp_path):
    for n in np.geomspace(1e7, 1e9, 5):
        losses = {d: float(ladders.loss(n, d)) for d in np.geomspace(2e8, 2e10, 4)}
        ladders.write_tree(tmp_path / "runs" / f"{n:g}", 0, int(n), 6 * n, losses)
    ladders.write_tree(tmp_path / "runs" / "gone", 0, 10**7, 6e7, {1e8: 9.0}, status="failed")
    out = tmp_path / "laws.json"
    done = run("fit", tmp_path / "runs", "--bootstrap", 0, "--json", out)
    assert done.exit_code in (0, 3), done.output
    record = valid(out)
    assert record["n"] == 20 and len(record["excluded"]) == 1 and "finished" in record["excluded"][0]["rule"]
