"""The losses that a search compares: those of finished runs with a single validation set, or of planned runs."""

import math
from pathlib import Path

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.runs.inherit import planned_run
from kleiber.studies.designs.trial_losses import losses_of
from kleiber.studies.search_trials import read_trials
from tests.studies.search_runs import Folder

CELLS = {n: [f"optimizer.lr={rate}", "seed=0", "budget.tokens=1000", f"study.arm=trial{n}"]
         for n, rate in enumerate((0.1, 0.2, 0.3))}  # fmt: skip


def write(folder: Path, metrics: list[dict[str, float]]) -> None:
    for number, values in enumerate(metrics):
        config = {"seed": 0, "study": {"arm": f"trial{number}"}, "budget": {"tokens": 1000},
                  "design": {"keys": {"optimizer.lr": [0.1, 0.2, 0.3]}}}  # fmt: skip
        fake_run(folder / f"run{number}", [{"metrics": values}], config=config, overrides=CELLS[number])


def test_losses_are_those_of_the_runs_and_inf_without_a_finite_one(tmp_path):
    write(tmp_path, [{"val/docs/loss": 2.0}, {"val/docs/loss": math.nan}])
    assert losses_of(Folder(tmp_path), CELLS) == {0: 2.0, 1: math.inf, 2: math.inf}


def test_planned_runs_have_equal_losses(tmp_path):
    write(tmp_path, [{"val/docs/loss": 2.0}])
    context = Folder(tmp_path)
    context.planned = lambda: [planned_run(tmp_path / f"plan{n}", {"data": {}}, CELLS[n]) for n in (1, 2)]
    context.runs = lambda: [*read_runs(tmp_path), *context.planned()]
    assert losses_of(context, CELLS) == {0: 2.0, 1: 0.0, 2: 0.0}


@pytest.mark.parametrize(
    ("metrics", "count"), [({"val/docs/loss": 2.0, "val/code/loss": 1.0}, "2 validation losses"), ({}, "0 validation")]
)
def test_runs_without_exactly_one_validation_loss_are_refused(tmp_path, metrics, count):
    write(tmp_path, [metrics] * 3)
    with pytest.raises(ValueError, match=count):
        losses_of(Folder(tmp_path), CELLS)
    with pytest.raises(ValueError, match=count):
        read_trials(read_runs(tmp_path))
