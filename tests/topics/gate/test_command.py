"""The options of kleiber gate: each belongs to one of its actions."""

import pytest
from topics.gate.streams import begin, install

from kleiber.launch.cli import main
from kleiber_topics.gate.chain import FILE


def test_a_folder_without_a_stream_is_refused(tmp_path):
    assert main(["gate", "status", str(tmp_path)]) == 2


@pytest.mark.parametrize("words", ["begin", "propose --level 0.9", "status --name x", "report --seeds 2", "init --ref"])
def test_options_of_another_action_are_refused(tmp_path, monkeypatch, words):
    install(monkeypatch)
    begin(tmp_path / "stream")
    before = (tmp_path / "stream" / FILE).read_bytes()
    action, *options = words.split()
    assert main(["gate", action, str(tmp_path / "stream"), *options]) == 2
    assert (tmp_path / "stream" / FILE).read_bytes() == before
