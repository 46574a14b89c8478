"""Trials are read by their number, length and seed; runs of another search under the same names are refused."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.designs.search import Search as Design
from kleiber.studies.search_trials import last_loss, read_trials
from tests.studies.search_runs import KEYS, train


def test_trials_have_their_values_losses_and_held_out_seeds(tmp_path):
    train(tmp_path, Design(KEYS, trials=6, tokens=["100K", "400K"], finalists=2, seeds=2, controls=0))
    trials = read_trials(read_runs(tmp_path))
    assert list(trials.values) == [f"trial{n}" for n in range(6)] and set(trials.values["trial0"]) == set(KEYS)
    assert [len(losses) for losses in trials.searched.values()] == [6, 2] and list(trials.searched) == [1e5, 4e5]
    assert len(trials.finalists) == 2 and all(list(by_seed) == [1, 2] for by_seed in trials.finalists.values())
    name = next(iter(trials.finalists))
    assert last_loss(trials, name) == trials.searched[4e5][name]


def test_overrides_of_the_command_that_continued_a_search_are_no_searched_keys(tmp_path):
    design = Design(KEYS, trials=6, tokens=["100K", "400K"], finalists=2, seeds=2, controls=0)
    train(tmp_path, design)
    before = read_trials(read_runs(tmp_path))
    for path in tmp_path.glob("*-400000-*/overrides.yaml"):
        path.write_text(path.read_text() + "- launcher.workers=2\n")
    assert read_trials(read_runs(tmp_path)) == before and set(before.values["trial0"]) == set(KEYS)


def test_runs_of_two_searches_in_one_folder_are_refused(tmp_path):
    train(tmp_path / "a", Design(KEYS, trials=4, finalists=1))
    train(tmp_path / "b", Design(KEYS, trials=4, finalists=1, sampler_seed=1))
    with pytest.raises(ValueError, match="name=NEW_NAME"):
        read_trials(read_runs(tmp_path))
