"""Data sets of evaluations: which split and which configs a name stands for, and text that is what training reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from tables import folder

from kleiber.data.evaluation_sets import fingerprint, held_out_split, open_sets
from kleiber.data.text import Text
from kleiber.data.tokenizers import Bytes


def rows(name: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{name} {i} " * 3} for i in range(count)]


def configs(home: Path, *names: str) -> Path:
    """A folder in hub layout with a config of each name, whose only split is train."""
    files = []
    for name in names:
        folder(home / name, train=rows(name, 4))
        path = next((home / name).glob("train*")).relative_to(home)
        files.append(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {path}\n")
    (home / "README.md").write_text(f"---\nconfigs:\n{''.join(files)}---\n")
    return home


def test_the_validation_split_comes_before_the_test_split_and_a_single_split_is_whole() -> None:
    assert held_out_split({"train": 1, "test": 1, "validation": 1}) == "validation"
    assert held_out_split({"train": 1, "test": 1}) == "test"
    assert held_out_split({"train": 1}) == "train"


def test_the_text_is_the_validation_text_of_training(cache_dir: Path, tmp_path: Path) -> None:
    home = folder(tmp_path / "t", train=rows("a", 30), validation=rows("b", 7))
    (data,) = open_sets(str(home), Bytes(), 16)
    (trained,) = Text(str(home)).prepare(16).validation.values()
    samples = data.samples()
    assert (samples.num_tokens, samples.num_bytes) == (trained.num_tokens, trained.num_bytes)
    assert data.columns == ("text",) and data.rows(2) == rows("b", 7)[:2] and data.group is None


def test_a_file_is_read_whole(cache_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("abc" * 50)
    (data,) = open_sets(str(path), Bytes(), 16)
    assert data.samples().num_bytes == 150 and data.name == "book"
    with pytest.raises(ValueError, match="not a table"):
        data.rows()


def test_the_fingerprint_changes_with_the_content_and_is_the_name_of_built_in_data(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("old")
    before = fingerprint(str(path))
    assert fingerprint(str(path)) == before and fingerprint("builtin/docs") == "builtin/docs"
    path.write_text("newer")
    assert fingerprint(str(path)) != before


def test_a_data_set_of_several_configs_has_a_part_for_each(cache_dir: Path, tmp_path: Path) -> None:
    home = configs(tmp_path / "many", "one", "two")
    parts = open_sets(str(home), Bytes(), 16)
    assert [(part.name, part.group) for part in parts] == [("many/one", "many"), ("many/two", "many")]
    (part,) = open_sets(str(home / "two"), Bytes(), 16)
    assert (part.name, part.group) == ("many/two", None) and part.rows() == rows("two", 4)


def test_a_name_is_looked_up_below_the_folder_of_local_copies(cache_dir: Path, tmp_path: Path, monkeypatch) -> None:
    configs(tmp_path / "many", "one", "two")
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path))
    assert [part.name for part in open_sets("many", Bytes(), 16)] == ["many/one", "many/two"]
    assert [part.name for part in open_sets("many/two", Bytes(), 16)] == ["many/two"]


@pytest.mark.parametrize("name", ["builtin/x", "no file.jsonl", "builtins/"])
def test_what_is_nowhere_is_refused_by_its_name(name: str, cache_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=name):
        open_sets(name, Bytes(), 16)
