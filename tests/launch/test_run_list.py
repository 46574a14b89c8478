"""The list of runs: any column of the table, the metrics and the config; filtered, sorted and limited."""

import json

import pytest
from fake_run import fake_run

from kleiber.launch.run_list import WIDTH, Selection, print_columns, print_table, to_json, values
from kleiber.records.catalog import read_runs


@pytest.fixture
def runs(tmp_path):
    for number, (depth, loss) in enumerate([(2, 3.0), (1, 4.0), (4, 2.0)]):
        metrics = {"val/docs/loss": loss, "val/docs/accuracy": float("nan") if depth == 1 else 0.5}
        config = {"model": {"depth": depth, "tied": depth > 1, "width": None}, "budget": {"steps": "2M"}}
        fake_run(tmp_path / f"run{number}", [{"metrics": metrics}], config=config, seed=number)
    fake_run(tmp_path / "run3", status="failed", error="ValueError: no", config={"model": {"depth": 8}})
    return read_runs(tmp_path)


def names(selection, runs):
    return [run.name for run in selection.apply(runs)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [0, 1, 2, 3]),
        (Selection(sort="loss"), [2, 0, 1, 3]),
        (Selection(sort="-loss"), [1, 0, 2, 3]),
        (Selection(sort="-model.depth", limit=2), [3, 2]),
        (Selection(sort="run", limit=1), [0]),
        (Selection(where="loss < 4"), [0, 2]),
        (Selection(where="val/docs/loss >= 3 and model.depth in [1, 8]"), [1]),
        (Selection(where="model.tied = true"), [0, 2]),
        (Selection(where="model.width = null"), [0, 1, 2]),
        (Selection(where="not status = finished"), [3]),
        (Selection(status="finished", where="model.depth > 1", sort="-seed", limit=1), [2]),
    ],
)
def test_runs_are_filtered_sorted_and_limited(runs, selection, expected):
    assert names(selection, runs) == [f"run{number}" for number in expected]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(sort="budget.tokens"), [3, 0, 1, 2, 4]),
        (Selection(where="budget.tokens > 300000"), [1, 2]),
        (Selection(where="budget.tokens = 1M"), [1]),
        (Selection(where="budget.tokens = null"), [4]),
        (Selection(where="budget.tokens != null", sort="-budget.tokens"), [2, 1, 0, 3]),
        (Selection(where="warmup = auto"), [4]),
        (Selection(sort="warmup"), [1, 2, 3, 0, 4]),
    ],
)
def test_quantities_are_compared_as_numbers_and_a_mixture_with_words_as_text(tmp_path, selection, expected):
    for number, (tokens, warmup) in enumerate([("200K", 9), ("1M", 10), ("20M", "200K"), (50_000, 3), (None, "auto")]):
        fake_run(tmp_path / f"run{number}", config={"budget": {"tokens": tokens}, "warmup": warmup})
    assert names(selection, read_runs(tmp_path)) == [f"run{number}" for number in expected]


def test_asked_columns_come_in_their_order_and_no_others(runs):
    selection = Selection(columns=["model.depth", "run", "val/docs/loss"])
    rows = selection.rows(selection.apply(runs))
    assert [list(row) for row in rows] == [["model.depth", "run", "val/docs/loss"]] * 4
    assert [row["model.depth"] for row in rows] == [2, 1, 4, 8] and rows[3]["val/docs/loss"] is None


def test_a_column_that_only_runs_beyond_the_limit_have_is_empty(runs):
    selection = Selection(sort="-run", limit=1, columns=["run", "model.tied"])
    assert selection.rows(selection.apply(runs), runs) == [{"run": "run3", "model.tied": None}]


def test_without_columns_the_config_stays_out(runs):
    rows = Selection(where="model.depth = 2").rows(runs[:1])
    assert {"folder", "val/docs/loss"} <= rows[0].keys() and "model.depth" not in rows[0]


@pytest.mark.parametrize(
    "selection", [Selection(sort="model.dept"), Selection(where="model.dept < 3"), Selection(columns=["model.dept"])]
)
def test_an_unknown_column_is_refused_with_the_nearest(runs, selection):
    with pytest.raises(ValueError, match=r"model\.depth"):
        selection.rows(selection.apply(runs), runs)


def test_an_unknown_status_is_refused(runs):
    with pytest.raises(ValueError, match="finished"):
        Selection(status="finishd")


def test_a_number_that_is_not_finite_is_null_in_json(runs):
    rows = json.loads(to_json(Selection(columns=["val/docs/accuracy"]).rows(runs)))
    assert [row["val/docs/accuracy"] for row in rows] == [0.5, None, 0.5, None]


def test_a_run_without_a_readable_config_is_listed(tmp_path):
    fake_run(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    assert names(Selection(where="status = finished"), read_runs(tmp_path)) == ["run"]


def test_only_validation_values_of_the_kind_are_shown():
    metrics = {"val/docs/loss": 2.5, "val/code/loss": 1.5, "val/docs/bits_per_byte": 1.0, "train/loss": 9.0}
    assert values(metrics, "loss") == "2.5000 1.5000"


def test_the_table_has_a_line_for_each_run_under_the_number_of_runs(runs, capsys):
    print_table(runs)
    text = capsys.readouterr().out
    assert "1 failed, 3 finished" in text
    assert all(part in text for part in ("run0", "3.0000", "run3", "failed"))


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_the_table_of_runs_holds_the_width_of_the_terminal_and_the_names_stay_whole(runs, width, capsys, monkeypatch):
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(runs)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= (width or WIDTH) and all(any(run.name in line for line in lines) for run in runs)
    assert ("bits/byte" in "".join(lines)) is (width != 60)


def test_the_name_of_a_folder_is_no_markup(tmp_path, capsys):
    for name in ("exp[v2]", "exp[old]"):
        fake_run(tmp_path / name, [])
    print_table(read_runs(tmp_path))
    printed = capsys.readouterr().out
    assert "exp[v2]" in printed and "exp[old]" in printed


def test_asked_columns_are_printed_with_their_names(runs, capsys):
    rows = Selection(columns=["model.depth", "val/docs/loss"]).rows(runs[:2])
    print_columns(runs[:2], rows)
    text = capsys.readouterr().out
    assert all(part in text for part in ("2 finished", "model.depth", "val/docs/loss", "3", "4")) and "run0" not in text
