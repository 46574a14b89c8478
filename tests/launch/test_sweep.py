"""Sweeps: every cell runs whatever becomes of the others, and a second start runs only what is missing."""

import json
import signal
import subprocess
import sys

import pytest
from processes import alive, wait_for
from small_run import REPOSITORY

import kleiber.runs.run
from kleiber.launch.main import main
from kleiber.records.catalog import archived_runs, read_runs
from kleiber.records.summary import Summary


@pytest.fixture
def seeds(monkeypatch, tmp_path):
    """Runs cells in this process with a trainer that fails on seed 1; the seeds that were trained."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "KLEIBER_CELL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KLEIBER_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    trained = []

    def train(cfg, folder, overrides):
        trained.append(cfg.seed)
        if cfg.seed == 1:
            raise RuntimeError("unlucky")
        Summary(folder).update(status="finished", name=cfg.name, stages=[])
        return 0

    monkeypatch.setattr(kleiber.runs.run, "train", train)
    return trained


SWEEP = ["-m", "name=first", "launcher=basic"]


def test_a_failing_cell_stops_no_other_and_a_second_start_runs_only_what_is_missing(seeds, tmp_path):
    assert main([*SWEEP, "seed=0,1,2"]) == 4
    assert seeds == [0, 1, 2]
    found = {run.summary["status"] for run in read_runs(tmp_path / "root" / "first")}
    assert found == {"finished", "failed"}
    seeds.clear()
    assert main([*SWEEP, "seed=0,1,2,3"]) == 4
    assert seeds == [1, 3]
    assert main([*SWEEP, "seed=0,2,3"]) == 0


def test_a_single_run_is_the_cell_of_the_sweep(seeds, tmp_path):
    assert main([*SWEEP, "seed=0,2", "budget.steps=7"]) == 0
    seeds.clear()
    assert main(["budget.steps=7", "name=first", "seed=2", "logger=csv"]) == 0
    assert seeds == []


def test_cells_are_refused_before_any_of_them_runs(seeds, capsys):
    assert main([*SWEEP, "seed=0,1", "model.depth=2,abc"]) == 2
    assert "model.depth=abc" in capsys.readouterr().err
    assert seeds == []


def test_the_same_run_twice_runs_once_and_is_said(seeds, capsys):
    assert main([*SWEEP, "seed=0", "logger=csv,wandb"]) == 0
    assert seeds == [0]
    assert "the same run twice" in capsys.readouterr().out


def test_the_number_of_devices_makes_no_other_run_of_it_and_that_is_said(seeds, capsys):
    """FAULTS 15: it is no part of a run's identity, so the same losses would come twice."""
    assert main([*SWEEP, "seed=0", "trainer=ddp", "trainer.devices=1,2"]) == 0
    assert seeds == [0]
    assert "the same run twice: " in (told := capsys.readouterr().out) and "trainer.devices=2" in told


def test_a_cell_that_is_preempted_in_one_process_ends_the_sweep(seeds, monkeypatch):
    monkeypatch.setattr(kleiber.runs.run, "train", lambda *_: seeds.append(7) or 75)
    assert main([*SWEEP, "seed=0,2"]) == 75
    assert seeds == [7]


def test_one_process_is_refused_for_several_devices(seeds, capsys):
    assert main([*SWEEP, "seed=0,2", "trainer=ddp"]) == 2
    assert "launcher=basic" in capsys.readouterr().err and seeds == []


def test_a_sweep_inside_a_cell_is_refused(seeds, monkeypatch, capsys):
    monkeypatch.setenv("KLEIBER_CELL", "1")
    assert main([*SWEEP, "seed=0,2"]) == 2
    assert "inside a cell" in capsys.readouterr().err


