"""What the rows of a log say: seeds that nobody chose, and a state that follows from the rows alone."""

import pytest
from topics.gate.streams import begin, install, propose, rows

from kleiber_topics.gate.state import MOST_SEED, replay, seed_of


def test_seeds_differ_between_streams_and_are_in_range():
    seeds = [seed_of(nonce, number) for nonce in ("a", "b") for number in range(500)]
    assert len({*seeds}) == len(seeds)
    assert all(0 < seed <= MOST_SEED for seed in seeds)


def test_the_state_after_a_keep_has_the_changed_recipe_and_its_runs(tmp_path, monkeypatch):
    trainer = install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "stream")
    propose(tmp_path / "stream", "better", "--gain=0.05 --as=better")
    state = replay(rows(tmp_path / "stream"))
    assert state.name == "better"
    assert state.runs == len(trainer.commands)
    assert all(-gain == pytest.approx(2.95, abs=0.05) for gain in state.stream.plain)
    assert state.stream.budget.tests == state.stream.budget.kept == 1
