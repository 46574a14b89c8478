"""Runs with task scores: last checkpoints are averaged, and bad tables are refused with row and column."""

import numpy as np
import pandas as pd
import pytest

from kleiber_topics.task_scores.runs import read_runs

from .tables import scores

ROLES = {"N": "N", "D": "D", "loss": "loss", "acc": "acc"}


def test_the_last_five_checkpoints_of_a_run_are_one_run():
    frame = scores().loc[np.repeat(np.arange(20), 8)].reset_index(drop=True)
    step = np.tile(np.arange(8), 20)
    frame = frame.assign(run=np.repeat(np.arange(20), 8), D=frame["D"] * (1 + step), acc=0.3 + 0.01 * step)
    runs = read_runs(frame.sample(frac=1, random_state=0), {**ROLES, "run": "run"})
    assert len(runs) == 20 and runs.acc == pytest.approx(np.full(20, 0.35))
    assert runs.noise == pytest.approx(0.01 * np.std([3, 4, 5, 6, 7], ddof=1))
    assert sorted(runs.D) == pytest.approx(sorted(8 * scores()["D"]))


def test_runs_without_scores_can_be_predicted():
    runs = read_runs(scores()[["N", "D"]], {"floor": "0.25"}, fitted=False)
    assert np.isnan(runs.acc).all() and runs.floor == pytest.approx(np.full(20, 0.25))
    assert len(runs.keep(runs.N > 1e9)) == 4 and set(runs.keep(runs.N > 1e9).compute) <= set(runs.compute)


def changed(column, row, value):
    frame = scores()
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "roles", "words"),
    [
        (changed("acc", 3, 1.2), {}, ["row 3", "'acc'", "between 0 and 1", "1.2"]),
        (changed("acc", 4, -0.1), {}, ["row 4", "'acc'", "-0.1"]),
        (changed("N", 2, 0.0), {}, ["row 2", "'N'", "> 0"]),
        (changed("loss", 5, float("nan")), {}, ["row 5", "'loss'", "finite"]),
        (scores(), {"floor": "0.97"}, ["0.97", "above every score", "row", "'acc'"]),
        (scores().assign(chance=1.5), {"floor": "chance"}, ["row 0", "'chance'", "< 1"]),
        (scores().assign(N=1e8), {}, ["1e+08", "row 0", "column 'N'", "several sizes"]),
        (scores()[:5], {}, ["5 runs", "row 4", "at least 6"]),
        (scores(), {"acc": "score"}, ["'score'", "acc=score"]),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_row_and_column(frame: pd.DataFrame, roles, words):
    with pytest.raises(ValueError) as error:
        read_runs(frame, {**ROLES, **roles})
    assert [word for word in words if word not in str(error.value)] == []
