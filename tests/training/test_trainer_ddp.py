"""Two data-parallel ranks are one run with one folder and, in fp64, the losses of one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import PATIENCE, alive, rank_of, wait_for
from shared_ranks import fork_ranks
from small_run import REPOSITORY, TINY
from wandb_records import read

from kleiber.launch import ranks
from kleiber.launch.process import main as run_process
from kleiber.training.step import accumulate

OPTIONS = [
    "trainer=ddp", "trainer.precision=64", "model.depth=1", "model.context=64", "data.max_bytes=20000",
    "budget.steps=20", "eval.tokens=1024", "callbacks.log.every=1", "batch.micro=3",
]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in lines if len(row) > 3]


def in_forked_ranks(folder: Path, devices: int) -> int:
    """Trains the run of a folder in ranks that are forked from the test, which has imported torch; as `run_fresh`."""
    return fork_ranks(devices, lambda _: run_process([str(folder)]))


def assert_same_run(alone: Path, folder: Path) -> None:
    """The ranks of a run logged, scored and mirrored to W&B what one process did, once."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["machine"]["world_size"] == 2
    expected, logged = rows(alone), rows(folder)
    assert len(expected) == len(logged) >= 20
    for row, other in zip(expected, logged, strict=True):
        assert other == pytest.approx(row, abs=1e-9)
    validation = json.loads((alone / "summary.json").read_text())["stages"][0]["metrics"]
    assert summary["stages"][0]["metrics"] == pytest.approx(validation, abs=1e-9)
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    mirrored = read(record)
    assert mirrored["exit_code"] == 0 and mirrored["run"]["id"] == summary["run_id"]
    losses = [row["train/loss"] for row in mirrored["history"] if "train/loss" in row]
    assert losses == pytest.approx([row["train/loss"] for row in expected if "train/loss" in row], abs=1e-9)


MIRROR = ["logger=wandb", "logger.wandb.mode=offline"]


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one_process(launch, monkeypatch, capfd):
    alone = launch("model=moe", *OPTIONS, "trainer.devices=1", root="alone")
    monkeypatch.setattr(ranks, "run_fresh", in_forked_ranks)
    capfd.readouterr()
    folder = launch("model=moe", *OPTIONS, "trainer.devices=2", *MIRROR, root="pair")
    out, err = capfd.readouterr()
    assert out.count("bits per byte") == 1, "one console"
    assert "arning:" not in out + err
    assert_same_run(alone, folder)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("model", ["gpt", "moe", "lstm"])
def test_two_ranks_in_fresh_processes_give_the_numbers_of_one(launch, process, tmp_path, model):
    alone = launch(f"model={model}", *OPTIONS, "trainer.devices=1", root="alone")
    pair = process(f"model={model}", *OPTIONS, "trainer.devices=2", *MIRROR, root="pair")
    out, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 0, err
    assert out.count("bits per byte") == 1, "one console"
    assert "arning:" not in out + err
    assert_same_run(alone, next((tmp_path / "pair").glob("*/*")))


@pytest.mark.slow
@pytest.mark.process
def test_shares_over_the_global_batch_are_those_of_all_ranks(launch, process, tmp_path):
    """4 rows on each of two ranks are 8 rows in one process: their counts are added up before they are shares."""
    options = ["model=moe", *OPTIONS, "model.mlp.balance.scope=global", "model.mlp.balance.coefficient=1.0"]
    alone = rows(launch(*options, "batch.micro=8", "trainer.devices=1", root="alone"))
    pair = process(*options, "batch.micro=4", "trainer.devices=2", root="pair")
    _, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 0, err
    (folder,) = (tmp_path / "pair").glob("*/*")
    for row, other_row in zip(alone, rows(folder), strict=True):
        assert other_row == pytest.approx(row, abs=1e-9)
    halves = rows(launch(*options, "batch.micro=4", "trainer.devices=1", root="halves"))
    last, other = ([row["train/loss"] for row in logged if "train/loss" in row][-1] for logged in (alone, halves))
    assert last != pytest.approx(other, abs=1e-6), "one process that counts 4 rows at a time has another loss"


