"""The figures of a search: a point for each trial and key, and the finalists with their intervals."""

import math

import pandas as pd
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.designs.search import Search as Design
from kleiber.studies.search import Search
from tests.studies.search_runs import KEYS, train


@pytest.mark.slow
def test_every_trial_and_finalist_is_drawn(tmp_path):
    train(tmp_path, Design(KEYS, trials=8, tokens=["100K"], finalists=2, seeds=2))
    found = Search().analyze(read_runs(tmp_path))
    charts = {name: make().to_dict() for name, make in found.figures.items()}
    assert list(charts) == ["tuning_curve", "keys", "finalists"]
    assert "after 100,000 tokens" in str(charts["tuning_curve"]["title"]["subtitle"])
    drawn = [pd.DataFrame(rows) for rows in charts["keys"]["datasets"].values()]
    assert len(drawn) == 3 and all(len(rows) == 8 for rows in drawn)
    for rows in drawn:
        above = rows["kind"] == "above the axis"
        assert above.any() and rows[above]["value"].min() > rows[~above]["value"].max(), "triangles hide no trial"
    (means,) = [rows for rows in charts["finalists"]["datasets"].values() if "other" in rows[0]]
    assert {row["name"] for row in means} == {row["trial"] for row in found.tables["Finalists on held-out seeds"]}


def test_trials_that_depend_on_each_other_have_a_curve_of_the_lowest_loss_so_far(tmp_path):
    train(tmp_path, Design(KEYS, trials=8, tokens=["100K"], finalists=2, seeds=2, sampler="tpe"))
    found = Search().analyze(read_runs(tmp_path))
    curve = found.tables["Tuning curve"]
    assert {(row["lo"], row["hi"]) for row in curve} == {(None, None)}
    assert curve[-1]["mean"] == min(row["loss at 100,000 tokens"] for row in found.tables["Trials"])
    assert (
        found.figures["tuning_curve"]().to_dict()["title"]["subtitle"] == "the lowest loss so far after 100,000 tokens"
    )


def test_a_search_whose_trials_all_diverged_has_no_figures(tmp_path):
    train(tmp_path, Design(KEYS, trials=8, tokens=["100K"]), lambda *_: math.nan)
    assert Search().analyze(read_runs(tmp_path)).figures == {}
