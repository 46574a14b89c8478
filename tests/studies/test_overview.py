"""The report of runs without a study: the keys that differ, the best run first, curves and parallel coordinates."""

import json

import pytest
from fake_run import fake_run, fake_stage

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.records.completeness import GROUPS
from kleiber.studies.overview import LATE, Overview, axes_of, axis_of, differing_keys, short_names, swept_first

LOSSES = [(1, 0.1, 3.0), (1, 0.2, 2.0), (2, 0.1, 4.0), (2, 0.2, 2.5)]


def write(folder, depth=1, lr=0.1, loss=3.0, *, rows=4, **values):
    config = {
        "model": {"depth": depth, "width": 16 * depth, "_target_": "kleiber.models.Transformer"},
        "optimizer": {"lr": lr}, "batch": {"tokens": 100}, "logger": {"name": folder.name},
        "root": str(folder), "name": "sweep",
    }  # fmt: skip
    logged = [{"step": step, "train/loss": loss + 1 / step, "train/lr": lr} for step in range(1, rows + 1)]
    metrics = {} if loss is None else {"val/docs/loss": loss}
    return fake_run(folder, [{"metrics": metrics}], config=config, rows=logged, **values)


@pytest.fixture
def sweep(tmp_path):
    for number, (depth, lr, loss) in enumerate(LOSSES):
        write(tmp_path / "sweep" / f"run{number}", depth, lr, loss)
    return tmp_path / "sweep"


def test_only_keys_that_differ_and_can_change_the_result_are_columns(sweep):
    keys = differing_keys(read_runs(sweep))
    assert keys[str(sweep / "run2")] == {"model.depth": 2, "model.width": 32, "optimizer.lr": 0.1}


def test_the_best_run_comes_first_and_the_headline_names_best_and_worst(sweep):
    findings = Overview().analyze(read_runs(sweep))
    rows = findings.tables["Runs"]
    assert [row["val/docs/loss"] for row in rows] == [2.0, 2.5, 3.0, 4.0] and next(iter(rows[0])) == "val/docs/loss"
    for part in ("4 of 4", "2.0000 (best: depth=1 width=16 lr=0.2)", "4.0000 (depth=2 width=32 lr=0.1)"):
        assert part in findings.answer
    assert findings.figures.keys() == {"curves", "parallel_coordinates"}


def test_of_a_metric_that_is_no_loss_the_largest_value_is_best(tmp_path):
    for number in range(3):
        fake_run(tmp_path / str(number), [{"metrics": {"val/sst2/accuracy": number / 4}}], config={"seed": number})
    rows = Overview().analyze(read_runs(tmp_path)).tables["Runs"]
    assert [row["val/sst2/accuracy"] for row in rows] == [0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("measure", "order"), [("eval/calibration/text/ece", [0, 1, 2]), ("eval/calibration/text/temperature", [2, 1, 0])]
)
def test_errors_come_lowest_first_and_no_run_is_called_the_best_in_a_measure_of_unknown_direction(
    measure, order, tmp_path
):
    for number in range(3):
        fake_run(tmp_path / str(number), [{"metrics": {measure: float(number)}}], config={"seed": number})
    findings = Overview().analyze(read_runs(tmp_path))
    assert [row[measure] for row in findings.tables["Runs"]] == order
    assert ("(best: " in findings.answer) is (order[0] == 0) and ("(highest: " in findings.answer) is (order[0] == 2)


def test_branches_of_a_trunk_have_rows_of_their_own(tmp_path):
    stages = [
        fake_stage("trunk"),
        *(fake_stage(n, parent="trunk", metrics={"val/docs/loss": float(n[0])}) for n in ("1M", "2M")),
    ]
    fake_run(tmp_path / "run", stages, config={"seed": 0})
    rows = Overview().analyze(read_runs(tmp_path)).tables["Runs"]
    assert [(row["stage"], row["val/docs/loss"]) for row in rows] == [("1M", 1.0), ("2M", 2.0)]


def test_runs_that_failed_or_diverged_are_rows_without_a_line(sweep):
    write(sweep / "run8", 4, 0.4, float("nan"), status="diverged")
    fake_run(sweep / "run9", status="failed", config={"model": {"depth": 8}})
    findings = Overview().analyze(read_runs(sweep))
    assert "4 of 6" in findings.answer
    assert [row["run"] for row in findings.tables["Runs"]][4:] == ["run8", "run9"]
    chart = findings.figures["parallel_coordinates"]().to_dict()
    runs = {row["run"] for rows in chart["datasets"].values() for row in rows if "run" in row}
    assert runs == {"run0", "run1", "run2", "run3"}