@pytest.mark.slow
def test_two_ranks_go_back_to_a_checkpoint_together(launch, monkeypatch):
    """A spike on both ranks, after which they have the losses, the rollback and the alarms of one process."""

    def spiking() -> None:
        calls: list[int] = []

        def leap(*arguments):
            calls.append(1)
            sums = accumulate(*arguments)
            if len(calls) == 18:
                sums.values["ce"] = 4 * sums.values["ce"]
            return sums

        monkeypatch.setattr("kleiber.training.lit.accumulate", leap)

    options = [*OPTIONS, "callbacks.stability.policy=rollback", "callbacks.stability.window=10"]
    options += ["callbacks.checkpoints.every=5", "callbacks.stability.every=5", "callbacks.stability.rows=4"]
    spiking()
    alone = launch(*options, "trainer.devices=1", root="alone")
    spiking()
    monkeypatch.setattr(ranks, "run_fresh", in_forked_ranks)
    pair = launch(*options, "trainer.devices=2", root="pair")
    ours, theirs = (json.loads((folder / "summary.json").read_text())["stages"][0] for folder in (alone, pair))
    assert [(entry["step"], entry["to"]) for entry in theirs["rollbacks"]] == [(18, 15)]
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.process
def test_a_run_goes_on_with_another_number_of_ranks(launch, process, interrupted, tmp_path):
    """FAULTS 45: the position is the number of optimizer steps, and the order of samples knows no ranks."""
    alone = launch(*OPTIONS, "trainer.devices=1", root="alone")
    with interrupted(4):
        launch(*OPTIONS, "trainer.devices=1", root="pair", code=130)
    pair = process(*OPTIONS, "trainer.devices=2", root="pair")
    _, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 0 and "resuming at step" in err, err
    (folder,) = (tmp_path / "pair").glob("*/*")
    for row, other in zip(rows(alone), rows(folder), strict=True):
        assert other == pytest.approx(row, abs=1e-9)


