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

app = typer.Typer()
app.command()(fit_command.fit)
app.command()(fit_command.predict)


def run(*words):
    return CliRunner().invoke(app, [str(key) for key in words])


def write_table(folder):
    """Writes a table of twenty rows in two sets and returns its path."""
    rows = ladders.twenty()
    L = ladders.noisy(ladders.loss(**rows), 1, 0.002)
    path = folder / "runs.csv"
    pd.DataFrame({"params": rows["N"], "tokens": rows["D"], "loss": L, "set": ["a", "b"] * 10}).to_csv(
        path, index=False
    )
    return path


@pytest.fixture
def csv(tmp_path):
    return write_table(tmp_path)


def fit(csv, *words):
    return run("fit", csv, "--params", "params", "--data", "tokens", "--bootstrap", 50, *words)


def valid(path):
    jsonschema = pytest.importorskip("jsonschema")
    content = json.loads(path.read_text())
    jsonschema.validate(content, json.loads(laws_json.SCHEMA.read_text()))
    return content


@pytest.mark.slow
def test_fit_writes_a_valid_record_and_predict_reads_it(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out, "--predict", "N=2B,D=40B", "--rank", "--backtest", "1e19")
    assert done.exit_code == 0, done.output
    record = valid(out)
    assert record["n"] == 20 and record["params"]["alpha"]["identified"] and record["backtests"][0]["cut"] == 1e19
    assert record["derived"]["a_opt"]["lo"] < record["derived"]["a_opt"]["value"] < record["derived"]["a_opt"]["hi"]
    row = record["predictions"][0]
    assert row["run_lo"] < row["lo"] < row["value"] < row["hi"] < row["run_hi"]
    assert row["value"] == pytest.approx(ladders.loss(2e9, 4e10), rel=0.02)
    assert row["decades"] == pytest.approx(np.log10(2), abs=1e-6) and len(record["ranking"]) == 5
    again = run("predict", out, "N=2e9", "D=40B")
    assert again.exit_code == 0 and f"{row['value']:.6g}" in again.output and f"{row['lo']:.5g}" in again.output


@pytest.mark.slow
def test_far_predictions_are_refused_unless_forced(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out, "--predict", "N=1e13,D=1e10")
    assert valid(out)["predictions"][0]["value"] is None and "4.0 decades outside the rows" in done.output
    assert run("predict", out, "N=1e13", "D=1e10").exit_code == 2
    assert run("predict", out, "N=1e13", "D=1e10", "--force").exit_code == 0


@pytest.mark.slow
def test_by_fits_each_group(csv, tmp_path):
    out = tmp_path / "laws.json"
    done = fit(csv, "--by", "set", "--json", out)
    assert done.exit_code in (0, 3) and "set = a" in done.output
    assert {name: law["n"] for name, law in valid(out)["laws"].items()} == {"a": 10, "b": 10}
    assert run("predict", out, "set=a", "N=1e9", "D=1e10").exit_code == 0
    lost = run("predict", out, "N=1e9", "D=1e10")
    assert lost.exit_code == 2 and "add set=VALUE, one of a, b" in lost.output


@pytest.mark.slow
def test_an_unidentified_fit_exits_3_and_says_so(csv):
    done = fit(csv, "--where", "params > 9e7 and params < 4e8")
    assert done.exit_code == 3 and "not identified" in done.output
    line = next(line for line in done.output.splitlines() if line.split()[:1] == ["E"])
    assert "not identified" in line and "90%" not in line


@pytest.mark.slow
def test_no_number_stands_without_interval_or_the_words(csv):
    for words in ((), ("--where", "params > 9e7 and params < 4e8")):
        for line in fit(csv, *words).output.splitlines():
            if line.split()[:1] and line.split()[0] in ("E", "A", "B", "alpha", "beta", "a_opt", "b_opt"):
                assert "not identified" in line or ("[" in line and "]" in line), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--loss", "los"), "'loss'"),
        (("--law", "chinchila"), "'chinchilla'"),
        (("--where", "loss <"), "--where 'loss <'"),
        (("--where", "(" * 5000 + "loss < 3" + ")" * 5000), "--where '(((("),
        (("--by", "sets"), "'set'"),
        (("--backtest", "big"), "--backtest 'big'"),
        (("--predict", "N=many"), "'N=many'"),
        (("--exclude", "outlier"), "none, suspects"),
        (("--level", "1"), "--level 1"),
        (("--json", "/nonexistent/laws.json"), "--json /nonexistent/laws.json"),
    ],
)
def test_bad_input_exits_2_and_names_the_option_and_the_value(csv, words, named):
    done = fit(csv, *words)
    assert done.exit_code == 2 and named in done.output
    assert "Traceback" not in done.output


