"""The log of a stream: a row that was edited, deleted, moved, inserted or cut off is seen."""

import json

import pytest
from topics.gate.streams import begin, install, last, propose

from kleiber.launch.cli import main
from kleiber_topics.gate import chain


@pytest.fixture
def log(tmp_path, monkeypatch):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "stream")
    propose(tmp_path / "stream", "worse", "--gain=-0.05 --as=worse")
    propose(tmp_path / "stream", "better", "--gain=0.05 --as=better")
    return tmp_path / "stream" / chain.FILE


def edited(lines):
    row = json.loads(lines[-1])
    return [*lines[:-1], json.dumps({**row, "decision": "keep", "value": -9.0})]


def edited_with_a_new_hash(lines):
    row = json.loads(lines[3])
    row["value"] = 1.0
    row["hash"] = chain.hash_of(row)
    return [*lines[:3], json.dumps(row), *lines[4:]]


def rewritten(lines):
    """All rows after an edited one get new hashes, as by somebody who knows how they are made."""
    head, written = chain.START, []
    for number, line in enumerate(lines):
        row = json.loads(line)
        row["previous"] = head
        row["value"] = 2.0 if number == 3 else row.get("value")
        row["hash"] = head = chain.hash_of(row)
        written.append(json.dumps(row))
    return written


def deleted(lines):
    return [*lines[:4], *lines[5:]]


def moved(lines):
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


def doubled(lines):
    return [*lines[:4], lines[4], *lines[4:]]


def cut(lines):
    return lines[:-3]


def without_the_beginning(lines):
    return lines[1:]


ATTACKS = [edited, edited_with_a_new_hash, rewritten, deleted, moved, doubled, cut, without_the_beginning]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("action", ["propose", "status"])
def test_a_changed_log_is_refused(log, attack, action):
    lines = log.read_text().splitlines()
    log.write_text("".join(line + "\n" for line in attack(lines)))
    options = ["--name", "next", "--command", "train {seed} {size}"] if action == "propose" else []
    assert main(["gate", action, str(log.parent), *options]) == 2


def test_a_row_that_a_killed_process_was_writing_is_replaced(log):
    before = len(chain.read_rows(log))
    with log.open("a") as file:
        file.write('{"index": 99, "ki')
    assert len(chain.read_rows(log)) == before
    propose(log.parent, "after", "--gain=-0.05 --as=after")
    assert last(log.parent)["name"] == "after"


def test_the_log_of_another_user_is_refused(log, monkeypatch):
    monkeypatch.setattr("kleiber_topics.gate.settings.os.getuid", lambda: 12345)
    assert main(["gate", "status", str(log.parent)]) == 2
