"""Cells and sweeps that train nothing: a cell written to its folder, and a trainer that only finishes."""

from collections.abc import Callable

import pytest
from fake_run import write_summary

import kleiber.runs.run
from kleiber.launch.cell import Cell
from kleiber.records.folder import write_config


@pytest.fixture
def cell() -> Callable[..., Cell]:
    """Makes a cell in a folder, with options of its trainer."""

    def make(folder, **trainer) -> Cell:
        config = {"name": "s", "seed": 0, "trainer": {"accelerator": "cpu", "devices": 1, "threads": None, **trainer}}
        write_config(folder, config, [])
        return Cell(folder, config, [])

    return make


@pytest.fixture
def seeds(monkeypatch, tmp_path):
    """Runs cells in this process with a trainer that fails on seed 1, and collects the seeds that were trained."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "KLEIBER_CELL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KLEIBER_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    trained = []

    def train(config, folder, overrides):
        trained.append(config["seed"])
        if config["seed"] == 1:
            raise RuntimeError("unlucky")
        write_summary(folder, name=config["name"])
        return 0

    monkeypatch.setattr(kleiber.runs.run, "train", train)
    return trained
