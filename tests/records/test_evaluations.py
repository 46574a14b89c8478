"""Scores of evaluations in summary.json: added to a stage, and missed by name."""

from __future__ import annotations

from pathlib import Path

from fake_run import fake_run

from kleiber.records.evaluations import (
    MOST,
    add_scores,
    evaluation_lines,
    is_complete,
    missing_evaluations,
    settings_of,
    settings_of_run,
    updated_settings,
)
from kleiber.records.files import write_json
from kleiber.records.summary_file import read_summary
from kleiber.types import Json
from kleiber.types.score import Score

PERPLEXITY = {"_target_": "kleiber.evals.Perplexity"}
CONFIG = {"eval": {"tokens": "1K"}, "evals": {"pairs": {"_target_": "x"}, "ood": {"_target_": "y"}, "off": None}}


def scores(values: dict[str, float]) -> Json:
    return {key: Score(value, n=4).to_json() for key, value in values.items()}


def test_a_run_is_complete_with_a_score_of_every_evaluation(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    stage = (read_summary(run) or {})["stages"][-1]
    assert missing_evaluations(run, CONFIG) == ["pairs", "ood"] and not is_complete(run, CONFIG)
    add_scores(run, stage["name"], scores({"eval/pairs/blimp/accuracy": 0.5}))
    assert missing_evaluations(run, CONFIG) == ["ood"]
    add_scores(run, stage["name"], scores({"eval/ood/code/gap": 0.5}))
    assert is_complete(run, CONFIG) and is_complete(run, {"evals": None})
    metrics = (read_summary(run) or {})["stages"][-1]["metrics"]
    assert metrics == {**stage["metrics"], "eval/pairs/blimp/accuracy": 0.5, "eval/ood/code/gap": 0.5}


def test_scores_with_other_settings_are_missing_and_those_of_the_new_ones_replace_them(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", [{"metrics": {"eval/pairs/a/accuracy": 0.5, "eval/pairs2/a/accuracy": 0.5}}])
    config = {**CONFIG, "evals": {"pairs": {**PERPLEXITY, "stride": 64, "data": None}}}
    assert missing_evaluations(run, config) == []  # their settings were not recorded
    (run / "evals").mkdir()
    node = {**PERPLEXITY, "stride": 64}
    for settings, missing in (
        (settings_of(node, 1000), []), (settings_of(PERPLEXITY, 1000), ["pairs"]), (settings_of(node, 500), ["pairs"]),
        (settings_of(node, 1000, 10), ["pairs"]), (settings_of(node, 1000, None, ["a"]), ["pairs"]),
    ):  # fmt: skip
        write_json(run / "evals" / "pairs.json", {"scores": {}, "settings": {"a": settings}})
        assert missing_evaluations(run, config) == missing
    write_json(run / "evals" / "pairs.json", {"scores": {}, "settings": {}})
    assert missing_evaluations(run, config) == ["pairs"], "the run has not been evaluated on data of its own"
    add_scores(run, "main", scores({"eval/pairs/a/error": 0.25, "eval/pairs/b/accuracy": 0.75}))
    add_scores(run, "main", scores({"eval/pairs/a/gap": 0.25}), ("eval/pairs/a/",))
    metrics = (read_summary(run) or {})["stages"][-1]["metrics"]
    assert metrics == {"eval/pairs2/a/accuracy": 0.5, "eval/pairs/b/accuracy": 0.75, "eval/pairs/a/gap": 0.25}
    assert (read_summary(run) or {})["stages"][-1]["scores"].keys() == metrics.keys() - {"eval/pairs2/a/accuracy"}


def test_an_evaluation_on_other_data_or_of_another_stage_changes_no_settings_of_the_run(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", [{"name": "first"}, {"name": "last"}])
    config = {**CONFIG, "evals": {"pairs": PERPLEXITY}}
    own, other = settings_of_run(config, "pairs"), settings_of(PERPLEXITY, None)
    assert updated_settings(run, "last", "pairs", ["a"], other) == {}
    (run / "evals").mkdir()
    write_json(run / "evals" / "pairs.json", {"settings": {"a": own, "b": own}})
    assert updated_settings(run, "last", "pairs", ["b", "c"], other) == {"a": own, "b": other}
    assert updated_settings(run, "first", "pairs", ["b", "c"], other) == {"a": own, "b": own}


def test_a_folder_without_a_run_lacks_all_and_gets_none(tmp_path: Path) -> None:
    assert missing_evaluations(tmp_path, CONFIG) == ["pairs", "ood"] and not is_complete(tmp_path, CONFIG)
    add_scores(tmp_path, "main", scores({"eval/pairs/blimp/accuracy": 0.5}))
    assert not list(tmp_path.iterdir())


def test_the_closing_table_has_the_scores_of_evaluations_of_the_last_stage():
    score = {"value": 0.25, "lo": 0.2, "hi": 0.3, "n": 40, "unit": "of items", "better": "higher", "label": "x"}
    many = {f"eval/routing/docs/share/{number:02d}": score for number in range(MOST + 3)}
    lines = evaluation_lines({"scores": {"val/docs/loss": score, "eval/generation/pairs/chrf": score, **many}})
    assert lines[0] == "generation, 90% intervals"
    assert lines[1].split() == ["pairs/chrf", "0.25", "[0.2,", "0.3]", "of", "items,", "n=40"]
    assert lines[-1] == "  and 3 more in summary.json" and len(lines) == 2 + 1 + MOST + 1
    assert evaluation_lines({}) == []
