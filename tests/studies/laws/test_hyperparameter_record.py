"""The record of a hyperparameter law: valid, read again, flags edges, refuses what the groups do not determine."""

import json
import re

import jsonschema
import pandas as pd
import pytest
from fake_run import fake_run

from kleiber.launch.cli import main
from kleiber.studies.fitted_law import SCHEMA, fit, load
from kleiber.studies.law_report import parameters
from tests.studies.laws.sweeps import EXPONENTS, ROLES, sweep

MAP = ",".join(f"{role}={column}" for role, column in ROLES.items())


def codes(law) -> set[str]:
    return {verdict["code"] for verdict in law.verdicts}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 40, 160], rates=7, batches=5)


@pytest.fixture(scope="module")
def law(table):
    return fit(table, "hyperparameter", map=ROLES, bootstrap=100, predict=[{"N": 1e9, "D": 1e11}])


@pytest.mark.slow
def test_the_record_is_valid_and_has_the_planted_exponents(law):
    jsonschema.validate(json.loads(json.dumps(law.record)), json.loads(SCHEMA.read_text()))
    assert {name: value["value"] for name, value in law.derived.items()} == pytest.approx(EXPONENTS, abs=0.06)
    assert law.accepted and law.params["a"]["value"] == law.derived["lr_N"]["value"]
    assert all(value["lo"] < value["value"] < value["hi"] for value in law.record["joint"].values())
    size, compute = law.record["backtests"]
    assert (size["along"], compute["along"]) == ("N", "C") and size["n_test"] == 3
    assert 0 <= size["mare"] < 0.004 and size["naive"]["unchanged"] > size["mare"]


@pytest.mark.slow
def test_the_command_writes_what_the_function_returns_and_predicts_from_it(law, table, tmp_path, capsys):
    table.to_csv(tmp_path / "runs.csv", index=False)
    command = ["fit", str(tmp_path / "runs.csv"), "--law", "hyperparameter", "--map", MAP, "--bootstrap", "100"]
    assert main([*command, "--predict", "N=1B,D=100B", "--json", str(tmp_path / "laws.json")]) == 0
    read = load(tmp_path / "laws.json")
    assert read.predict(N=1e9, D=1e11) == law.predict(N=1e9, D=1e11) and str(read) == str(law)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "laws.json"), "N=1B", "D=100B"]) == 0
    assert f"lr {read.predict(N=1e9, D=1e11)['value']:.4g}" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "laws.json"), "--on", str(tmp_path / "runs.csv"), "--map", MAP]) == 0
    assert "9 groups: excess loss" in capsys.readouterr().out
    table.assign(params=100 * table["params"]).to_csv(tmp_path / "far.csv", index=False)
    far = ["predict", str(tmp_path / "laws.json"), "--on", str(tmp_path / "far.csv"), "--map", MAP, "--max-decades"]
    assert [main([*far, most]) for most in ("3", "1.9")] == [0, 2] and "2.0 decades" in capsys.readouterr().err


def test_a_group_at_the_edge_of_its_grid_is_left_out_and_named(table):
    cut = table[(table["params"] > 2e7) | (table["tokens"] > 1e9) | (table["rate"] < 0.15)]
    law = fit(cut, "hyperparameter", map=ROLES, bootstrap=0)
    (edge,) = [verdict["text"] for verdict in law.verdicts if verdict["code"] == "edge"]
    places = [row["place"] for row in law.record["optima"]]
    assert places.count("edge") >= 1 and "N = 1e+07" in edge and law.record["draws"] == []


def test_a_verdict_names_ten_groups_and_counts_the_others():
    law = fit(sweep(shift=9.0, sizes=(1e7, 3e7, 1e8), ratios=[10, 20, 40, 80], noise=0.0), "hyperparameter", map=ROLES)
    (edge,) = [verdict["text"] for verdict in law.verdicts if verdict["code"] == "edge"]
    assert edge.startswith("12 of 12") and edge.count("N = ") == 10 and "; and 2 more)" in edge


def test_a_fit_without_refits_is_printed_without_intervals(table):
    law = fit(table, "hyperparameter", map=ROLES, bootstrap=0)
    assert str(law).count("   no interval\n") == 8 and "; no intervals\n" in str(law)  # 5 parameters, 3 exponents
    assert {row["90% interval"] for row in parameters(law.record)} == {"none"}


def test_a_record_keeps_enough_refits_for_its_level(table):
    assert len(fit(table, "hyperparameter", map=ROLES, bootstrap=450, level=0.9955).record["draws"]) == 445


def window_text(law) -> str:
    (text,) = [verdict["text"] for verdict in law.verdicts if verdict["code"] == "window"]
    return text