def test_a_file_may_ask_for_a_sweep(seeds, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nname: asked\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {seed: '0,2'}\n"
    (tmp_path / "conf" / "experiment" / "e.yaml").write_text(text)
    assert main(["--config-dir", "conf", "experiment=e", "launcher=basic", "model.depth=1,2"]) == 0
    assert seeds == [0, 0, 2, 2]
    assert len(read_runs(tmp_path / "root" / "asked")) == 4
    seeds.clear()
    assert main(["--config-dir", "conf", "experiment=e", "launcher=basic", "model.depth=3"]) == 0
    assert seeds == [0, 2]


def test_a_file_may_choose_how_cells_run(seeds, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /launcher: basic]\nname: asked\n"
    (tmp_path / "conf" / "experiment" / "e.yaml").write_text(text)
    assert main(["-m", "--config-dir", "conf", "experiment=e", "seed=0,2"]) == 0
    assert seeds == [0, 2], "in this process, as `basic` does"


def test_a_dry_sweep_trains_nothing_and_leaves_nothing(seeds, monkeypatch, tmp_path):
    priced = []
    monkeypatch.setattr(
        "kleiber.launch.price.price", lambda runs: priced.append(sorted(c["seed"] for c in runs.values()))
    )
    assert main(["-m", "name=first", "launcher=process", "seed=0,2", "dry_run=true"]) == 0
    assert priced == [[0, 2]] and seeds == []
    assert not (tmp_path / "root").exists()


ARGUMENTS = [
    "trainer=smoke", "trainer.max_steps=3", "logger=csv", "eval.tokens=64", "data=text", "callbacks=null",
    f"data.path={REPOSITORY / 'tests/data/tiny.txt'}",
]  # fmt: skip


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs train.py in a process."""
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)


@pytest.mark.process
def test_cells_in_forked_processes(tmp_path):
    sweep = ["-m", "name=s", f"root={tmp_path}", "seed=0,1", "optimizer.lr=0.01,-1", *ARGUMENTS]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    runs = read_runs(tmp_path / "s")
    assert done.returncode == 4, done.stdout + done.stderr
    assert sorted(run.status for run in runs) == ["failed", "failed", "finished", "finished"]
    assert all((run.folder / "log.txt").exists() for run in runs)
    archived = archived_runs(tmp_path / "s" / "runs.jsonl.gz")
    assert [(run.name, run.status) for run in archived] == [(run.name, run.status) for run in runs]
    assert all(run.summary["machine"]["threads"] == 1 for run in runs)


@pytest.mark.slow
@pytest.mark.process
def test_a_failing_cell_is_tried_again_and_a_sweep_may_stop(tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    cells = ["seed=0,1", "data=text", f"data.path={tmp_path / 'short.txt'}", "trainer=smoke", "logger=csv"]
    options = ["launcher.workers=1", "launcher.retries=1", "launcher.stop_after=1"]
    sweep = ["-m", "name=s", f"root={tmp_path / 'root'}", *cells, *options]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 4, done.stdout + done.stderr
    told = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("[")]
    assert told == ["again", "again", "failed"]
    errors = [run.summary["error"] for run in read_runs(tmp_path / "root" / "s")]
    assert len(errors) == 2 and all("fewer than one window" in error for error in errors)


@pytest.mark.slow
@pytest.mark.process
def test_a_job_of_two_ranks_is_one_run_with_the_losses_of_one_process(tmp_path):
    losses = []
    arguments = [text for text in ARGUMENTS if not text.startswith("eval.tokens")]  # every rank needs some to evaluate
    for name, extra in (("one", []), ("two", ["trainer._target_=kleiber.training.DDP", "trainer.devices=2"])):
        done = train(f"name={name}", f"root={tmp_path}", *arguments, *extra)
        assert done.returncode == 0, done.stderr
        (summary,) = (tmp_path / name).rglob("summary.json")
        losses.append(json.loads(summary.read_text())["stages"][0]["metrics"])
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        assert losses[1][key] == pytest.approx(value, rel=1e-4)


def test_a_design_is_multiplied_by_the_sweep_and_yields_to_its_keys(seeds, tmp_path):
    design = ["design=grid", "design.widths=[32,64]", "design.seeds=1"]
    assert main([*SWEEP, *design, "budget.steps=3,4"]) == 0
    found = {tuple(run.summary["name"] for run in read_runs(tmp_path / "root" / "first"))}
    assert found == {("first",) * 4}
    assert seeds == [0] * 4
    seeds.clear()
    assert main([*SWEEP, *design, "seed=2,3", "budget.steps=5"]) == 0
    assert seeds == [2, 3, 2, 3]
    assert not [run.name for run in read_runs(tmp_path / "root" / "first") if run.name.count("seed") > 1]


def test_a_study_sweeps_by_itself_and_is_analysed_at_the_end(seeds, tmp_path, monkeypatch):
    analysed = []
    monkeypatch.setattr("kleiber.launch.sweep.report", lambda *told: analysed.append(told))
    command = ["study=scaling", "launcher=basic", "design.widths=[32,48,64]", "design.seeds=1"]
    assert main(command) == 0
    assert seeds == [0, 0, 0]
    assert main([*command, "study.min_tokens=3k"]) == 0
    assert seeds == [0, 0, 0], "another question to the same cells"
    (first, asked), (again, other) = analysed
    assert first == again == tmp_path / "root" / "scaling"
    assert asked["min_tokens"] != other["min_tokens"] == "3k" and asked["_target_"] == other["_target_"]


LONG = ["budget.steps=5000", "trainer.max_steps=5000", "callbacks.checkpoints.every=20", "eval.every_steps=0"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code", "becomes"),
    [(signal.SIGTERM, 75, "preempted"), pytest.param(signal.SIGINT, 130, "killed", marks=pytest.mark.slow)],
)
def test_a_sweep_that_is_ended_ends_its_cells_in_good_order(process, tmp_path, number, code, becomes):
    """FAULTS 12: and what has not begun stays missing, what is finished stays finished."""
    sweep = process("-m", "name=s", "seed=0,1,2", "budget.steps=3,5000", *LONG[1:], "launcher.workers=2")
    try:
        assert "finished" in next(line for line in sweep.stdout if line.startswith("[1/6]"))
        wait_for(lambda: list(tmp_path.glob("runs/s/*/stages/main/checkpoints/step-00000020")))
        sweep.send_signal(number)
        out, err = sweep.communicate(timeout=60)
    finally:
        sweep.kill()
    assert sweep.returncode == code, out + err
    told = {run.name: run.status for run in read_runs(tmp_path / "runs/s")}
    assert becomes in told.values() and "running" not in told.values(), told
    assert "finished" in told.values() and "missing" in told.values(), out + err
    if becomes == "preempted":
        ended = [run.folder for run in read_runs(tmp_path / "runs/s") if run.status == becomes]
        assert any(list(where.glob("stages/main/checkpoints/step-????????")) for where in ended)
    assert not alive(tmp_path)


def test_max_cells_and_seeds_of_a_study_are_about_the_sweep(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kleiber.launch.sweep.report", lambda *_: None)
    told = ["study=scaling", "launcher=basic", "design.widths=[32,64]"]
    assert main([*told, "study.seeds=2", "study.max_cells=3"]) == 4  # seed 1 fails here
    assert seeds == [0, 1, 0] and "1 planned cells are left out" in capsys.readouterr().out
    assert main(["study=scaling", "study.seeds=2", "design=optimal", "design.flops=1e14"]) == 2
    assert "study.seeds" in capsys.readouterr().err


@pytest.fixture
def priced(monkeypatch):
    """The runs that are priced, by a price that is the same for all."""
    asked = []
    ends = [{"active": n, "tokens": d, "flops_per_token": 6.0 * n} for n in (1e5, 2e5, 4e5) for d in (1e6, 2e6, 4e6)]
    cell = {"params": 9, "active": 9, "flops": 2.0, "tokens": 3, "seconds": 3600.0, "seconds_per_token": 1.0}

    def ask(runs, threads, describe=False):
        asked.extend(runs.values())
        cells = [{**cell, "ends": ends} for _ in runs]
        return {"cells": cells, "memory_bytes": 2**30, "unmeasured": None, "start": 0.0, "description": []}

    monkeypatch.setattr("kleiber.launch.price.ask", ask)
    return asked


def test_a_designed_dry_run_prices_the_cells_and_starts_none(seeds, priced, tmp_path, capsys):
    for design in (["design.widths=[32,48,64]", "design.seeds=1"], ["design=isoflop", "design.flops=1e14"]):
        priced.clear()
        assert main(["study=scaling", *design, "dry_run=true"]) == 0
        out = capsys.readouterr().out
        assert "no run was started" in out and f"{2.0 * len(priced):.3g} FLOPs" in out and "interval     +-" in out
        assert f"time         {len(priced):.2f} hours" in out
    assert seeds == [] and not (tmp_path / "root" / "scaling").exists()
    assert main(["study=scaling", "design=optimal", "dry_run=true"]) == 2
    assert "design.flops or design.hours" in capsys.readouterr().err


def test_a_dry_run_of_sequences_asks_for_no_law(priced, capsys):
    assert main(["study=continual", "design.seeds=1", "budget.tokens=100K", "dry_run=true"]) == 0
    assert "interval" not in capsys.readouterr().out and len(priced) == 12 + 2


@pytest.mark.parametrize("dry", ["true", "false"])
def test_a_design_that_cannot_determine_its_law_is_refused_before_anything_is_trained(
    seeds, priced, tmp_path, capsys, dry
):
    study = ["study=scaling", "launcher=basic", "design.seeds=1", f"dry_run={dry}"]
    assert main([*study, "design.widths=[32,48,64]", "stages.branches=[4M]"]) == 2
    assert "3 points (3 sizes, 1 numbers of tokens), 5 parameters" in capsys.readouterr().err
    assert main([*study, "design.widths=[32,48]", "stages.branches=[1M,2M,4M,8M]", "study.min_tokens=1"]) == 2
    assert "8 points (2 sizes, 4 numbers of tokens) determine 4 of the 5 parameters" in capsys.readouterr().err
    assert seeds == priced == [] and not list((tmp_path / "root").glob("*/*"))


def test_runs_that_are_finished_count_among_the_points(seeds, monkeypatch):
    monkeypatch.setattr("kleiber.launch.sweep.report", lambda *_: None)
    study = ["study=scaling", "launcher=basic", "design.seeds=1"]
    assert main([*study, "design.widths=[32,48,64]"]) == 0
    assert main([*study, "design.widths=[96]"]) == 0 and len(seeds) == 4


def test_a_study_that_has_more_to_tell_than_its_law_warns(seeds, priced, capsys):
    assert main(["study=moe_law", "design.widths=[32]", "dry_run=true"]) == 0
    assert "can estimate gains but not fit a law: 12 points (1 sizes" in capsys.readouterr().out


@pytest.mark.slow
def test_an_optimal_design_runs_in_rounds_and_writes_its_plan(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kleiber.launch.sweep.report", lambda *_: None)
    assert main(["study=scaling", "launcher=basic", "design=optimal", "design.flops=1e14"]) == 4  # seed 1
    plan = json.loads((tmp_path / "root" / "scaling" / "design.json").read_text())
    assert len(plan["rounds"]) == 3 and sum(len(one["trunks"]) for one in plan["rounds"]) == len(seeds)
    assert capsys.readouterr().out.count("design, round") == 3
