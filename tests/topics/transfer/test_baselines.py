"""The study `baselines` compares kinds before fine-tuning, on every task, and in the mean over the tasks."""

import json
import math

import pytest
from fake_run import fake_run
from studies.ablation_runs import copied

from kleiber.records.catalog import read_runs
from kleiber.studies.claims import overall
from kleiber.studies.study import PlannedPoint
from kleiber_topics.transfer.baselines import Baselines, arms_of

RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
LOSSES = {"ours": 2.0, "theirs": 2.1}  # at the best rate, .02
SCORES = {"ours": {"a": 0.8, "b": 0.3}, "theirs": {"a": 0.7, "b": 0.5}}
NOISE = (0.0, 0.03, -0.02)  # of a seed, the same for both kinds


def pretrained(home, kind, lr, seed):
    config = {
        "study": {"kind": kind, "start": "text/1M"}, "seed": seed, "optimizer": {"lr": lr}, "design": {"seeds": 3},
        "model": {"depth": 2, "width": 64, "context": 128},
    }  # fmt: skip
    loss = LOSSES[kind] + math.log2(lr / 0.02) ** 2 / 10 + NOISE[seed]
    fake_run(home / f"{kind}-{lr}-{seed}", [{"lr": lr, "metrics": {"val/text/loss": loss}}], config=config, seed=seed)


