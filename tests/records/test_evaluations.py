"""Scores of evaluations in summary.json: added to a stage, and missed by name."""

from __future__ import annotations

from pathlib import Path

from fake_run import fake_run

from kleiber.records.evaluations import add_metrics, is_complete, missing_evaluations
from kleiber.records.files import write_json
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


def test_scores_with_other_settings_are_missing_and_those_of_the_new_ones_replace_them(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", [{"metrics": {"eval/pairs/a/accuracy": 0.5, "eval/pairs2/a/accuracy": 0.5}}])
    perplexity = {"_target_": "kleiber.evals.Perplexity"}
    config = {"evals": {"pairs": {**perplexity, "stride": 64, "data": None}}}
    assert missing_evaluations(run, config) == []  # their settings were not recorded
    (run / "evals").mkdir()
    for settings, missing in (({**perplexity, "stride": 64}, []), (perplexity, ["pairs"])):
        write_json(run / "evals" / "pairs.json", {"scores": {}, "settings": settings})
        assert missing_evaluations(run, config) == missing
    add_metrics(run, "main", {"eval/pairs/b/accuracy": 0.25}, replaced="eval/pairs/")
    metrics = (read_summary(run) or {})["stages"][-1]["metrics"]
    assert metrics == {"eval/pairs/b/accuracy": 0.25, "eval/pairs2/a/accuracy": 0.5}


def test_a_folder_without_a_run_lacks_all_and_gets_none(tmp_path: Path) -> None:
    assert missing_evaluations(tmp_path, CONFIG) == ["pairs", "ood"] and not is_complete(tmp_path, CONFIG)
    add_metrics(tmp_path, "main", {"eval/pairs/blimp/accuracy": 0.5})
    assert not list(tmp_path.iterdir())
