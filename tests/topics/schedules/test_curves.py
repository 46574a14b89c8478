"""Bad curves are refused with row and column; our own runs are read from their folders."""

import numpy as np
import pytest
from fake_run import fake_run

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber_topics.schedules.curves import distinct_schedules, read_curves, rows_of_runs

from .planted import ROLES, curves, fit


def spoiled(column, row, value):
    table = curves(("constant", "cosine"), every=120)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ("step", 7, 120.0), ("step", 7, 840.0), ("step", 7, np.nan), ("rate", 3, np.nan), ("rate", 0, 0.0),
        ("rate", 5, -1e-4), ("loss", 20, np.nan), ("loss", 20, np.inf), ("loss", 20, 0.0),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_row_and_column(column, row, value, tmp_path, capsys):
    spoiled(column, row, value).to_csv(tmp_path / "curves.csv", index=False)
    command = ["fit", str(tmp_path / "curves.csv"), "--law", "schedule", "--map", "run=schedule,lr=rate"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"column {column!r}" in error and f"row {row}," in error


def test_few_losses_and_a_missing_run_are_refused():
    table = curves(("constant", "cosine"), every=120)
    for wrong, text in (
        (table.groupby("schedule").head(9), "column 'loss': run 'constant'"),
        (table.assign(schedule=[None, *table["schedule"][1:]]), "row 0 has no value"),
    ):
        with pytest.raises(ValueError, match=text):
            fit(wrong)


def test_rates_before_the_first_loss_count_and_the_rate_may_decay_to_zero():
    table = curves(("constant", "wsd"), every=40)
    table.loc[table["step"] < 1000, "loss"] = np.nan
    table.loc[table["step"] == 12_000, "rate"] = 0.0
    first, _ = read_curves(table, ROLES)
    assert first.at[0] == 1000 and first.steps[0] == 40
    unmeasured = read_curves(table.drop(columns="loss"), ROLES, fitted=False)
    assert sum(len(curve.steps) for curve in unmeasured) == len(table)
    begins = table.assign(step=table["step"] - 40, rate=3e-4, loss=3.0)  # step 0 has no sum of rates
    assert read_curves(begins, ROLES)[0].at[0] == 40


def test_one_schedule_of_two_lengths_is_one_schedule():
    short = curves(("constant",), total=6000).assign(schedule="short")
    both = [
        *read_curves(curves(("constant", "cosine")), ROLES),
        *read_curves(short, ROLES),
    ]
    assert [[curve.name for curve in group] for group in distinct_schedules(both)] == [
        ["constant", "short"],
        ["cosine"],
    ]


def test_a_trunk_and_its_branch_are_one_curve(tmp_path):
    rows = [
        {"step": step, "stage": "trunk", "train/loss": 5 - step / 100, "train/lr": 1.0} for step in range(10, 60, 10)
    ]
    rows += [{"step": step, "stage": "short", "train/loss": 4 - step / 100, "train/lr": 0.5} for step in (30, 40)]
    stages = [
        {"name": "trunk", "trunk": "trunk"},
        {"name": "short", "parent": "trunk", "trunk": "trunk", "branch_step": 20},
    ]
    config = {"schedule": {"_target_": "kleiber.optimizers.WSD"}, "seed": 3}
    fake_run(tmp_path / "a-00000001", stages, rows=rows, config=config)
    table = rows_of_runs(read_runs(tmp_path), {})
    assert table["run"].unique().tolist() == ["a-00000001/short"]
    assert set(table["schedule"]) == {"wsd"} and set(table["seed"]) == {3}
    assert table["step"].tolist() == [10, 20, 30, 40] and table["lr"].tolist() == [1.0, 1.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="'a-00000001/short' has 4 losses"):
        fit(table, roles={})
    with pytest.raises(ValueError, match="train/loss"):
        rows_of_runs(read_runs(tmp_path), {"loss": "val/other/loss"})
