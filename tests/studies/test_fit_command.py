"""`kleiber fit` and `kleiber predict` from words to exit code, on synthetic tables."""

import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from kleiber.studies import fit_command
from kleiber.studies.laws import law, laws_json

from . import ladders
from .test_golden import GOLDEN

app = typer.Typer()
app.command()(fit_command.fit)
app.command()(fit_command.predict)


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
    jsonschema.validate(found, json.loads(laws_json.SCHEMA.read_text()))
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
    assert valid(out)["predictions"][0]["value"] is None and "4.0 decades outside the rows" in done.output
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
        (("--exclude", "outlier"), "must be one of none, suspects"),
        (("--level", "1"), "must lie in (0, 1)"),
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


def test_suspects_show_the_fit_with_and_without(csv, tmp_path):
    rows = pd.read_csv(csv)
    rows.loc[18, "loss"] *= 2
    rows.to_csv(csv, index=False)
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out)
    found, suspect = valid(out), [{"row": 18, "rule": "diverged"}]
    assert (found["n"], found["excluded"], found["suspects"]) == (20, [], suspect)
    assert "with the suspects (n = 20)" in done.output and "without the suspects (n = 19)" in done.output
    fit(csv, "--json", out, "--exclude", "suspects")
    assert (valid(out)["n"], valid(out)["excluded"]) == (19, suspect)


def test_the_stated_limit_of_extrapolation_is_the_analysis_limit():
    import inspect

    from kleiber.studies.laws.analysis import MAX_DECADES

    for one in (fit_command.fit, fit_command.predict):
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
    assert "intervals by cluster t" in done.output


@pytest.mark.parametrize("sizes", [1, 2])
def test_one_or_two_sizes_give_no_exponent_and_no_interval_at_another_size(tmp_path, sizes):
    """Draws begin at the fit and stay near it, so their spread hides that alpha may be anything."""
    N, D = (np.tile(one.ravel(), 2) for one in np.meshgrid(np.array([1e8, 4e8])[:sizes], np.geomspace(1e9, 3e10, 6)))
    L = ladders.noisy(ladders.loss(N, D), 1, 0.002)
    pd.DataFrame({"N": N, "D": D, "L": L}).to_csv(tmp_path / "few.csv", index=False)
    out = tmp_path / "laws.json"
    done = run("fit", tmp_path / "few.csv", "--bootstrap", 50, "--predict", "N=1e8,D=1e10", "--predict",
               "N=1e9,D=1e10", "--json", out)  # fmt: skip
    assert done.exit_code == 3, done.output
    found = valid(out)
    inside, outside = found["predictions"]
    assert inside["lo"] < inside["value"] < inside["hi"] and outside["lo"] is None and outside["value"] is not None
    assert not found["derived"]["a_opt"]["identified"] and found["allocation"] == []
    assert not [one for one in found["approaches"] if one["approach"].startswith("3")]
    assert "interval not identified" in run("predict", out, "N=1e9", "D=1e10").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--bootstrap", 1), "--bootstrap 1: a 90% interval needs 20"),
        (("--loss-fn", "squared", "--delta", 0.1), "--delta 0.1"),
        (("--map", "Q=tokens"), "--map Q=tokens: no law reads the role Q"),
        (("--law", "power_floor", "--rank"), "--rank compares laws of N and D"),
        (("--law", "{own}", "--backtest", "1e19", "--map", "L=loss"), "--backtest needs compute or size"),
        (("--law", "{raises}"), "KeyError: 'boo'"),
        (("--law", "{unknown}"), "an annotation cannot be read"),
        (("--by", "holes"), "--by holes: row 3 has no value there"),
    ],
)
def test_what_would_have_no_effect_or_no_meaning_is_refused_by_name(csv, tmp_path, words, told):
    own = tmp_path / "my.py"
    own.write_text(
        "from __future__ import annotations\nfrom kleiber.studies.laws.law import Array, Part\n"
        "def own(n: Array, *, E: Part):\n    return E + 0 * n\n"
        "def raises(N: Array, *, E: Part):\n    raise KeyError('boo')\n"
        "def unknown(N: Nothing, *, E: Part):\n    return E\n"
    )
    frame = pd.read_csv(csv)
    frame["holes"] = ["a", "b", "a", None] * 5
    if "{own}" in words:
        frame = frame.rename(columns={"params": "n"}).drop(columns="tokens")
        words = [*words[:-1], "L=loss,n=n"]
    frame.to_csv(csv, index=False)
    named = [str(one).format(own=f"{own}:own", raises=f"{own}:raises", unknown=f"{own}:unknown") for one in words]
    start = (
        ("fit", csv, "--bootstrap", 20) if "{own}" in words else ("fit", csv, "--params", "params", "--data", "tokens")
    )
    done = run(*start, *named)
    assert done.exit_code == 2 and told in done.output.replace("\n", " "), done.output


