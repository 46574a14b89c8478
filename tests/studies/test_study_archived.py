"""A study gives the same findings from runs.jsonl.gz as from the folders of its runs."""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import kleiber.studies
from kleiber.config.compose import read_choice
from kleiber.launch.cli import main
from kleiber.records import archive
from kleiber.records.catalog import archive_runs, read_runs
from kleiber.studies.compare.study import Compare
from kleiber.studies.forgetting import Forgetting
from kleiber.studies.laws import laws_json
from kleiber.studies.report import study_of
from kleiber.studies.scaling import Scaling
from kleiber.studies.study import content

from .arm_runs import write
from .comparisons import write_study
from .ladders import noisy, small_loss, write_tree

COMPARE = {"_target_": "kleiber.studies.Compare"}
ROUTERS = Compare(claims=read_choice("study", "routers")["study"]["claims"])


def ladder(home: Path) -> None:
    for n in (25_000, 100_000, 400_000, 1_600_000):
        tokens = 1e6 * 2.0 ** np.arange(4)
        losses = noisy(small_loss(n, tokens), [n], 0.002).tolist()
        write_tree(home / f"n{n}", 0, n, 6.6 * n, dict(zip(tokens.tolist(), losses, strict=True)))


def arms(home: Path) -> None:
    for arm, loss in (("topk", 3.0), ("hash", 3.1), ("lossfree", 3.05)):
        write(home, COMPARE, arm, loss)
    write(home, COMPARE, "unbalanced", 3.0, status="diverged", lrs=[0.16])


STUDIES = {"scaling": (Scaling(bootstrap=20), ladder), "routers": (ROUTERS, arms),
           "forgetting": (Forgetting(), write_study)}  # fmt: skip


def kept(home: Path, place: Path) -> Path:
    """What is kept of a study, in another folder of the same name."""
    archive_runs(home)
    (place / home.name).mkdir(parents=True)
    shutil.move(home / archive.NAME, place / home.name)
    return place / home.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["routers", "forgetting", pytest.param("scaling", marks=pytest.mark.slow)])
def test_a_study_finds_the_same_in_its_rows(tmp_path, name):
    study, fill = STUDIES[name]
    fill(tmp_path / name)
    homes = [tmp_path / name, kept(tmp_path / name, tmp_path / "other")]
    findings = [study.analyze(read_runs(home)) for home in homes]
    contents = [
        laws_json.without_nonfinite(content(row, name, read_runs(home)))
        for row, home in zip(findings, homes, strict=True)
    ]
    assert contents[0] == contents[1]
    assert laws_json.without_nonfinite(findings[0].law or {}) == laws_json.without_nonfinite(findings[1].law or {})
    assert set(findings[0].figures) == set(findings[1].figures)


def test_some_cells_may_be_folders_and_others_rows(tmp_path):
    arms(tmp_path / "routers")
    whole = content(ROUTERS.analyze(read_runs(tmp_path / "routers")), "", read_runs(tmp_path / "routers"))
    archive_runs(tmp_path / "routers")
    for path in sorted((tmp_path / "routers").glob("*-seed1")):
        shutil.rmtree(path)
    runs = read_runs(tmp_path / "routers")
    assert {run.archived is None for run in runs} == {True, False}
    assert laws_json.without_nonfinite(content(ROUTERS.analyze(runs), "", runs)) == laws_json.without_nonfinite(whole)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_report_is_made_of_the_rows_alone(tmp_path, capsys):
    arms(tmp_path / "routers")
    assert main(["report", str(tmp_path / "routers"), "--study", "routers"]) == 5
    loaded = json.loads((tmp_path / "routers" / "findings.json").read_text())
    assert (tmp_path / "routers" / archive.NAME).is_file(), "a report keeps the rows of folders that are there"
    place = kept(tmp_path / "routers", tmp_path / "other")
    assert main(["report", str(place), "--study", "routers"]) == 5
    assert json.loads((place / "findings.json").read_text()) == loaded
    assert {path.name for path in (place / "figures").iterdir()} >= {"by_max_violation.png", "by_max_violation.svg"}
    assert f"report: {place / 'report.html'}" in capsys.readouterr().out
    assert main(["runs", str(place), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3 * 5 * 3 + 3


@pytest.mark.slow
def test_out_is_the_only_file_that_is_written(tmp_path, monkeypatch, capsys):
    arms(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert main(["report", "study", "--study", "routers", "--out", "page.html"]) == 5
    after = snapshot(tmp_path)
    assert after.pop(tmp_path / "page.html").startswith(b"<!doctype html>") and after == before
    assert main(["report", "study", "--study", "routers", "--out", "page.html", "--wandb"]) == 2
    assert main(["report", "study", "--study", "routers", "--out", "nowhere/page.html"]) == 2
    assert "nowhere/page.html" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_of_another_name_gives_its_name_to_the_study(tmp_path):
    arms(tmp_path / "s")
    archive_runs(tmp_path / "s")
    shutil.move(tmp_path / "s" / archive.NAME, tmp_path / "zoo.jsonl.gz")
    assert main(["report", str(tmp_path / "zoo.jsonl.gz")]) == 0
    assert json.loads((tmp_path / "findings.json").read_text())["study"] == "zoo"
    assert isinstance(study_of(tmp_path / "s", read_runs(tmp_path / "zoo.jsonl.gz")), Compare)


def test_studies_read_runs_through_the_catalog_alone():
    """A file of a run that a study opened itself would not be there for a run that is rows."""
    readers = set()
    for path in Path(kleiber.studies.__file__).parent.rglob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        names = {f"{node.module}.{row.name}" for node in tree if isinstance(node, ast.ImportFrom) for row in node.names}
        files = {
            "kleiber.records.metrics.read_rows",
            "kleiber.records.summary_file.read_summary",
            "kleiber.records.archive.read",
        }
        folder = {name for name in names if name.startswith("kleiber.records.folder.")}
        pure = {f"kleiber.records.folder.{name}" for name in ("flatten", "identity")}  # they read no file
        if names & files or folder - pure:
            readers.add(path.name)
    assert not readers
