"""The recorded results: which have their rows, and that their reports follow from the rows."""

import gzip
import json
import re
import shutil
from collections.abc import Iterator

import pytest
from small_run import REPOSITORY

from kleiber.launch.cli import main

RESULTS = REPOSITORY / "multirun" / "results"
LIST = (REPOSITORY / "multirun" / "README.md").read_text(encoding="utf-8")
WITH_ROWS = sorted(path.parent.name for path in RESULTS.glob("*/runs.jsonl.gz"))
MEASURED = {"seconds", "ms a step", "MiB", "minutes"}  # times and memory are of the machine
ALSO = {"six_questions_speed": "six_questions"}  # results that are reported together with another one


def numbers(node: object) -> Iterator[float]:
    """Every number of a nested record, those within its texts included."""
    if isinstance(node, str):
        yield from (float(text) for text in re.findall(r"-?\d*\.\d+|\d+", node))
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in MEASURED:
                yield from numbers(value)
    elif isinstance(node, list):
        for value in node:
            yield from numbers(value)
    elif isinstance(node, int | float):
        yield float(node)


def read(folder) -> list[dict]:
    files = [folder / name for name in ("findings.json", "laws.json") if (folder / name).is_file()]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def test_the_list_of_results_says_which_have_their_rows():
    listed = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", LIST, re.MULTILINE))
    folders = sorted(path.parent.name for path in RESULTS.glob("*/findings.json"))
    assert listed == {name: "yes" if name in WITH_ROWS else "no" for name in folders}


@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_name_no_path_of_a_machine(name):
    text = gzip.decompress((RESULTS / name / "runs.jsonl.gz").read_bytes()).decode()
    assert re.findall(r"\"/(?:home|root|work|tmp|Users)/[^\"]*\"", text) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ROWS)
def test_the_report_of_the_rows_is_the_recorded_one(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("runs.jsonl.gz", "study.yaml"):
        shutil.copy(RESULTS / name / file, folder)
    also = ["--also", str(RESULTS / ALSO[name])] if name in ALSO else []
    assert main(["report", str(folder), *also]) in (0, 3, 5)
    for again, recorded in zip(read(folder), read(RESULTS / name), strict=True):
        assert list(numbers(again)) == pytest.approx(list(numbers(recorded)), rel=1e-9, abs=1e-12)
