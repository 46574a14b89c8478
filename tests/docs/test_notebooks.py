"""The notebooks run from top to bottom, in small, and hold the output of one whole execution."""

import json
import re

import pytest
from small_run import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs/notebooks").glob("*.ipynb"))
SMALLER = (
    (r"budget\.steps=\d+", "budget.steps=2"),
    (r"bootstrap=\d+", "bootstrap=20"),
    ('"-m"', '"-m", "launcher=basic"'),
    ('"logger=csv"', f'"logger=csv", "data=text", "data.path={REPOSITORY / "tests/data/tiny.txt"}"'),
)


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "notebook",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "laws")) for path in NOTEBOOKS],
)
def test_every_cell_runs(notebook, tmp_path, cache_dir, monkeypatch):
    monkeypatch.setenv("KLEIBER_ROOT", str(tmp_path))
    monkeypatch.chdir(notebook.parent)
    names = {"__name__": "notebook"}
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        for pattern, smaller in SMALLER:
            source = re.sub(pattern, smaller, source)
        exec(compile(source, notebook.name, "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_recorded_output_is_of_one_whole_execution(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} <= {
        "stream", "execute_result", "display_data",
    }  # fmt: skip
