"""The index of configs returns what the files say, and reads a file again when it has changed."""

import json
import os

import pytest
import yaml

from kleiber.config.errors import ConfigError
from kleiber.records import catalog, config_index
from kleiber.records.catalog import read_runs
from kleiber.records.config_index import ConfigIndex


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Three folders with a config, and an empty cache."""
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    for number in range(3):
        write(tmp_path / "runs" / f"run{number}", {"seed": number, "model": {"width": 64}})
    return tmp_path / "runs"


def write(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def seeds(place):
    index = ConfigIndex(place)
    found = [index.read(folder)["seed"] for folder in sorted(place.iterdir())]
    index.save()
    return found


def test_a_config_is_read_once_and_again_when_its_file_changes(place, monkeypatch):
    assert seeds(place) == [0, 1, 2]
    read = []
    original = config_index.read_config
    monkeypatch.setattr(config_index, "read_config", lambda folder: read.append(folder.name) or original(folder))
    assert seeds(place) == [0, 1, 2] and read == []
    write(place / "run1", {"seed": 10})
    assert seeds(place) == [0, 10, 2] and read == ["run1"]
    write(place / "run1", {"seed": 20})  # of the same size, at another time
    os.utime(place / "run1" / "config.yaml", ns=(1, 1))
    assert seeds(place) == [0, 20, 2] and read == ["run1", "run1"]


def test_keys_that_json_would_change_are_not_indexed(place):
    write(place / "run0", {"seed": 0, "names": {1: "one"}})
    for _ in range(2):
        index = ConfigIndex(place)
        assert index.read(place / "run0")["names"] == {1: "one"}
        index.save()


def test_an_index_that_cannot_be_used_is_no_error_and_a_missing_config_is_one(place, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / config_index.FILE).write_text("no database")
    assert seeds(place) == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        ConfigIndex(place).read(place / "run9")


def test_many_runs_are_read_through_the_index(place, monkeypatch):
    monkeypatch.setattr(catalog, "MANY", 2)
    runs = read_runs(place)
    assert [run.config["seed"] for run in runs] == [0, 1, 2] and all(run.index is not None for run in runs)
    runs[0].index.save()
    monkeypatch.setattr(config_index, "read_config", lambda folder: pytest.fail("was read again"))
    assert json.dumps([run.config for run in read_runs(place)]) == json.dumps([run.config for run in runs])
