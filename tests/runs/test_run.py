"""Whole runs in one process: the files they write, what they print, and how they end after an error."""

import errno
import json
import os
import time
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from wandb_records import read

import kleiber
from kleiber.config.system_errors import ADVICE
from kleiber.launch.main import main
from kleiber.training import step

SCHEMA = json.loads((Path(kleiber.__file__).parent / "records" / "summary.schema.json").read_text())


def summary(folder: Path) -> dict:
    record = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(record, SCHEMA)
    return record


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "moe"])
def test_a_run_writes_all_its_files_and_its_loss_falls(launch, model, capsys):
    folder = launch(f"model={model}", "callbacks.log.every=1")
    record = summary(folder)
    stage = record["stages"][0]
    assert record["status"] == "finished"
    assert stage["steps"] == 20 and stage["tokens"] == 20 * 512
    assert stage["params"]["active"] <= stage["params"]["total"]
    assert (stage["params"]["active"] < stage["params"]["total"]) == (model == "moe")
    for name in ("config.yaml", "overrides.yaml", "metrics.jsonl", "metrics.csv", "samples.txt"):
        assert (folder / name).stat().st_size > 0
    assert (folder / stage["checkpoint"] / "model.safetensors").is_file()
    curve = losses(folder)
    assert sorted(curve) == list(range(1, 21))
    assert curve[20] < curve[1] - 0.5
    assert (folder / "samples.txt").read_text().count("--- ") == 3
    out = capsys.readouterr()
    assert "bits per byte" in out.out and "continuations" in out.out and "tokens/s" in out.out
    assert "arning:" not in out.out + out.err


@pytest.mark.slow
def test_a_repeated_command_prints_the_table_of_the_finished_run(launch, capsys):
    folder = launch("model=gpt")
    written = (folder / "summary.json").read_text()
    capsys.readouterr()
    assert launch("model=gpt") == folder
    assert (folder / "summary.json").read_text() == written
    assert "bits per byte" in capsys.readouterr().out


@pytest.mark.slow
def test_two_seeds_are_two_runs(launch):
    options = ["callbacks.log.every=1", "trainer.max_steps=3"]
    first, second = launch("seed=0", *options), launch("seed=1", *options)
    assert first != second
    assert losses(first)[3] != losses(second)[3]


