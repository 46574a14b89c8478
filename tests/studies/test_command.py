"""`kleiber fit` and `kleiber predict` from words to exit code, on synthetic tables."""

import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from kleiber.studies import command, record

from . import ladders
from .test_golden import GOLDEN

app = typer.Typer()
app.command()(command.fit)
app.command()(command.predict)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def csv(tmp_path):
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    path = tmp_path / "runs.csv"
    pd.DataFrame({"params": rows["N"], "tokens": rows["D"], "loss": L, "set": ["a", "b"] * 10}).to_csv(
        path, index=False
    )
    return path


def fit(csv, *words):
    return run("fit", csv, "--params", "params", "--data", "tokens", "--bootstrap", 50, *words)


def valid(path):
    jsonschema = pytest.importorskip("jsonschema")
    found = json.loads(path.read_text())
    jsonschema.validate(found, json.loads(record.SCHEMA.read_text()))
    return found


def test_fit_writes_a_valid_record_and_predict_reads_it(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out, "--predict", "N=2B,D=40B", "--rank", "--backtest", "1e19")
    assert done.exit_code == 0, done.output
    found = valid(out)
    assert found["n"] == 20 and found["params"]["alpha"]["identified"] and found["backtests"][0]["cut"] == 1e19
    assert found["derived"]["a_opt"]["lo"] < found["derived"]["a_opt"]["value"] < found["derived"]["a_opt"]["hi"]
    one = found["predictions"][0]
    assert one["run_lo"] < one["lo"] < one["value"] < one["hi"] < one["run_hi"]
    assert one["value"] == pytest.approx(ladders.loss(2e9, 4e10), rel=0.02)
    assert one["decades"] == pytest.approx(np.log10(2), abs=1e-6) and len(found["ranking"]) == 5
    again = run("predict", out, "N=2e9", "D=40B")
    assert again.exit_code == 0 and f"{one['value']:.6g}" in again.output and f"{one['lo']:.5g}" in again.output


def test_far_predictions_are_refused_unless_forced(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out, "--predict", "N=1e13,D=1e10")
    assert valid(out)["predictions"][0]["value"] is None and "4.0 decades beyond the rows" in done.output
    assert run("predict", out, "N=1e13", "D=1e10").exit_code == 2
    assert run("predict", out, "N=1e13", "D=1e10", "--force").exit_code == 0


def test_by_fits_each_group(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = fit(csv, "--by", "set", "--json", out)
    assert done.exit_code in (0, 3) and "set = a" in done.output
    assert {name: law["n"] for name, law in valid(out)["laws"].items()} == {"a": 10, "b": 10}
    assert run("predict", out, "set=a", "N=1e9", "D=1e10").exit_code == 0
    lost = run("predict", out, "N=1e9", "D=1e10")
    assert lost.exit_code == 2 and "add set=VALUE, one of a, b" in lost.output


def test_an_unidentified_fit_exits_3_and_says_so(csv):
    done = fit(csv, "--where", "params > 9e7 and params < 4e8")
    assert done.exit_code == 3 and "not identified" in done.output
    line = next(line for line in done.output.splitlines() if line.split()[:1] == ["E"])
    assert "not identified" in line and "90%" not in line


def test_no_number_stands_without_interval_or_the_words(csv):
    for words in ((), ("--where", "params > 9e7 and params < 4e8")):
        for line in fit(csv, *words).output.splitlines():
            if line.split()[:1] and line.split()[0] in ("E", "A", "B", "alpha", "beta", "a_opt", "b_opt"):
                assert "not identified" in line or ("[" in line and "]" in line), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--loss", "los"), "did you mean 'loss'"),
        (("--law", "chinchila"), "did you mean 'chinchilla'"),
        (("--where", "loss <"), "found the end"),
        (("--by", "sets"), "did you mean 'set'"),
        (("--backtest", "big"), "--backtest 'big'"),
        (("--predict", "N=many"), "NAME=NUMBER"),
        (("--exclude", "outlier"), "diverged, undertuned"),
        (("--json", "/nonexistent/laws.json"), "cannot be written"),
    ],
)
def test_bad_input_exits_2_with_the_cure(csv, words, message):
    done = fit(csv, *words)
    assert done.exit_code == 2 and message in done.output
    assert "Traceback" not in done.output


def test_missing_files_exit_2(tmp_path):
    assert run("fit", tmp_path / "none.csv").exit_code == 2
    assert run("predict", tmp_path / "none.json", "N=1").exit_code == 2
    (tmp_path / "other.json").write_text('{"schema": "else"}')
    assert "expected 'kleiber.law/1'" in run("predict", tmp_path / "other.json", "N=1").output


def test_the_same_seed_gives_the_same_file(csv, tmp_path):
    for name in ("one", "two"):
        fit(csv, "--json", tmp_path / name, "--seed", 3)
    fit(csv, "--json", tmp_path / "three", "--seed", 4)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() != (tmp_path / "three").read_text()


def test_excluded_rows_show_the_fit_with_and_without(csv, tmp_path):
    rows = pd.read_csv(csv)
    rows.loc[18, "loss"] *= 2
    rows.to_csv(csv, index=False)
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out)
    assert (
        valid(out)["excluded"] == [{"row": 18, "rule": "diverged"}] and "with the excluded rows (n = 20)" in done.output
    )


def test_the_stated_limit_of_extrapolation_is_the_analysis_limit():
    import inspect

    from kleiber.studies.analysis import MAX_DECADES

    for one in (command.fit, command.predict):
        assert inspect.signature(one).parameters["max_decades"].default == MAX_DECADES


def test_a_law_is_held_against_the_rows_of_a_table(csv, tmp_path):
    out = tmp_path / "laws.json"
    assert fit(csv, "--json", out, "--where", "params < 5e8").exit_code == 0
    done = run("predict", out, "--on", csv, "--map", "N=params,D=tokens,L=loss", "--where", "params >= 5e8")
    assert done.exit_code == 0, done.output
    assert "cells: error" in done.output and "covers" in done.output
    both = run("predict", out, "N=1e9", "--on", csv)
    assert both.exit_code == 2 and "not both" in both.output
    alone = run("predict", out, "N=1e9", "D=1e10", "--where", "C > 1")
    assert alone.exit_code == 2 and "--on TABLE, which is missing" in alone.output


def test_a_table_without_a_column_for_the_size_is_told_so(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame({"size": [1.0, 2.0], "tokens": [1.0, 2.0], "loss": [3.0, 2.0]}).to_csv(path, index=False)
    done = run("fit", path, "--data", "tokens")
    assert done.exit_code == 2 and "--map N=COL" in done.output


def test_a_folder_of_runs_needs_no_map_and_knows_its_trunks():
    done = run("fit", GOLDEN, "--where", "D >= 1.9e6", "--bootstrap", 20, "--backtest", "5e12")
    assert done.exit_code in (0, 3), done.output
    assert "within clusters" in done.output
