"""Scores of evaluations in summary.json: added to a stage, and missed by name."""

from __future__ import annotations

from pathlib import Path

from fake_run import fake_run

from kleiber.records.evaluations import add_metrics, is_complete, missing_evaluations
from kleiber.records.summary_file import read_summary

CONFIG = {"evals": {"pairs": {"_target_": "x"}, "ood": {"_target_": "y"}, "off": None}}


def test_a_run_is_complete_with_a_score_of_every_evaluation(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    stage = (read_summary(run) or {})["stages"][-1]
    assert missing_evaluations(run, CONFIG) == ["pairs", "ood"] and not is_complete(run, CONFIG)
    add_metrics(run, stage["name"], {"eval/pairs/blimp/accuracy": 0.5})
    assert missing_evaluations(run, CONFIG) == ["ood"]
    add_metrics(run, stage["name"], {"eval/ood/code/gap": 0.5})
    assert is_complete(run, CONFIG) and is_complete(run, {"evals": None})
    metrics = (read_summary(run) or {})["stages"][-1]["metrics"]
    assert metrics == {**stage["metrics"], "eval/pairs/blimp/accuracy": 0.5, "eval/ood/code/gap": 0.5}


def test_a_folder_without_a_run_lacks_all_and_gets_none(tmp_path: Path) -> None:
    assert missing_evaluations(tmp_path, CONFIG) == ["pairs", "ood"] and not is_complete(tmp_path, CONFIG)
    add_metrics(tmp_path, "main", {"eval/pairs/blimp/accuracy": 0.5})
    assert not list(tmp_path.iterdir())