def test_a_key_that_follows_from_another_has_no_axis(sweep):
    rows = [{"depth": d, "width": 16 * d, "lr": lr, "loss": loss, "tokens": 5, "params": 1} for d, lr, loss in LOSSES]
    assert [axis.name for axis in axes_of(rows, ["depth", "width", "lr"], "loss")] == ["depth", "lr", "loss"]
    assert axes_of([], ["depth"], None) == []


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([1, 2, 3], {1: 0.0, 2: 0.5, 3: 1.0}),
        ([0.01, 0.1, 1.0], {0.01: 0.0, 0.1: 0.5, 1.0: 1.0}),
        (["b", "a", None], {None: 0.0, "a": 0.5, "b": 1.0}),
        ([True, False], {False: 0.0, True: 1.0}),
        (["4M", "16M", "1M"], {"1M": 0.0, "4M": 0.5, "16M": 1.0}),
        ([100, 20, "auto"], {"auto": 0.0, 20: 0.5, 100: 1.0}),
        ([2, 2], {2: 0.0}),
    ],
)
def test_numbers_are_placed_by_size_and_other_values_in_order(values, places):
    placed = axis_of("x", values).places
    order = sorted(placed, key=placed.get)
    assert placed == pytest.approx(places) if None not in places else sorted(placed.values()) == [0.0, 0.5, 1.0]
    assert len(order) == len(places)


def test_names_are_as_short_as_they_can_be():
    assert short_names(["model.mlp._target_", "model.width", "mlp.width", "val/docs/loss"]) == [
        "mlp", "model.width", "mlp.width", "loss",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_report_of_150_runs_with_many_rows_is_written_only_where_it_was_asked_for(tmp_path, capsys):
    for number in range(150):
        write(tmp_path / "sweep" / f"run{number}", 1 + number % 3, 0.1 * (number + 1), 2 + number / 150, rows=60)
    before = sorted((tmp_path / "sweep").rglob("*"))
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "sweep"), "--out", str(out)]) == 0
    page = out.read_text()
    assert "150 of 150" in capsys.readouterr().out and "run149" in page and len(page) < 8e6
    assert sorted((tmp_path / "sweep").rglob("*")) == before


@pytest.mark.slow
def test_a_single_run_has_a_report_with_figures(tmp_path):
    folder = write(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert json.loads((folder / "findings.json").read_text())["tables"]["Runs"][0]["val/docs/loss"] == 3.0
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png", "curves.svg"}


@pytest.mark.parametrize(
    ("written", "loss", "outcome"),
    [
        ("2025-12-31T00:00:00Z", 3.0, "inside"),
        ("2025-12-31T00:00:00Z", 3.3, "outside"),
        ("2026-01-02T00:00:00Z", 3.0, LATE),
    ],
)
def test_a_report_says_whether_the_loss_is_inside_its_forecast(tmp_path, written, loss, outcome):
    write(tmp_path / "sweep" / "run", loss=loss, config_hash="0123abcd")
    predicted = {"value": 3.1, "lo": 2.9, "hi": 3.2, "level": 0.9}
    forecast = {"schema": "kleiber.forecast/1", "config_hash": "0123abcd", "written": written, "predicted": predicted}
    (tmp_path / "sweep" / "forecast.json").write_text(json.dumps(forecast))
    findings = Overview().analyze(read_runs(tmp_path / "sweep"))
    (row,) = findings.tables["Forecasts"]
    assert (row["outcome"], row["loss"], row["lo"]) == (outcome, loss, 2.9) and outcome in findings.answer


def test_runs_that_have_logged_nothing_are_refused(tmp_path, capsys):
    fake_run(tmp_path / "run", status="failed")
    assert main(["report", str(tmp_path)]) == 2
    assert "logged" in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_a_run_whose_damaged_config_its_curves_need_is_named(tmp_path, capsys):
    """The config was cut behind a whole line, and its stage has recorded nothing yet."""
    rows = [{"step": step, "train/loss": 3.0 - step / 10} for step in range(1, 4)]
    whole = {name: {"x": 1} for name in GROUPS} | {"batch": {"tokens": 16}}
    runs = {"run": whole, "cut": {"model": {"x": 1}}}
    for name, config in runs.items():
        fake_run(tmp_path / name, [], status="preempted", config=config, rows=rows)
    assert main(["report", str(tmp_path)]) == 2
    assert "/cut: its config has no group data" in capsys.readouterr().err


def test_keys_that_were_swept_come_before_the_others():
    keys = {"model._target_": "GPT", "model.width": 16, "optimizer.lr": 0.1}
    assert [*swept_first(keys, ["optimizer.lr=0.1", "model=gpt", "seed=0"])] == ["optimizer.lr", "model._target_"]
