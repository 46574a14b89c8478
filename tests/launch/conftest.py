"""A cell of a sweep, written to its folder and never trained."""

from collections.abc import Callable

import pytest

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
