"""`kleiber fit --law mixture|downstream` and `kleiber predict` from words to exit codes and files."""

import json

import numpy as np
import pytest
from html_elements import HOSTILE, elements, shown_text

from kleiber.studies.laws.table_laws import compare, rank_correlation, read_record

from ..panels import plant
from ..test_fit_command import run

mixtures = pytest.importorskip("topics.mixtures.tables").mixtures  # the laws of topics, where they are here
scores = pytest.importorskip("topics.task_scores.tables").scores

SCORES = "N=N,D=D,loss=loss,acc=acc,floor=0.25"


@pytest.fixture
def tables(tmp_path):
    mixtures(rows=60)[0].to_csv(tmp_path / "mixtures.csv", index=False)
    scores().to_csv(tmp_path / "scores.csv", index=False)
    return tmp_path


def fit(folder, law, *words):
    table, columns = {"mixture": ("mixtures", "w=w_*,loss=loss_0"), "downstream": ("scores", SCORES)}[law]
    words = words if "--map" in words else ("--map", columns, *words)
    return run("fit", folder / f"{table}.csv", "--law", law, "--bootstrap", 60, *words, "--json", folder / "law.json")


def test_the_best_mixture_is_predicted_without_a_table(tables):
    done = fit(tables, "mixture")
    assert done.exit_code == 0 and "best mixture" in done.output
    assert read_record(tables / "law.json")["roles"] == {"w": "w_*", "loss": "loss_0"}
    done = run("predict", tables / "law.json", "--json", tables / "best.json")
    answer = json.loads((tables / "best.json").read_text())
    assert done.exit_code == 0 and answer["better"] is True and set(answer["best"]["weights"]) == set("abcd")
    assert run("predict", tables / "law.json", "a=0.5", "b=0.5").exit_code == 0
    assert run("predict", tables / "law.json", "a=0.5").exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("law", ["mixture", "downstream"])
def test_rows_of_a_table_are_compared_with_their_measurements(tables, law):
    assert fit(tables, law).exit_code == 0
    table = tables / ("mixtures.csv" if law == "mixture" else "scores.csv")
    done = run("predict", tables / "law.json", "--on", table, "--json", tables / "answer.json")
    answer = json.loads((tables / "answer.json").read_text())
    assert done.exit_code == 0 and {"mae", "bias", "coverage", "predictions"} <= set(answer)
    assert set(answer["predictions"][0]) >= {"value", "lo", "hi"} and answer["spearman"]["value"] > 0.9
    assert len(answer["predictions"]) == (60 if law == "mixture" else 20) and answer["coverage"] > 0.7
    assert run("predict", tables / "law.json", "--on", table, "--where", "w_a > 2").exit_code == 2


def test_runs_of_a_folder_have_the_weights_of_their_data(tmp_path):
    rng = np.random.default_rng(0)
    for number, weight in enumerate(np.linspace(0, 1, 12)):
        loss = 3 - 0.2 * np.log(weight + 0.05) + rng.normal(0, 0.01)
        data = {"parts": {"builtin/docs": weight, "builtin/code": 1 - weight}}
        losses, arm = {"val/builtin/docs/loss": loss, "val/builtin/code/loss": 5 - loss}, "ab"[number > 9]
        plant(tmp_path, f"run{number}", losses, data=data, study={"arm": arm})
    words = ("--law", "mixture", "--map", "w=parts/*,loss=val/builtin/docs/loss", "--bootstrap", 40)
    done = run("fit", tmp_path, *words)
    assert done.exit_code == 0 and "12 mixtures of 2 domains" in done.output and "builtin/docs" in done.output
    assert "10 mixtures of 2 domains" in run("fit", tmp_path, *words, "--where", "arm = a").output


@pytest.mark.slow
def test_a_page_shows_the_printed_lines_and_hostile_columns_and_file_names_add_no_element(tmp_path):
    pytest.importorskip("altair")
    pages = []
    for name, column in (("harmless", "w_x"), (HOSTILE.replace("/", ""), f"w_{HOSTILE}")):
        table, page = tmp_path / f"{name}.csv", tmp_path / f"{len(pages)}.html"
        mixtures(rows=60)[0].rename(columns={"w_a": column}).to_csv(table, index=False)
        words = ("--law", "mixture", "--map", "w=w_*,loss=loss_0", "--bootstrap", 20, "--report", page)
        assert run("fit", table, *words).exit_code == 0
        pages.append(page.read_text(encoding="utf-8"))
    assert elements(pages[0]) == elements(pages[1])
    assert "60 mixtures of 4 domains" in pages[0] and HOSTILE in shown_text(pages[1])