@pytest.mark.slow
def test_rows_without_a_number_are_named_and_sizes_of_zero_refused(csv):
    rows = pd.read_csv(csv)
    rows.astype({"params": float}).assign(params=rows["params"].where(rows.index != 7)).to_csv(csv, index=False)
    done = fit(csv)
    assert "not finite: N (params): row 7" in done.output
    rows.assign(params=rows["params"].where(rows.index != 7, 0)).to_csv(csv, index=False)
    done = fit(csv)
    assert done.exit_code == 2 and "in row 7" in done.output


def test_missing_files_exit_2(tmp_path):
    assert run("fit", tmp_path / "none.csv").exit_code == 2
    assert run("predict", tmp_path / "none.json", "N=1").exit_code == 2
    (tmp_path / "other.json").write_text('{"schema": "else"}')
    assert "must be 'kleiber.law/1'" in run("predict", tmp_path / "other.json", "N=1").output


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(csv, tmp_path):
    for name in ("one", "two"):
        fit(csv, "--json", tmp_path / name, "--seed", 3)
    fit(csv, "--json", tmp_path / "three", "--seed", 4)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() != (tmp_path / "three").read_text()


@pytest.mark.slow
def test_suspects_show_the_fit_with_and_without(csv, tmp_path):
    rows = pd.read_csv(csv)
    rows.loc[18, "loss"] *= 2
    rows.to_csv(csv, index=False)
    out = tmp_path / "laws.json"
    done = fit(csv, "--json", out)
    record, suspect = valid(out), [{"row": 18, "rule": "diverged"}]
    assert (record["n"], record["excluded"], record["suspects"]) == (20, [], suspect)
    assert "with the suspects (n = 20)" in done.output and "without the suspects (n = 19)" in done.output
    fit(csv, "--json", out, "--exclude", "suspects")
    assert (valid(out)["n"], valid(out)["excluded"]) == (19, suspect)


def test_the_stated_limit_of_extrapolation_is_the_analysis_limit():
    import inspect

    from kleiber.studies.laws.analysis import MAX_DECADES

    for row in (fit_command.fit, fit_command.predict):
        assert inspect.signature(row).parameters["max_decades"].default == MAX_DECADES


