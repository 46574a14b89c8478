"""The page of a stream, and a decision as text and as JSON."""

import re
from pathlib import Path

import pytest
from topics.gate.streams import begin, install, last, propose

from kleiber_topics.gate.chain import read_rows
from kleiber_topics.gate.engine import Gate
from kleiber_topics.gate.report import decision_json, decision_lines, status_lines, write_report
from kleiber_topics.gate.state import replay

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def stream(tmp_path, monkeypatch):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "stream")
    propose(tmp_path / "stream", "better", "--gain=0.05 --as=better")
    propose(tmp_path / "stream", "<b>worse</b>", "--gain=-0.05 --as=worse")
    return Gate.load(tmp_path / "stream")


@pytest.mark.slow
def test_the_page_has_accepted_and_rejected_changes_and_escapes_hostile_names(stream):
    page = write_report(stream).read_text()
    assert "1 of 2 proposals were kept: better." in page
    assert "&lt;b&gt;worse" in page
    assert "<b>worse" not in page
    assert "error that is left" in page


def test_a_decision_has_the_keys_that_programs_read(stream):
    row = decision_json(stream, last(stream.home))
    assert {*row} == {
        "schema", "name", "decision", "value", "lo", "hi", "n", "unit", "runs", "error_spent", "error_left", "baseline",
        "reserve", "why", "next",
    }  # fmt: skip
    assert row["reserve"] == {"value": None, "lo": None, "hi": None}


def test_decisions_and_status_are_text_for_people(stream):
    assert any("discard" in line for line in decision_lines(stream, last(stream.home)))
    assert any("1 kept, 1 discarded" in line for line in status_lines(stream))


def test_the_worked_night_of_the_guide_is_that_of_the_recorded_log():
    rows = read_rows(REPOSITORY / "examples/gate/night.jsonl")
    decisions = [row for row in rows if row["kind"] == "decision"]
    guide = (REPOSITORY / "docs/guides/gate.md").read_text()
    for row in decisions:
        ends = f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"
        shown = re.escape("identical" if row["why"].startswith("identical") else ends)
        name = re.escape(row["name"])
        assert re.search(rf"\| {name} \| [^|]+ \| {row['decision']} \| {shown} \| {row['runs']} \|", guide)
    state = replay(rows)
    assert f"{len(decisions)} changes" in guide
    assert f"{state.runs} runs" in guide
