"""The recorded results: which have their rows, and that their reports follow from the rows."""

import gzip
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress

import pytest
import yaml
from declared_metrics import declared
from small_run import REPOSITORY

from kleiber.config.labels import data_label
from kleiber.launch.cli import main

RESULTS = REPOSITORY / "multirun" / "results"
LIST = (REPOSITORY / "multirun" / "README.md").read_text(encoding="utf-8")
WITH_ROWS = sorted(path.parent.name for path in RESULTS.glob("*/runs.jsonl.gz"))
OBJECTIVES = ("clm", "classify", "dpo", "grpo")  # of recorded runs whose scorers have metrics of their own
INTERVAL = re.compile(r"\[([-+]?[\d.]+)%?, ([-+]?[\d.]+)%?\]")
MEASURED = {"seconds", "ms a step", "MiB", "minutes"}  # times and memory are of the machine


def numbers(node: object) -> Iterator[float]:
    """Every number of a nested record, those within its texts included, and intervals within its texts left out."""
    if isinstance(node, str):
        yield from (float(text) for text in re.findall(r"-?\d*\.\d+|\d+", INTERVAL.sub("", node)))
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in MEASURED:
                yield from numbers(value)
    elif isinstance(node, list):
        for value in node:
            yield from numbers(value)
    elif isinstance(node, int | float):
        yield float(node)


def intervals(node: object) -> Iterator[tuple[float, float]]:
    """Every interval within the texts of a nested record."""
    if isinstance(node, str):
        yield from ((float(lo), float(hi)) for lo, hi in INTERVAL.findall(node))
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from intervals(value)


def words(node: object) -> Iterator[str]:
    """Every text of a nested record with its numbers left out: decisions, claims, verdicts."""
    if isinstance(node, str):
        yield re.sub(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", "", node)
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from words(value)


def read(folder, name) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def identified(law: dict) -> dict:
    """The objective and the identified parameters of a law, each with the ends of its interval.

    The rounding of another processor moves a fit along directions that its rows leave flat, so the other numbers of a
    law, such as single refits and backtests of few rows, are equal on one processor only.
    """
    entries = {**law["params"], **law["derived"]}
    values = {name: value for name, value in entries.items() if value["identified"]}
    fitted = [law["n"], law["objective"]["value"], *(value["value"] for value in values.values())]
    ends = [end for value in values.values() for end in (value["lo"], value["hi"])]
    return {"fitted": fitted, "ends": ends}


def test_the_list_of_results_says_which_have_their_rows():
    listed = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", LIST, re.MULTILINE))
    folders = sorted(path.parent.name for path in RESULTS.glob("*/findings.json"))
    assert listed == {name: "yes" if name in WITH_ROWS else "no" for name in folders}


@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_name_no_path_of_a_machine(name):
    text = gzip.decompress((RESULTS / name / "runs.jsonl.gz").read_bytes()).decode()
    assert re.findall(r"\"/(?:home|root|work|tmp|Users)/[^\"]*\"", text) == []


def data_names(name: str) -> str:
    """What figures call the data of recorded runs; `data=arithmetic` names its own, also before a stage on answers."""
    digits = re.fullmatch(r"digits(\d)(-before)?", name)
    return f"sums of {digits[1]} digits" if digits else data_label(name)


def undeclared(stages: Iterable[dict]) -> set[str]:
    """Keys of metrics whose score no class declares as it was recorded, with a direction or explicitly none."""
    fields = ("unit", "better", "label")
    recorded = {(key, *(score[name] for name in fields)) for stage in stages for key, score in stage["scores"].items()}
    declarations = set()
    for objective in OBJECTIVES:
        for key in {key for key, *_ in recorded}:
            for labels in (
                data_names,
                data_label,
            ):  # answers that a model writes to sums have the name of the sums' data
                with suppress(KeyError):
                    score = declared(key, None, objective, labels)
                    declarations.add((key, *(score[name] for name in fields)))
    return {key for key, *rest in recorded if (key, *rest) not in declarations}


def test_recorded_runs_of_golden_have_the_scores_that_classes_declare():
    summaries = [json.loads(path.read_text()) for path in (RESULTS.parent / "golden").glob("*/summary.json")]
    stages = [stage for summary in summaries for stage in summary["stages"]]
    assert len(summaries) > 10 and all(stage["scores"].keys() == stage["metrics"].keys() for stage in stages)
    assert undeclared(stages) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ROWS)
def test_every_recorded_metric_has_the_score_that_a_class_declares(name):
    lines = gzip.decompress((RESULTS / name / "runs.jsonl.gz").read_bytes()).splitlines()
    stages = [stage for line in lines for stage in json.loads(line)["summary"]["stages"]]
    assert all(stage["scores"].keys() == stage["metrics"].keys() for stage in stages)
    assert undeclared(stages) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ROWS)
def test_the_report_of_the_rows_is_the_recorded_one(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("runs.jsonl.gz", "study.yaml"):
        shutil.copy(RESULTS / name / file, folder)
    front = yaml.safe_load((RESULTS / name / "discussion.md").read_text(encoding="utf-8").split("---\n")[1])
    also = [option for other in front.get("also", ()) for option in ("--also", str(RESULTS / other))]
    assert main(["report", str(folder), *also]) in (0, 3, 5)
    findings = read(RESULTS / name, "findings.json")
    # The rounding of another processor moves the ends of refits, and more so along flat directions.
    rel = 1e-2 if findings["not_identified"] else 1e-6
    again = read(folder, "findings.json")
    assert list(numbers(again)) == pytest.approx(list(numbers(findings)), rel=rel, abs=1e-12)
    for (lo, hi), ends in zip(intervals(findings), intervals(again), strict=True):
        assert ends == pytest.approx((lo, hi), rel=rel, abs=5 * rel * (hi - lo))
    assert list(words(again)) == list(words(findings))
    assert (folder / "laws.json").is_file() == (RESULTS / name / "laws.json").is_file()
    if (folder / "laws.json").is_file():
        again, recorded = (identified(read(place, "laws.json")) for place in (folder, RESULTS / name))
        assert again["fitted"] == pytest.approx(recorded["fitted"], rel=1e-4)
        assert again["ends"] == pytest.approx(recorded["ends"], rel=0.05)
