"""A study in W&B, read back from its offline record, also where parts of it fail."""

import json
import re
from pathlib import Path

import altair as alt
import pandas as pd
import pytest
from fake_run import fake_stage, write_summary
from wandb_records import read

import kleiber.runs.run
from kleiber.config.errors import Status
from kleiber.launch.cli import main
from kleiber.launch.main import main as launch
from kleiber.records.catalog import Run
from kleiber.studies import report
from kleiber.studies import report as mirror
from kleiber.studies.study import Findings

from .ladders import write_tree

RECORDED = Path(__file__).parents[2] / "multirun" / "results"
LAW = {"schema": "kleiber.law/1", "law": "chinchilla", "params": {}}
VERDICTS = [{"level": "warn", "code": "few", "text": "two sizes"}, {"level": "note", "code": "goal", "text": "met"}]
TABLES = {
    "Arms: loss / seed": [{"arm": "a", "loss": 2.5, "seeds": 3}, {"arm": "b", "loss": None, "why": "untuned"}],
    "Mixed": [{"value": 1.5}, {"value": "not identified"}, {"value": None}, {"value": True}],
    "Empty": [],
}


def chart() -> alt.Chart:
    return alt.Chart(pd.DataFrame({"x": [1, 2], "y": [3, 4]})).mark_line().encode(x="x:Q", y="y:Q")


class Study:
    """Finds the same in all runs."""

    max_cells = seeds = level = None

    def analyze(self, runs) -> Findings:
        figures = {"frontier": chart, "tuning": chart}
        return Findings("a is 0.5 nats [0.4, 0.6] better.", verdicts=VERDICTS, tables=TABLES, figures=figures, law=LAW)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The folder of a study with one run."""
    monkeypatch.setattr(report, "study_of", lambda *_: Study())
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_tree(tmp_path / "s" / "cell", 0, 10_000, 6e4, {1e6: 2.5}, config={"logger": {"wandb": {"project": "lab"}}})
    return tmp_path / "s"


def record(folder):
    """What the offline run of a study holds, its panels by key, and the rows of a table that it wrote."""
    (path,) = folder.glob("wandb/offline-run-*-study-*/run-*.wandb")
    result = read(path)
    panels = {}
    for row in result["history"]:
        for key, value in row.items():
            name, _, title = key.rpartition("/")
            panels.setdefault(name, {})[title] = value
    return result, panels, path.parent / "files"


def rows_of(panels, files, key):
    table = json.loads((files / panels[key]["path"]).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def check_all_arrived(folder):
    result, panels, files = record(folder)
    assert {key: result["run"][key] for key in ("group", "type")} == {"group": folder.name, "type": "study"}
    assert result["summary"]["answer"] == "a is 0.5 nats [0.4, 0.6] better." and result["exit_code"] == 0
    for name in ("frontier", "tuning"):
        image = files / panels[f"figures/{name}"]["path"]
        assert image.read_bytes() == (folder / "figures" / f"{name}.png").read_bytes()
    for title in ("Arms: loss / seed", "Mixed"):
        keys = list(dict.fromkeys(key for row in TABLES[title] for key in row))
        assert rows_of(panels, files, f"tables/{title}") == [
            {key: row.get(key) for key in keys} for row in TABLES[title]
        ]
    assert rows_of(panels, files, "verdicts") == VERDICTS
    assert (files / panels["report"]["path"]).read_bytes() == (folder / "report.html").read_bytes()
    kept = {key for key in result["summary"] if not key.startswith("_")}
    assert kept == {"answer", "question", "decision", "runs"}, "no figure or table"
    assert len(result["history"]) == 1, "panels of one report are one step"
    used = {name for name, entry in result["artifacts"].items() if entry["used"] and entry["type"] == "run"}
    assert used == {f"{path.parent.name}-run" for path in folder.glob("*/summary.json")} and used
    artifact = result["artifacts"][f"{folder.name}-study"]
    assert artifact["type"] == "study"
    assert artifact["paths"] == {"laws.json", "findings.json", "report.html", "runs.jsonl.gz"}
    assert json.loads((folder / "findings.json").read_text())["not_mirrored"] == []


@pytest.mark.slow
def test_all_of_a_study_arrives(study, capsys):
    assert main(["report", str(study), "--wandb"]) == 0
    check_all_arrived(study)
    printed = capsys.readouterr().out
    assert "not logged" not in printed and "wandb sync" in printed
    result, _, _ = record(study)
    assert "study" in result["run"]["tags"] and result["config"]["logger.wandb.project"] == "lab"


def test_claims_have_their_numbers_under_the_names_of_their_arms():
    claims = json.loads((RECORDED / "six_questions" / "findings.json").read_text())["claims"]
    summary = mirror.claim_summary([*claims, claims[0], {**claims[0], "against": None}])
    assert len(summary) == 4 * (len(claims) + 2)
    first = claims[0]
    values = {"difference": first["value"], "low": first["lo"], "high": first["hi"], "decision": first["decision"]}
    for name in (
        "baseline_-_no_qk_norm",
        "baseline_-_no_qk_norm_2",
        re.sub(r"[^\w-]+", "_", first["text"])[:60].strip("_"),
    ):
        assert {key: summary[f"claims/{name}/{key}"] for key in values} == values


def test_the_config_of_a_study_is_what_its_runs_share():
    runs = [Run(Path("x"), Status.FINISHED, {}, {"config": config}) for config in (
        {"model": {"depth": 1, "width": 8}, "a": None}, {"model": {"depth": 2, "width": 8}, "a": 1, "b": 1},
    )]  # fmt: skip
    assert mirror.common_config(runs) == {"model.width": 8}


@pytest.mark.slow
def test_a_sweep_mirrors_its_study_when_its_runs_were(study, tmp_path, monkeypatch):
    def train(cfg, folder, overrides):
        (folder / "wandb" / "offline-run-1").mkdir(parents=True)
        write_summary(folder, [fake_stage()])
        return 0

    monkeypatch.setattr(kleiber.runs.run, "train", train)
    assert launch(["study=scaling", "launcher=basic", "study.max_cells=1", f"root={tmp_path}", "name=t"]) == 0
    check_all_arrived(tmp_path / "t")


@pytest.mark.slow
def test_a_part_that_fails_keeps_no_other_and_is_named(study, monkeypatch, capsys):
    send = mirror.send_image

    def without_one(run, key, file):
        if key == "figures/frontier":
            raise RuntimeError("wandb.Image needs the PIL package\nand more lines")
        send(run, key, file)

    monkeypatch.setattr(mirror, "send_image", without_one)
    assert main(["report", str(study), "--wandb"]) == 0
    result, panels, _ = record(study)
    assert "figures/frontier" not in panels and {"figures/tuning", "tables/Mixed", "verdicts"} <= set(panels)
    assert result["artifacts"]["s-study"]["paths"] >= {"laws.json"} and result["exit_code"] == 0
    failures = ["figure frontier: wandb.Image needs the PIL package"]
    assert json.loads((study / "findings.json").read_text())["not_mirrored"] == failures
    assert f"not logged to W&B: {failures[0]}" in capsys.readouterr().out


def test_a_study_that_wandb_takes_nothing_of_is_reported_all_the_same(study, monkeypatch, capsys):
    def refuse(*_):
        raise ConnectionError("no server")

    monkeypatch.setattr(mirror, "start_wandb_run", refuse)
    assert main(["report", str(study), "--wandb"]) == 0
    assert json.loads((study / "findings.json").read_text())["not_mirrored"] == ["the study: no server"]
    assert (study / "report.html").is_file()