def tuned(home, kind, task, seed, share="1"):
    stage = {
        "tasks": ["t"], "lr": 0.01, "data": {"tokens": 100}, "params": {"total": 10, "non_embedding": 5},
        "metrics": {
            "val/t/accuracy": SCORES[kind][task] + NOISE[seed] - 0.3 * (share != "1"), "val/t/loss": 0.5,
            "eval/reference/t/majority/accuracy": 0.6, "eval/reference/t/tfidf/accuracy": 0.75,
            "eval/reference/t/tfidf/mcc": 0.1,
        },
    }  # fmt: skip
    labels = {"kind": kind, "start": "text/1M", "task": task, "share": share}
    config = {"study": labels, "seed": seed, "data": {}}
    return fake_run(home / f"{kind}-{task}-{seed}{share[1:]}", [stage], config=config, seed=seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("baselines")
    for kind in LOSSES:
        for seed in range(3):
            for lr in RATES:
                pretrained(home, kind, lr, seed)
            for task in ("a", "b"):
                tuned(home, kind, task, seed)
    return read_runs(home)


def task_of(run):
    return run.config["study"].get("task")


def study(**options):
    claims = [{"arm": "ours", "against": "theirs"}]
    return Baselines(against={"ours": ["theirs"]}, claims=claims, **options)


def test_kinds_are_compared_at_their_best_rates_on_tasks_and_in_the_mean(runs):
    findings = study().analyze(runs)
    (claim,) = [result.to_json() for result in findings.claims]
    assert claim["value"] == pytest.approx(-0.1) and claim["tuned"] and overall(findings.claims) == "supported"
    (mean,) = findings.tables["Mean score over all tasks"]
    assert mean["value"] == pytest.approx(-0.05) and mean["tasks"] == 2  # +.1 on a and -.2 on b
    by_task = {row["task"]: row["value"] for row in findings.tables["Against other architectures"]}
    assert by_task == {"a": pytest.approx(0.1), "b": pytest.approx(-0.2)}
    first, _ = findings.tables["References without pre-training"]
    assert first == {
        "task": "a", "metric": "accuracy", "majority class": 0.6, "TF-IDF + logistic regression": 0.75
    }  # fmt: skip
    assert {row["arm"]: row["best lr"] for row in findings.tables["Pre-training: arms"]} == dict.fromkeys(LOSSES, 0.02)


def test_before_any_fine_tune_pretraining_alone_is_compared(runs):
    findings = study().analyze([run for run in runs if task_of(run) is None])
    assert overall(findings.claims) == "supported" and "Mean score over all tasks" not in findings.tables


def test_a_seed_that_lacks_a_task_is_not_in_the_mean(runs):
    lacking = [run for run in runs if run.folder.name != "ours-b-2"]
    (mean,) = study().analyze(lacking).tables["Mean score over all tasks"]
    assert mean["n"] == 2


def test_a_seed_that_lacks_a_share_of_the_labels_is_not_in_the_mean(runs, tmp_path):
    few = [tuned(tmp_path, kind, task, seed, "0.1") for kind in LOSSES for task in "ab" for seed in range(3)]
    some = [run for run in [*runs, *read_runs(tmp_path)] if run.folder.name != "theirs-a-0"]
    (mean,) = study().analyze(some).tables["Mean score over all tasks"]
    assert len(few) == 12 and mean["n"] == 2 and mean["value"] == pytest.approx(-0.05)


def test_the_figure_has_a_line_for_each_task_and_one_for_their_mean(runs):
    pytest.importorskip("altair")
    named = [
        copied(run, run.name, study={**run.config["study"], "task": "boolq"}) if task_of(run) == "a" else run
        for run in runs
    ]
    shown = json.dumps(study().analyze(named).figures["tasks"]().to_dict())
    assert all(f'"{name}"' in shown for name in ("all tasks", "ours \\u2212 theirs", "BoolQ", "b"))


def test_losses_of_several_objectives_are_drawn_in_panels_and_not_over_one_axis_of_sizes(runs):
    bases = [run for run in runs if task_of(run) is None]
    names = {"ours": "CLM", "theirs": "MLM"}
    several = [copied(run, run.name, objective={"_target_": names[run.config["study"]["kind"]]}) for run in bases]
    figures = study().analyze(several).figures
    for name in ("pretraining_arms", "pretraining_tuning"):
        titles = [panel["title"] for panel in figures[name]().to_dict()["concat"]]
        panels = [title["text"] if isinstance(title, dict) else title for title in titles]
        assert sorted(panels) == ["predicting masked tokens", "predicting next tokens"]
    tuning = figures["pretraining_tuning"]().to_dict()
    assert tuning["resolve"]["scale"]["color"] == "independent", "each panel has the legend of its models"
    assert "pretraining_differences" in study().analyze(bases).figures and "pretraining_sizes" not in figures
    assert "concat" not in study().analyze(bases).figures["pretraining_arms"]().to_dict()
    kept = study().within_objectives({"pretraining_sizes": list, "pretraining_tuning": list}, several, arms_of([]), {})
    assert [*kept] == ["pretraining_tuning"]


def test_kinds_from_several_texts_are_arms_of_their_own(runs, tmp_path):
    bases = [run for run in runs if task_of(run) is None]
    other = [
        copied(run, f"{run.name}-larger", study={**run.config["study"], "start": "text/4M"}, data={"max_bytes": "4M"})
        for run in bases
    ]
    findings = Baselines(claims=[{"arm": "ours from text/4M", "against": "theirs from text/1M"}]).analyze(bases + other)
    (claim,) = [result.to_json() for result in findings.claims]
    assert claim["value"] == pytest.approx(-0.1) and claim["decision"] == "supported"
    arms = {row["arm"] for row in findings.tables["Pre-training: arms"]}
    assert arms == {f"{kind} from text/{size}" for kind in LOSSES for size in ("1M", "4M")}


@pytest.mark.parametrize("texts", [("1M",), ("1M", "4M")])
def test_a_part_of_the_planned_seeds_of_a_kind_decides_nothing_from_one_text_or_several(runs, texts):
    bases = [run for run in runs if run.config["study"].get("task") is None]
    placed = [
        copied(run, f"{run.name}-{text}", study={**run.config["study"], "start": f"text/{text}"}, design={"seeds": 4})
        for run in bases
        for text in texts
    ]
    suffix = " from text/1M" * (len(texts) > 1)
    findings = Baselines(claims=[{"arm": f"ours{suffix}", "against": f"theirs{suffix}"}]).analyze(placed)
    assert overall(findings.claims) == "not tested"
    assert findings.claims[0].why == f'3 of the 4 planned seeds of the arm "ours{suffix}" were run'


def test_a_plan_is_refused_for_what_its_report_would_be(runs):
    bases = [run for run in runs if task_of(run) is None]
    points = [PlannedPoint(run.folder, run.config, 1e5, 1e6) for run in bases]
    assert study().check_plan(points) == []
    twin = copied(bases[0], "twin", model={**bases[0].config["model"], "width": 32})
    with pytest.raises(ValueError, match=r"model\.width"):
        study().check_plan([*points, PlannedPoint(twin.folder, twin.config, 1e5, 1e6)])
    text = copied(bases[0], "text", study={**bases[0].config["study"], "start": "text/4M"})
    with pytest.raises(ValueError, match=r"study\.claims: ours is not an arm"):
        study().check_plan([*points, PlannedPoint(text.folder, text.config, 1e5, 1e6)])
    with pytest.raises(ValueError, match=r"design\.kinds=ours: "):
        study().check_plan([point for point in points if point.config["study"]["kind"] == "ours"])
