"""Streams of proposals: what is kept, what it costs, and going on after a kill."""

import json

import pytest
from topics.gate.streams import PLAIN, Killed, begin, install, last, propose, rows

from kleiber_topics.gate.runner import Outcome
from kleiber_topics.gate.state import PAIR_NEW, PAIR_PLAIN, SCREEN
from kleiber_topics.gate.state import PLAIN as PLAIN_ROLE


@pytest.fixture
def trainer(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def home(tmp_path, monkeypatch, trainer):
    monkeypatch.chdir(tmp_path)
    assert begin(tmp_path / "stream") == 0
    return tmp_path / "stream"


def test_a_real_gain_is_kept_and_becomes_the_plain_recipe(home, capsys):
    assert propose(home, "better", "--gain=0.05 --as=better", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["schema"], printed["decision"], printed["name"]) == ("kleiber.gate/1", "keep", "better")
    assert printed["hi"] < 0
    assert printed["lo"] < printed["value"] < printed["hi"]
    assert printed["error_spent"] + printed["error_left"] == pytest.approx(0.1)
    assert propose(home, "back", "--as=back") == 5
    assert last(home)["value"] > 0.02, "it is compared with the recipe that was kept"


def test_what_changes_nothing_or_is_worse_is_discarded(home):
    assert propose(home, "worse", "--gain=-0.05 --as=worse") == 5
    assert propose(home, "null", "--as=null") in (3, 5)
    assert rows(home, "decision")[0]["decision"] == "discard"


def test_a_bit_identical_result_is_discarded_as_identical(home, capsys):
    assert propose(home, "comment", "--comment=1", "--json") == 5
    assert json.loads(capsys.readouterr().out)["why"] == "identical"
    assert len(last(home)["recipe"]["command"]) > len(PLAIN)


def test_a_result_that_is_equal_at_one_seed_alone_is_not_identical(home, trainer, monkeypatch):
    changed = []

    def run(command, *rest):
        outcome = trainer(command, *rest)
        changed.extend([command] * ("--half" in command))
        return Outcome(outcome.value + 0.5 * (len(changed) > 1), 1.0)

    monkeypatch.setattr("kleiber_topics.gate.engine.run_command", run)
    assert propose(home, "half", "--half") == 5
    assert not last(home)["why"].startswith("identical")


def test_pairs_are_at_seeds_that_nothing_has_used(home):
    for name in ("a", "b"):
        propose(home, name, f"--gain=0.03 --as={name}")
    used: dict[int, str] = {}
    for row in rows(home, "run"):
        if row["role"] in (PLAIN_ROLE, PAIR_PLAIN):
            assert row["seed"] not in used
        if row["role"] == PAIR_NEW:
            assert used[row["seed"]] == PAIR_PLAIN
        if row["role"] == SCREEN:
            assert row["seed"] in used
        used.setdefault(row["seed"], row["role"])
    assert PAIR_NEW in {row["role"] for row in rows(home, "run")}


def test_nan_discards_at_once(home):
    assert propose(home, "nan", "--diverge") == 5
    assert "diverged" in last(home)["why"]
    assert len(rows(home, "failure")) == 1


def test_a_run_that_fails_ends_with_1_and_discards_the_second_time(home):
    assert propose(home, "crash", "--crash") == 1
    assert rows(home, "decision") == []
    assert propose(home, "crash", "--crash") == 5
    assert "failed 2 times" in last(home)["why"]


def test_the_budget_of_runs_ends_a_proposal_undecided(tmp_path, trainer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "small", "--budget-runs", "9")
    assert propose(tmp_path / "small", "better", "--gain=0.05 --as=better") == 3
    assert len(trainer.commands) == 9
    assert propose(tmp_path / "small", "again", "--gain=0.05 --as=again") == 3
    assert len(trainer.commands) == 9


def test_a_gain_that_the_reserve_does_not_show_is_not_kept(tmp_path, trainer, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "reserved"
    begin(home, "--reserve", "hidden")
    assert propose(home, "overfit", "--gain=0.05 --gain-on-reserve=-0.02 --as=overfit") == 5
    assert last(home)["reserve"]["value"] > 0
    capsys.readouterr()
    assert propose(home, "real", "--gain=0.05 --as=real", "--json") == 0
    assert json.loads(capsys.readouterr().out)["reserve"]["hi"] < 0
    seen = [command for command in trainer.commands if "--reserve=hidden" in command]
    confirmed = {row["seed"] for row in rows(home, "run") if row["role"].startswith("reserve")}
    assert {f"--seed={seed}" in command for seed in confirmed for command in seen} == {True, False}
    assert len({*confirmed} & {row["seed"] for row in rows(home, "run") if row["role"] in (SCREEN, PAIR_PLAIN)}) == 0


def test_another_size_says_whether_the_gain_shrank(tmp_path, trainer, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "sized"
    begin(home, "--confirm-at", "size=large")
    propose(home, "small gain", "--gain=0.06 --as=small", "--json")
    size = last(home)["size"]
    assert (size["at"], size["gain"]) == ({"size": "large"}, "smaller")
    assert size["ratio"] < 0.5


def test_a_machine_that_measures_differently_is_noticed(home, trainer, monkeypatch):
    monkeypatch.setattr("kleiber_topics.gate.state.RERUN", 3)
    for number in range(3):
        propose(home, f"null {number}", f"--gain=-0.1 --as={number}")
    trainer.shift = 0.5
    propose(home, "after", "--gain=-0.1 --as=after")
    (drift,) = rows(home, "drift")
    assert drift["drifted"]
    assert last(home)["value"] == pytest.approx(0.1, abs=0.04), "it is compared with plain runs of this machine"


@pytest.mark.slow
def test_a_proposal_that_is_killed_after_any_run_goes_on_as_if_it_had_not_been(tmp_path, trainer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = ("better", "--gain=0.03 --as=better")
    begin(tmp_path / "whole")
    code = propose(tmp_path / "whole", *change)
    expected, runs = last(tmp_path / "whole"), len(trainer.commands)
    assert runs > 10
    for stop in range(0, runs, 4):
        home = tmp_path / f"killed-{stop}"
        begin(home)
        trainer.commands.clear()
        trainer.stop = stop
        with pytest.raises(Killed):
            propose(home, *change)
        trainer.stop = None
        assert propose(home, *change) == code
        assert len(trainer.commands) == runs, "no run is repeated"
        assert {key: last(home)[key] for key in ("value", "lo", "hi", "n", "error_left", "decision")} == {
            key: expected[key] for key in ("value", "lo", "hi", "n", "error_left", "decision")
        }


def test_a_decided_proposal_is_not_run_again(home, trainer):
    code = propose(home, "better", "--gain=0.05 --as=better")
    runs = len(trainer.commands)
    assert propose(home, "better", "--gain=0.05 --as=better") == code
    assert len(trainer.commands) == runs
    assert propose(home, "better", "--gain=0.06 --as=better") == 2


def test_a_proposal_that_is_left_open_is_closed_by_the_next(home, trainer):
    trainer.stop = 7
    with pytest.raises(Killed):
        propose(home, "left", "--gain=0.05 --as=left")
    trainer.stop = None
    propose(home, "next", "--as=next")
    first = rows(home, "decision")[0]
    assert (first["name"], first["decision"]) == ("left", "discard")
    assert propose(home, "left", "--gain=-0.05 --as=corrected") == 5, "its name is free again"
    assert last(home)["name"] == "left"


def test_a_command_without_noise_is_refused(tmp_path, trainer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kleiber_topics.gate.engine.seed_of", lambda nonce, number: 1)
    begin(tmp_path / "fixed")
    assert propose(tmp_path / "fixed", "better", "--gain=0.05") == 2