@pytest.mark.slow
def test_micro_batches_do_not_change_the_result(launch):
    """Also with experts: the balance loss is computed per sequence, so its sum does not depend on the micro-batches."""
    options = ["trainer.precision=64", "trainer.max_steps=5", "eval.every_steps=0", "callbacks.samples=null"]
    for model in ("gpt", "moe"):
        runs = [launch(f"model={model}", f"batch.micro={micro}", *options) for micro in (8, 1)]
        first, *others = [
            load_file(run / summary(run)["stages"][0]["checkpoint"] / "model.safetensors") for run in runs
        ]
        for other in others:
            for name, value in first.items():
                torch.testing.assert_close(other[name], value, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_masked_prediction_trains_on_a_bidirectional_model(launch):
    folder = launch("model=bert", "objective=mlm", "callbacks.log.every=1")
    curve = losses(folder)
    assert curve[20] < curve[1] - 0.3
    keys = summary(folder)["stages"][0]["metrics"]
    assert [key.rsplit("/", 1)[1] for key in keys] == ["loss"], "no bits per byte"


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(launch, monkeypatch, capsys):
    accumulate, calls = step.accumulate, []

    def poisoned(model, *arguments):
        calls.append(1)
        if len(calls) == 7:
            with torch.no_grad():
                model.norm.weight[0] = float("nan")
        return accumulate(model, *arguments)

    monkeypatch.setattr("kleiber.training.lit.accumulate", poisoned)
    folder = launch("model=gpt", "callbacks.checkpoints.every=2", code=1)
    record = summary(folder)
    assert record["status"] == "diverged"
    assert record["error"].startswith("step 7: ") and "samples [" in record["error"]
    assert "step 7: " in capsys.readouterr().err
    assert sorted(p.name for p in (folder / "stages/main/checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_refuses_a_checkpoint_fails_the_run_and_keeps_the_one_before(launch, monkeypatch, capsys, number):
    save, calls = torch.save, []

    def full(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number))
        return save(*arguments, **keywords)

    monkeypatch.setattr(torch, "save", full)
    folder = launch("model=gpt", "callbacks.checkpoints.every=2", code=1)
    assert summary(folder)["status"] == "failed"
    assert os.strerror(number).lower() in summary(folder)["error"]
    err = capsys.readouterr().err
    assert "Traceback" not in err and ADVICE[number] in err and "step-00000004, is intact" in err
    assert sorted(p.name for p in (folder / "stages/main/checkpoints").iterdir()) == ["step-00000002", "step-00000004"]


@pytest.mark.slow
def test_a_dry_run_prints_the_cost_and_writes_nothing(launch, tmp_path, cache_dir, capsys):
    launch("model=moe", "dry_run=true")
    out = capsys.readouterr().out
    for label in ("parameters", "FLOPs", "MiB", "steps", "time", "lr"):
        assert label in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_wandb_has_config_metrics_and_summary_of_the_run(launch):
    folder = launch("model=moe", "logger=wandb", "logger.wandb.mode=offline", "name=group-a", "callbacks.log.every=5")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    logged, record = read(path), summary(folder)
    facts = {"id": record["run_id"], "group": "group-a", "name": folder.name, "type": "train", "tags": []}
    assert logged["run"] == facts
    assert logged["exit_code"] == 0
    assert logged["config"]["model"]["mlp"]["num_experts"] == 8, "the config keeps its nesting"
    steps = {row["trainer/global_step"]: row for row in logged["history"] if "train/loss" in row}
    assert sorted(steps) == [5, 10, 15, 20]
    assert steps[20]["train/loss"] == pytest.approx(losses(folder)[20])
    assert any(key.startswith("samples") for row in logged["history"] for key in row)
    key, value = next(iter(record["stages"][0]["metrics"].items()))
    assert logged["summary"][key] == pytest.approx(value)
    assert logged["summary"]["checkpoint"] == record["stages"][0]["checkpoint"]


@pytest.mark.slow
def test_seconds_of_training_do_not_include_evaluation(launch, monkeypatch):
    from kleiber.evals import task_scores as evaluate

    score, clock, late = evaluate.held_out_loss, time.perf_counter, [0.0]

    def slow(*arguments):
        late[0] += 1000  # every evaluation seems to take 1000 s
        return score(*arguments)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(evaluate, "held_out_loss", slow)
    stage = summary(launch("eval.every_steps=2"))["stages"][0]
    assert late[0] >= 10_000 and stage["seconds"] < 500 and stage["tokens_per_s"] > 512 * 20 / 500


@pytest.mark.slow
def test_a_failed_run_is_marked_in_wandb(launch, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("kleiber.training.lit.accumulate", broken)
    folder = launch("logger=wandb", "logger.wandb.mode=offline", code=1)
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert read(path)["exit_code"] == 1
    assert summary(folder)["status"] == "failed" and "a defect" in summary(folder)["error"]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_wandb_id(launch, interrupted):
    options = ("logger=wandb", "logger.wandb.mode=offline", "callbacks.checkpoints.every=5")
    with interrupted(2):
        folder = launch(*options, code=130)
    first = summary(folder)
    assert first["status"] == "interrupted"
    assert launch(*options) == folder
    assert summary(folder)["run_id"] == first["run_id"]
    ids = {read(path)["run"]["id"] for path in folder.glob("wandb/offline-run-*/run-*.wandb")}
    assert ids == {first["run_id"]}


def test_text_of_three_tokens_is_refused_before_training(tmp_path, cache_dir, capsys):
    (tmp_path / "short.txt").write_text("abc")
    code = main(["data=text", f"data.path={tmp_path / 'short.txt'}", f"root={tmp_path / 'runs'}", "logger=csv"])
    assert code == 2
    assert "model.context" in capsys.readouterr().err