POISON = """
import importlib.abc, os, sys
with open({log!r}, "a") as file:
    file.write(" ".join(sys.orig_argv[1:]) + f" RANK={{os.environ.get('RANK')}}\\n")
class Poison(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "kleiber.training.lit":
            raise RuntimeError("poisoned")
if os.environ.get("RANK") == "1" and "seed1" in " ".join(sys.orig_argv):
    sys.meta_path.insert(0, Poison())
"""
STUDY = """# @package _global_
defaults: [override /trainer: ddp]
name: s
hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1,2'}}}
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_sweep_of_two_rank_cells_one_failing_on_rank_1(launch, monkeypatch, cache_dir, tmp_path):
    """FAULTS 13, 14, 16; USERS 1-6: a study file that asks for the sweep itself, so a child could start it again."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/s.yaml").write_text(STUDY)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(POISON.format(log=str(tmp_path / "started")))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    options = [text for text in [*TINY, *OPTIONS] if not text.startswith(("trainer=", "logger="))]  # the file's
    options += ["logger=wandb", "logger.wandb.mode=offline"]
    command = [sys.executable, "train.py", "--config-dir", tmp_path / "conf", "experiment=s", "trainer.devices=2"]
    command += [*options, f"root={tmp_path / 'runs'}", "launcher.workers=2"]
    done = subprocess.run([*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 4, done.stdout + done.stderr
    monkeypatch.undo()
    cells = {yaml.safe_load(path.read_text())["seed"]: path.parent for path in tmp_path.glob("runs/s/*/config.yaml")}
    assert sorted(cells) == [0, 1, 2]
    summaries = {seed: json.loads((cell / "summary.json").read_text()) for seed, cell in cells.items()}
    assert [summaries[seed]["status"] for seed in (0, 1, 2)] == ["finished", "failed", "finished"]
    assert "rank 1" in summaries[1]["error"] and "poisoned" in summaries[1]["error"]
    assert alive(tmp_path / "runs") == {}
    started = [line for line in (tmp_path / "started").read_text().splitlines() if str(tmp_path / "runs") in line]
    assert sum("train.py" in line for line in started) == 1
    assert sum("-m kleiber.launch.ranks" in line for line in started) == 3
    ranks = [
        line.split("RANK=")[1]
        for line in started
        if "kleiber.launch.process" in line and "kleiber.launch.ranks" not in line
    ]
    assert sorted(ranks) == ["0", "0", "0", "1", "1", "1"]
    ids = {read(path)["run"]["id"] for path in tmp_path.glob("runs/s/*/wandb/offline-run-*/run-*.wandb")}
    assert ids >= {summaries[0]["run_id"], summaries[2]["run_id"]} and len(ids) <= 3
    for seed in (0, 2):
        alone = launch(*OPTIONS, "trainer.devices=1", f"seed={seed}", root="alone")
        for row, other in zip(rows(alone), rows(cells[seed]), strict=True):
            assert other == pytest.approx(row, abs=1e-9)


TREE = ["trainer=ddp", "trainer.devices=2", "stages=trunk_and_cooldowns", "stages.branches=[10240,25600]"]
TREE += ["trainer.max_steps=50", "callbacks.checkpoints.every=4", "eval.tokens=1024"]


def ends(root: Path) -> dict[str, str]:
    """Digest of the last weights of each stage."""
    last = {path.parent.name: max(path.glob("step-????????")) for path in root.glob("*/*/stages/*/checkpoints")}
    return {name: json.loads((path / "meta.json").read_text())["sha256"]["model.safetensors"]
            for name, path in last.items()}  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_tree_of_two_ranks_killed_in_either_ends_bit_identical(process, tmp_path):
    """FAULTS 3, 16: the death of one rank ends the other, and the same command goes on."""
    unbroken = process(*TREE, root="unbroken")
    out, err = unbroken.communicate(timeout=PATIENCE)
    assert unbroken.returncode == 0, out + err
    for rank, stage in (("1", "trunk"), ("0", "25600")):
        run = process(*TREE, root="killed")
        try:
            wait_for(lambda stage=stage: list(tmp_path.glob(f"killed/*/*/stages/{stage}/checkpoints/step-????????")))
            (pid,) = [pid for pid, line in alive(tmp_path / "killed").items()
                      if "launch.process" in line and "launch.ranks" not in line and rank_of(pid) == rank]  # fmt: skip
            os.kill(pid, signal.SIGKILL)
            out, err = run.communicate(timeout=PATIENCE)
        finally:
            run.kill()
        assert run.returncode == 1 and f"rank {rank} was killed by SIGKILL" in err, out + err
        assert alive(tmp_path / "killed") == {}
        (summary,) = tmp_path.glob("killed/*/*/summary.json")
        assert json.loads(summary.read_text())["status"] == "failed"
    again = process(*TREE, root="killed")
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0 and "resuming at step" in err, out + err
    assert ends(tmp_path / "killed") == ends(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_two_ranks_that_are_asked_to_end_save_once_and_say_so(process, tmp_path, number, code, status):
    """FAULTS 9 and 86 under ranks: one signal to the command, one checkpoint, one exit code."""
    run = process("trainer=ddp", "trainer.devices=2", "budget.steps=5000", "trainer.max_steps=5000")
    wait_for(lambda: list(tmp_path.glob("runs/*/*/metrics.jsonl")))
    run.send_signal(number)
    out, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == code, out + err
    (summary,) = tmp_path.glob("runs/*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == status
    assert list(tmp_path.glob("runs/*/*/stages/main/checkpoints/step-????????/meta.json"))
    assert alive(tmp_path / "runs") == {}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_rank_that_is_stopped_is_named_and_the_run_ends_with_a_checkpoint(process, tmp_path):
    """FAULTS 88. The checkpoint is of a step that no schedule asks for: the last one that both ranks completed."""
    options = ["budget.steps=50000", "trainer.max_steps=50000", "callbacks.checkpoints.every=0", "eval.every_steps=0"]
    run = process("trainer=ddp", "trainer.devices=2", "trainer.rank_timeout=20", *options)
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/*/metrics.jsonl")))
        (pid,) = [pid for pid, line in alive(tmp_path / "runs").items()
                  if "launch.process" in line and "launch.ranks" not in line and rank_of(pid) == "1"]  # fmt: skip
        os.kill(pid, signal.SIGSTOP)
        out, err = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 1 and "rank 1 " in err and "Traceback" not in err, out + err
    (summary,) = tmp_path.glob("runs/*/*/summary.json")
    record = json.loads(summary.read_text())
    assert record["status"] == "failed" and "rank 1 " in record["error"]
    assert list(tmp_path.glob("runs/*/*/stages/main/checkpoints/step-????????/meta.json"))
    assert alive(tmp_path / "runs") == {}