@pytest.mark.parametrize(
    ("point", "told"),
    [
        (("N=0", "D=1e10"), "predict N=0: must be a finite number > 0"),
        (("N=-1", "D=1e10"), "predict N=-1"),
        (("N=1e400", "D=1e10"), "predict N=inf"),
        (("N=1e9", "D=1e10", "X=8"), "predict X=8: law 'chinchilla' reads N, D"),
        (("N=1e9", "N=1e8", "D=1e10"), "N is already 1e+09"),
    ],
)
def test_a_point_that_is_none_or_is_read_in_part_is_refused(csv, tmp_path, point, told):
    out = tmp_path / "laws.json"
    assert run("fit", csv, "--params", "params", "--data", "tokens", "--bootstrap", 0, "--json", out).exit_code == 0
    done = run("predict", out, *point)
    assert done.exit_code == 2 and told in done.output, done.output


def test_without_draws_nothing_is_covered_and_nothing_missed(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = run("fit", csv, "--params", "params", "--data", "tokens", "--bootstrap", 0, "--json", out)
    found = valid(out)
    assert "no intervals; naive predictors" in done.output and "overconfident" not in done.output
    assert found["backtests"] and all(test["coverage"] is None for test in found["backtests"])


def test_a_law_file_keeps_what_its_decorator_says(csv, tmp_path, monkeypatch):
    monkeypatch.setattr(law, "LAWS", dict(law.LAWS))  # which the file enters itself into
    own = tmp_path / "mine.py"
    own.write_text(
        "from kleiber.studies.laws.law import Array, Exponent, Part, law\n"
        "@law(space='linear', loss_fn='squared', derived={'half': lambda p: p['E'] / 2})\n"
        "def mine(D: Array, *, E: Part, B: Part, beta: Exponent):\n    return E + B * D**-beta\n"
    )
    done = fit(csv, "--law", f"{own}:mine")
    assert "squared loss on the linear scale" in done.output and "  half " in done.output, done.output


def test_each_group_tells_its_own_excluded_rows(csv, tmp_path):
    out = tmp_path / "laws.json"
    frame = pd.read_csv(csv)
    frame.loc[[0, 2, 4], "loss"] = np.nan
    frame.to_csv(csv, index=False)
    fit(csv, "--law", "chinchilla_tied", "--by", "set", "--json", out)
    found = json.loads(out.read_text())["laws"]
    assert [len(found[name]["excluded"]) for name in ("a", "b")] == [3, 0]


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
    found = json.loads(out.read_text())
    assert found["noise"]["between"] ** 0.5 >= 0.9 * found["trunk_noise"]["between"] > 0.0045


def test_a_foreign_status_names_the_rule_that_left_no_row(csv):
    frame = pd.read_csv(csv)
    frame["status"] = "ok"
    frame.to_csv(csv, index=False)
    done = fit(csv, "--exclude", "suspects")
    assert done.exit_code == 2 and "by the rule unfinished" in done.output and "--exclude none" in done.output


def test_of_a_folder_the_finished_runs_alone_are_fitted_and_the_others_recorded(tmp_path):
    for n in np.geomspace(1e7, 1e9, 5):
        losses = {d: float(ladders.loss(n, d)) for d in np.geomspace(2e8, 2e10, 4)}
        ladders.write_tree(tmp_path / "runs" / f"{n:g}", 0, int(n), 6 * n, losses)
    ladders.write_tree(tmp_path / "runs" / "gone", 0, 10**7, 6e7, {1e8: 9.0}, status="failed")
    out = tmp_path / "laws.json"
    done = run("fit", tmp_path / "runs", "--bootstrap", 0, "--json", out)
    assert done.exit_code in (0, 3), done.output
    found = valid(out)
    assert found["n"] == 20 and len(found["excluded"]) == 1 and "finished" in found["excluded"][0]["rule"]


def test_a_refused_law_exits_3_and_says_so_in_its_record(tmp_path):
    """Losses that stop falling at the large sizes: identified, and worse than the line that knows no law."""
    rows = ladders.twenty()
    N, D = rows["N"], rows["D"]
    broken = np.where(N < 2e8, 4 * N**-0.02, 4 * 2e8**-0.02 * (N / 2e8) ** -0.3) * (D / 1e9) ** -0.05
    pd.DataFrame({"N": N, "D": D, "L": ladders.noisy(broken, 0, 0.001)}).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "laws.json"
    law = ("--law", "no_floor", "--bootstrap", 20, "--backtest", "2e19", "--json", out)
    done = run("fit", tmp_path / "t.csv", *law)
    found = valid(out)
    assert found["refused"] and all(one["identified"] for one in found["params"].values())
    assert done.exit_code == 3
    good = tmp_path / "good.csv"
    pd.DataFrame({"N": N, "D": D, "L": ladders.noisy(ladders.loss(N, D), 1, 0.002)}).to_csv(good, index=False)
    assert run("fit", good, "--bootstrap", 20, "--json", out).exit_code == 0 and not valid(out)["refused"]
