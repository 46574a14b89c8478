"""The page of a stream, and a decision as text and as JSON."""

import json
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


GUIDE = (REPOSITORY / "docs/guides/gate.md").read_text()


@pytest.mark.parametrize("night", ["night", "night_kleiber"])
def test_the_worked_nights_of_the_guide_are_those_of_the_recorded_logs(night):
    rows = read_rows(REPOSITORY / f"examples/gate/{night}.jsonl")
    decisions = [row for row in rows if row["kind"] == "decision"]
    for row in decisions:
        ends = "" if row["value"] is None else f"{row['value']:+.3f} [{row['lo']:+.3f}, {row['hi']:+.3f}]"
        shown = re.escape("identical" if row["why"].startswith("identical") else ends or row["why"].split(":")[0])
        name = re.escape(row["name"])
        assert re.search(rf"\| {name} \| [^|]+ \| {row['decision']} \| {shown} \| {row['runs']} \|", GUIDE)
    assert f"{len(decisions)} changes took {replay(rows).runs} runs" in GUIDE


def test_the_table_of_the_guide_is_that_of_the_recorded_simulation():
    record = json.loads((REPOSITORY / "benchmarks/results/gate.json").read_text())["rows"]
    rules = {
        "kleiber gate": "kleiber", "the same with an e-value": "e-value", "five pairs, Benjamini-Hochberg": "fixed",
        "one run, better than the best so far": "greedy single run",
        "one run, better by 2 median absolute deviations": "MAD rule",
        "three seeds, bootstrap interval": "bootstrap of three seeds",
    }  # fmt: skip
    for label, rule in rules.items():
        normal, drift, recipes = (
            next(row for row in record if (row["noise"], row["error"], row["rule"]) == (noise, "keep", rule))
            for noise in ("normal", "drift", "recipes")
        )
        cells = [
            text
            for row in (normal, drift, recipes)
            for text in (f"{100 * row['false_keep_share']:.1f}%", f"{row['power']:.2f}")
        ]
        cells.insert(2, f"{normal['runs_per_proposal']:.1f}")
        assert f"| {label} | {' | '.join(cells)} |" in GUIDE
