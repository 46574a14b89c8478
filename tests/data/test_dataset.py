"""Where text is found, and what is wrong with a place where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from kleiber.config import hub
from kleiber.data.labelled import Labelled
from kleiber.data.text import Text

CARD = """---
dataset_info:
  features:
    - name: text
      dtype: string
    - name: label
      dtype:
        class_label:
          names:
            '0': bad
            '1': good
configs:
- config_name: default
  data_files:
  - split: train
    path: a.jsonl
  - split: test
    path: b.jsonl
---
"""


def test_tables_of_several_kinds_are_joined_and_those_without_the_columns_are_left_out(
    tmp_path: Path, cache: Path
) -> None:
    rows = [{"text": f"row {i} of a few", "label": i % 2} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    (tmp_path / "b.json").write_text(json.dumps(rows[10:20]))
    lines = ["text,label", *(f"{row['text']},{row['label']}" for row in rows[20:])]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    (tmp_path / "d.tsv").write_text("word\tcount\na\t1\n")
    (tmp_path / "notes.md").write_text("no table")
    corpus = Labelled(str(tmp_path)).prepare(32)
    noted = corpus.manifest[corpus.name]["read"]
    assert len(corpus.train) + len(corpus.validation[corpus.name]) == 30 and corpus.label_names == ["0", "1"]
    assert {entry["name"]: entry["reason"] for entry in noted["left_out"]} == {
        "d.tsv": "without the columns", "notes.md": "no table"
    }  # fmt: skip
    (tmp_path / "e.csv").write_text("word,count\na,1\n")
    with pytest.raises(ValueError, match=r"has c\.csv with the columns text, label, and e\.csv with word, count"):
        Labelled(str(tmp_path)).prepare(32)


def test_a_data_set_of_several_configs_names_the_key(tmp_path: Path, cache: Path) -> None:
    files = "".join(f"- config_name: {c}\n  data_files: {c}.jsonl\n" for c in ("first", "second"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "some words of text"}\n')
    for config, wrong in ((None, "has several configs"), ("third", "has no config third")):
        with pytest.raises(ValueError, match=f"{wrong}: set data.config to one of first, second; .*/first$"):
            Text(str(tmp_path), config).prepare(4)
    assert Text(str(tmp_path), "second").prepare(4).config == "second"


def test_a_card_keeps_its_splits_and_the_names_of_its_classes(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    for name, count in (("a", 12), ("b", 4), ("train", 3)):
        lines = [json.dumps({"text": f"{name} {i}", "label": i % 2}) + "\n" for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    corpus = Labelled(str(tmp_path), name="cards").prepare(16)
    assert corpus.label_names == ["bad", "good"] and (len(corpus.train), len(corpus.validation["cards"])) == (12, 4)
    (line,) = corpus.reading.files
    assert "2 files" in line and "2 in no split (README.md, train.jsonl)" in line


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
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=r"data\.path=.*pipe\.txt must be a regular file"):
        Text(str(tmp_path / "pipe.txt")).prepare(8)
    (tmp_path / "nothing" / "empty.txt").touch()
    (tmp_path / "nothing" / ".hidden.txt").write_text("hidden")
    with pytest.raises(ValueError, match=r"left out are 1 file, 6 bytes: 1 hidden \(\.hidden\.txt\)"):
        Text(str(tmp_path / "nothing")).prepare(8)


def test_an_unreachable_hub_is_reported_within_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address) or [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"KLEIBER_DATA=DIR.*data\.path.*data=builtin"):
        Text("no-one/nothing").prepare(8)
    assert asked == []


def test_a_misspelled_folder_names_the_similar_one(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="'notes'"):
        Text("notesss").prepare(8)


def test_a_copy_without_the_default_config_takes_its_first(
    shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    corpus = Text("roneneldan/TinyStories").prepare(64)
    assert (corpus.name, corpus.config) == ("tinystories", "v1-sample")
