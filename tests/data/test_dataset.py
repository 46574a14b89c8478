"""Where text is found, and what is wrong with a place where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from kleiber.config import hub
from kleiber.data.text import Text


def test_a_folder_of_several_kinds_of_files_is_refused(tmp_path: Path, cache: Path) -> None:
    """`datasets` would read the commonest and leave the others out in silence."""
    for name in ("a.txt", "b.txt", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": "some words"}) + "\n")
    with pytest.raises(ValueError, match=r"2 \.txt and 1 \.jsonl"):
        Text(str(tmp_path)).prepare(16, cache)


def test_a_broken_line_of_json_is_named_with_its_number(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"text": bad}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
        Text(str(path)).prepare(8)


def test_empty_and_missing_places_are_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"data\.path=.*nothing"):
        Text(str(tmp_path / "nothing")).prepare(8)
    with pytest.raises(ValueError, match=r"data\.path=.*absent\.txt"):
        Text(str(tmp_path / "absent.txt")).prepare(8)
    (tmp_path / "data.xyz").write_text("x")
    with pytest.raises(ValueError, match=r"data\.path=.*data\.xyz .*\.txt, \.jsonl"):
        Text(str(tmp_path / "data.xyz")).prepare(8)


def test_an_unreachable_hub_is_reported_within_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address) or [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"KLEIBER_DATA=DIR.*data\.path.*data=builtin"):
        Text("no-one/nothing").prepare(8)
    assert asked == []


def test_a_copy_without_the_default_config_takes_its_first(
    shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    corpus = Text("roneneldan/TinyStories").prepare(64)
    assert (corpus.name, corpus.config) == ("tinystories", "v1-sample")
