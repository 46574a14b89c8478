"""What a judge is shown: in order, once, and on from where a killed judge stopped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kleiber_topics.judging.judgments import Comparison, read_judgments
from kleiber_topics.judging.session import Session, StaleItem


def pairs(count: int = 3) -> list[Comparison]:
    return [Comparison(i, f"p{i}", f"l{i}", f"r{i}", "a", "b") for i in range(count)]


def items(path) -> list[int]:
    return [judgment.comparison.item for judgment in read_judgments(path)]


def test_every_choice_is_written_at_once_and_the_names_are_not_shown(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("kleiber_topics.judging.session.time", SimpleNamespace(monotonic=lambda: now[0]))
    session = Session(pairs(), tmp_path / "j", "me")
    state = session.state()
    assert state == {"done": 0, "total": 3, "judge": "me", "item": 0, "prompt": "p0", "left": "l0", "right": "r0"}
    now[0] = 103.5
    session.choose(0, "left")
    (judgment,) = read_judgments(tmp_path / "j")
    assert (judgment.choice, judgment.judge, judgment.comparison) == ("left", "me", pairs()[0])
    assert judgment.seconds == 3.5 and session.state()["item"] == 1


def test_a_new_session_goes_on_where_the_killed_one_stopped(tmp_path):
    Session(pairs(), tmp_path / "j", "me").choose(0, "tie")
    assert Session(pairs(), tmp_path / "j", "me").state()["item"] == 1
    other = Session(pairs(), tmp_path / "j", "other")
    assert other.state()["item"] == 0 and other.state()["done"] == 0


def test_back_removes_the_last_judgment_of_this_judge(tmp_path):
    mine, theirs = Session(pairs(), tmp_path / "j", "me"), Session(pairs(), tmp_path / "j", "x")
    mine.choose(0, "left")
    mine.choose(1, "right")
    theirs.choose(0, "right")
    mine.back()
    assert mine.state()["item"] == 1 and items(tmp_path / "j") == [0, 0]
    mine.back()
    mine.back()
    assert mine.state()["item"] == 0 and mine.state()["done"] == 0
    assert [j.judge for j in read_judgments(tmp_path / "j")] == ["x"]


def test_a_skipped_comparison_comes_last(tmp_path):
    session = Session(pairs(), tmp_path / "j", "me")
    session.skip(0)
    for item in (1, 2, 0):
        session.choose(item, "both bad")
    assert session.state()["item"] is None and session.state()["done"] == 3


def test_a_key_that_was_pressed_twice_changes_nothing(tmp_path):
    session = Session(pairs(), tmp_path / "j", "me")
    session.choose(0, "left")
    for late in (lambda: session.choose(0, "left"), lambda: session.skip(0)):
        with pytest.raises(StaleItem):
            late()
    with pytest.raises(ValueError, match="choice='up' must be one of left, right, tie, both bad"):
        session.choose(1, "up")
    assert items(tmp_path / "j") == [0]