def test_the_window_is_compared_with_twice_the_one_that_was_used():
    noisy = fit(sweep(noise=5e-3, sizes=[1e7, 3e7, 1e8], ratios=[10, 80]), "hyperparameter", map=ROLES, bootstrap=60)
    widened, used = (float(part) for part in re.findall(r"([\d.]+)%", window_text(noisy)))
    assert used > 2 and widened == pytest.approx(2 * used, abs=0.1)
    exponent = float(re.search(r"lr_N = (\S+?)[,;]", window_text(noisy)).group(1))
    assert exponent != pytest.approx(noisy.derived["lr_N"]["value"], abs=1e-3)


def test_a_window_that_has_all_runs_is_not_compared():
    small = sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 80], rates=4, batches=3, noise=1e-4)
    assert window_text(fit(small, "hyperparameter", map=ROLES, bootstrap=60)).startswith("no other window was tested")


def test_a_backtest_cut_that_leaves_too_few_groups_is_refused(table):
    for cut, sides in ((1e10, "0 groups .* and 9 above"), (1e30, "9 groups .* and 0 above")):
        with pytest.raises(ValueError, match=f"leaves {sides}"):
            fit(table, "hyperparameter", map=ROLES, bootstrap=0, backtest=[3e17, cut])


def test_too_few_groups_are_refused_with_exit_3(table, tmp_path):
    few = table[table["params"] < 2e7]
    law = fit(few, "hyperparameter", map=ROLES, bootstrap=100)
    assert "few_groups" in codes(law) and not law.accepted and not law.derived["lr_N"]["identified"]
    assert law.predict(N=1e7, D=1e9)["lo"] is None
    few.to_csv(tmp_path / "few.csv")
    assert main(["fit", str(tmp_path / "few.csv"), "--law", "hyperparameter", "--map", MAP]) == 3


def test_a_sweep_without_any_optimum_inside_its_grid_is_refused():
    entry = fit(sweep(shift=9.0, sizes=(1e7, 3e7), noise=0.0), "hyperparameter", map=ROLES).record
    assert {row["place"] for row in entry["optima"]} == {"edge"} and entry["refused"]
    assert not any(value["identified"] for value in entry["params"].values())


def test_a_batch_that_is_not_swept_is_no_part_of_the_law(table):
    same = table.groupby(["params", "tokens", "rate"], as_index=False).first().assign(batch=1024)
    law = fit(same, "hyperparameter", map=ROLES, bootstrap=60)
    assert list(law.params) == ["c", "a", "b"] and "fixed_axis" in codes(law)


def test_tokens_that_differ_by_a_batch_are_one_group(table):
    rounded = table.assign(tokens=table["tokens"] * (1 + 0.02 * (table["batch"].rank() % 2)))
    assert len(fit(rounded, "hyperparameter", map=ROLES, bootstrap=0).record["optima"]) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [({"map": {"N": "params", "D": "tokens"}}, "add --map lr=COL"), ({"where": ["rate < 0"]}, "none of the"),
     ({"fix": {"a": -0.5}}, "--fix"), ({"sigma": "loss"}, "--sigma"), ({"space": "linear"}, "--space"),
     ({"delta": 0.1}, "delta"), ({"rank": True}, "--rank"), ({"exclude": "suspects"}, "--exclude"),
     ({"map": {**ROLES, "lr": "params"}}, "single value")],
)  # fmt: skip
def test_unusable_rows_and_options_without_an_effect_are_refused(table, options, message):
    with pytest.raises(ValueError, match=message):
        fit(table, "hyperparameter", **{"map": ROLES, "bootstrap": 0, **options})


def test_a_weight_decay_of_zero_is_refused_by_its_row(table):
    with pytest.raises(ValueError, match=r"decay .* must be > 0"):
        fit(table.assign(decay=0.0), "hyperparameter", map=ROLES, bootstrap=0)


@pytest.mark.slow
def test_a_folder_of_runs_has_its_rates_and_batches_in_its_own_columns(tmp_path):
    few = sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 80], rates=5, batches=4, noise=0.0)
    for number, row in enumerate(few.itertuples()):
        stage = {"params": {"active": int(row.params)}, "tokens": int(row.tokens), "lr": row.rate}
        stage |= {"batch_tokens": int(row.batch), "metrics": {"val/docs/loss": row.loss}}
        fake_run(tmp_path / f"run{number}", [stage])
    law = fit(tmp_path, "hyperparameter", bootstrap=0)
    assert {name: value["value"] for name, value in law.derived.items()} == pytest.approx(EXPONENTS, abs=0.06)