@pytest.mark.slow
def test_a_law_is_held_against_the_rows_of_a_table(csv, tmp_path):
    out = tmp_path / "laws.json"
    assert fit(csv, "--json", out, "--where", "params < 5e8").exit_code == 0
    done = run("predict", out, "--on", csv, "--map", "N=params,D=tokens,L=loss", "--where", "params >= 5e8")
    assert done.exit_code == 0, done.output
    assert "cells: error" in done.output and "confidence interval contains" in done.output
    at, roles = tmp_path / "predictions.json", ("--map", "N=params,D=tokens,L=loss")
    assert run("predict", out, "--on", csv, *roles, "--json", at).exit_code == 0
    content = json.loads(at.read_text())
    errors = [row["value"] - row["observed"] for row in content["predictions"]]
    inside = [row["lo"] <= row["observed"] <= row["hi"] for row in content["predictions"]]
    assert content["mae"] == pytest.approx(np.abs(errors).mean()) and content["bias"] == pytest.approx(np.mean(errors))
    assert content["coverage"] == np.mean(inside) and content["predictions"][0]["law_lo"] is not None
    sizes = tmp_path / "sizes.csv"
    pd.read_csv(csv).drop(columns="loss").to_csv(sizes, index=False)
    assert run("predict", out, "--on", sizes, "--map", "N=params,D=tokens", "--json", at).exit_code == 0
    unmeasured = json.loads(at.read_text())
    assert "mae" not in unmeasured and "observed" not in unmeasured["predictions"][0]
    assert {row["value"] for row in unmeasured["predictions"]} == {row["value"] for row in content["predictions"]}
    combined = run("predict", out, "N=1e9", "--on", csv)
    assert combined.exit_code == 2 and "not both" in combined.output
    alone = run("predict", out, "N=1e9", "D=1e10", "--where", "C > 1")
    assert alone.exit_code == 2 and "--on is missing" in alone.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("--bootstrap", 1), "--bootstrap 1"),
        (("--loss-fn", "squared", "--delta", 0.1), "--delta 0.1"),
        (("--map", "Q=tokens"), "--map Q=tokens"),
        (("--law", "power_floor", "--rank"), "--rank"),
        (("--law", "{own}", "--backtest", "1e19", "--map", "L=loss"), "--backtest"),
        (("--law", "{raises}"), "KeyError: 'boo'"),
        (("--law", "{unknown}"), "unknown"),
        (("--by", "holes"), "--by holes: row 3"),
    ],
)
def test_an_option_without_effect_or_meaning_is_refused_by_name(csv, tmp_path, words, option):
    law_file = tmp_path / "my.py"
    law_file.write_text(
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
    named = [
        str(argument).format(own=f"{law_file}:own", raises=f"{law_file}:raises", unknown=f"{law_file}:unknown")
        for argument in words
    ]
    start = (
        ("fit", csv, "--bootstrap", 20) if "{own}" in words else ("fit", csv, "--params", "params", "--data", "tokens")
    )
    done = run(*start, *named)
    assert done.exit_code == 2 and option in done.output.replace("\n", " "), done.output


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("law")
    table = write_table(folder)
    out = folder / "laws.json"
    done = run("fit", table, "--params", "params", "--data", "tokens", "--bootstrap", 0, "--json", out)
    assert done.exit_code == 0
    return out, done.output


@pytest.mark.parametrize(
    ("point", "named"),
    [
        (("N=0", "D=1e10"), "predict N=0"),
        (("N=-1", "D=1e10"), "predict N=-1"),
        (("N=1e400", "D=1e10"), "predict N=inf"),
        (("N=1e9", "D=1e10", "X=8"), "predict X=8"),
        (("N=1e9", "N=1e8", "D=1e10"), "'N=1e8'"),
    ],
)
def test_a_point_that_the_law_cannot_use_is_refused_with_its_value(fitted, point, named):
    done = run("predict", fitted[0], *point)
    assert done.exit_code == 2 and named in done.output, done.output


def test_without_draws_nothing_is_covered_and_nothing_missed(fitted):
    record, output = valid(fitted[0]), fitted[1]
    assert "no intervals; naive predictors" in output and "overconfident" not in output
    assert record["backtests"] and all(test["coverage"] is None for test in record["backtests"])


@pytest.mark.slow
def test_a_law_file_keeps_what_its_decorator_says(csv, tmp_path, monkeypatch):
    monkeypatch.setattr(law, "LAWS", dict(law.LAWS))  # which the file enters itself into
    law_file = tmp_path / "mine.py"
    law_file.write_text(
        "from kleiber.studies.laws.law import Array, Exponent, Part, law\n"
        "@law(space='linear', loss_fn='squared', derived={'half': lambda p: p['E'] / 2})\n"
        "def mine(D: Array, *, E: Part, B: Part, beta: Exponent):\n    return E + B * D**-beta\n"
    )
    done = fit(csv, "--law", f"{law_file}:mine")
    assert "squared loss on the linear scale" in done.output and "  half " in done.output, done.output


@pytest.mark.slow
def test_a_refused_law_exits_3_and_predicts_only_if_forced(tmp_path):
    """Losses that fall faster at the large sizes: identified, and worse than the line that knows no law."""
    rows = ladders.twenty()
    N, D = rows["N"], rows["D"]
    broken = np.where(N < 2e8, 4 * N**-0.1, 4 * 2e8**-0.1 * (N / 2e8) ** -0.3) * (D / 1e9) ** -0.1
    pd.DataFrame({"N": N, "D": D, "L": ladders.noisy(broken, 0, 0.001)}).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "laws.json"
    law = ("--law", "no_floor", "--bootstrap", 20, "--backtest", "2e19", "--json", out)
    done = run("fit", tmp_path / "t.csv", *law)
    record = valid(out)
    assert record["refused"] and all(row["identified"] for row in record["params"].values())
    assert done.exit_code == 3
    refusals = [line for line in done.output.splitlines() if line.startswith("refuse: ")]
    for words in (("N=2e9", "D=4e10"), ("L=2.5", "--serve", "1T"), ("--on", tmp_path / "t.csv")):
        asked = run("predict", out, *words)
        assert asked.exit_code == 3 and asked.output.splitlines()[:-1] == refusals and "--force" in asked.output
    forced = run("predict", out, "N=2e9", "D=4e10", "--force")
    assert forced.exit_code == 0 and forced.stderr.splitlines() == refusals and "confidence interval" in forced.stdout
    good = tmp_path / "good.csv"
    pd.DataFrame({"N": N, "D": D, "L": ladders.noisy(ladders.loss(N, D), 1, 0.002)}).to_csv(good, index=False)
    assert run("fit", good, "--bootstrap", 20, "--json", out).exit_code == 0 and not valid(out)["refused"]


@pytest.mark.slow
def test_a_prediction_repeats_what_its_law_failed_at(csv, tmp_path):
    out, at = tmp_path / "laws.json", tmp_path / "prediction.json"
    fit(csv, "--json", out)
    record = json.loads(out.read_text())
    assert json.loads(run_json(out, at))["failures"] == []
    record["params"]["E"] |= {"identified": False, "lo": None, "hi": None}
    record["holdouts"] = [{"name": "largest size", "mare": 0.0288, "naive": {"line": 0.0107}}]
    out.write_text(json.dumps(record))
    done = run("predict", out, "N=1e9", "D=1e10", "--json", at)
    assert done.exit_code == 0 and "that of the law 2.88%" in done.output and "irreducible loss E is" in done.output
    written = json.loads(at.read_text())
    assert len(written["failures"]) == 2 and written["value"] > 0 and written["at"] == {"N": 1e9, "D": 1e10}
    assert run("predict", out, "L=2.5", "--serve", "1T", "--json", at).exit_code == 2


def run_json(laws, at):
    """The text of the file that a prediction is written to."""
    assert run("predict", laws, "N=1e9", "D=1e10", "--json", at).exit_code == 0
    return at.read_text()