@pytest.mark.slow
def test_a_task_without_signal_ends_with_3(tables):
    frame = scores().assign(acc=np.random.default_rng(0).uniform(0.24, 0.27, 20))
    frame.to_csv(tables / "scores.csv", index=False)
    done = fit(tables, "downstream")
    assert done.exit_code == 3 and "not predictable" in done.output
    assert run("predict", tables / "law.json", "N=1e9", "D=2e10").exit_code == 3
    assert run("predict", tables / "law.json", "N=1e9", "D=2e10", "--force").exit_code == 0


@pytest.mark.slow
def test_points_far_outside_the_runs_are_refused(tables):
    assert fit(tables, "downstream").exit_code == 0
    assert run("predict", tables / "law.json", "N=1e13", "D=2e14").exit_code == 2
    assert run("predict", tables / "law.json", "N=1e13", "D=2e14", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("law", "words"),
    [
        ("mixture", ["--route", "direct"]),
        ("mixture", ["--space", "log"]),
        ("downstream", ["--fix", "E=1"]),
        ("downstream", ["--level", "2"]),
        ("downstream", ["--map", "N=N,D=D,loss=loss,acc=acc,batch=N"]),
        ("downstream", ["--map", "N=N,D=D,loss=loss,acc=N"]),
        ("mixture", ["--map", "w=w_*,loss=w_a"]),
        ("mixture", ["--where", "w_a > 2"]),
    ],
)
def test_options_and_tables_that_do_not_fit_end_with_2(tables, law, words):
    frame = mixtures(rows=60)[0]
    frame.loc[3, ["w_a", "w_b"]] = [0.0, frame.loc[3, ["w_a", "w_b"]].sum()]
    frame.to_csv(tables / "mixtures.csv", index=False)
    assert fit(tables, law, *words).exit_code == 2


def test_a_law_that_is_misspelled_is_answered_with_its_name(tables):
    done = run("fit", tables / "scores.csv", "--law", "downstreams")
    assert done.exit_code == 2 and "'downstream'" in done.output


def test_other_laws_have_neither_form_nor_route(tables):
    assert run("fit", tables / "scores.csv", "--map", "L=loss", "--form", "ridge").exit_code == 2


def test_options_of_other_laws_are_refused_in_predictions(tables):
    assert fit(tables, "mixture").exit_code == 0
    for words in (["--serve", "1e9"], ["--map", "w=w_*"], ["a=1", "--on", tables / "mixtures.csv"]):
        assert run("predict", tables / "law.json", *words).exit_code == 2


def test_a_damaged_record_ends_with_2(tables):
    assert fit(tables, "mixture").exit_code == 0
    record = json.loads((tables / "law.json").read_text())
    (tables / "law.json").write_text(json.dumps(record | {"form": "cubic"}))
    assert run("predict", tables / "law.json").exit_code == 2
    (tables / "law.json").write_text("{")
    assert read_record(tables / "law.json") is None and run("predict", tables / "law.json").exit_code == 2


def test_comparisons_have_no_coverage_without_intervals_and_no_rank_of_two_rows():
    rows = [{"value": 1.0, "lo": None, "hi": None}, {"value": 2.0, "lo": None, "hi": None}]
    assert compare(rows, np.array([1.5, 1.5])) == {"mae": 0.5, "bias": 0.0, "coverage": None}
    assert compare(rows, np.array([np.nan, np.nan])) == {}


def test_rank_correlations_are_those_of_scipy():
    from scipy.stats import spearmanr

    left, right = np.random.default_rng(0).normal(size=(2, 40)) + np.linspace(0, 2, 40)
    rank = rank_correlation(left, right)
    assert rank["value"] == pytest.approx(spearmanr(left, right).statistic) and rank["lo"] < rank["value"] < rank["hi"]
