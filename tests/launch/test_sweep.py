"""Sweeps: every cell runs whether others fail or not, and a second start runs only the missing cells."""

import pytest

import kleiber.runs.run
from kleiber.config.errors import ConfigError
from kleiber.launch.main import main
from kleiber.records.catalog import read_runs
from kleiber.records.locks import locked

SWEEP = ["-m", "name=first", "launcher=basic"]


@pytest.mark.slow
def test_other_cells_run_after_a_failure_and_a_second_start_runs_the_missing_cells(seeds, tmp_path):
    assert main([*SWEEP, "seed=0,1,2"]) == 4
    assert seeds == [0, 1, 2]
    assert {run.summary["status"] for run in read_runs(tmp_path / "root" / "first")} == {"finished", "failed"}
    seeds.clear()
    assert main([*SWEEP, "seed=0,1,2,3"]) == 4
    assert seeds == [1, 3]
    assert main([*SWEEP, "seed=0,2,3"]) == 0


@pytest.mark.slow
def test_a_cell_that_is_refused_before_its_first_step_leaves_nothing(seeds, tmp_path, monkeypatch, capsys):
    def refuse(config, folder, overrides):
        if config["seed"] != 2:
            raise ConfigError("data.path=nowhere is missing")
        return train(config, folder, overrides)

    train = kleiber.runs.run.train
    monkeypatch.setattr(kleiber.runs.run, "train", refuse)
    assert main(["-m", "seed=0,1", "launcher=basic", "logger=csv"]) == 4
    assert capsys.readouterr().err.count("nowhere") == 2 and not (tmp_path / "root").exists()
    assert main(["-m", "seed=0,2", "launcher=basic", "logger=csv"]) == 4
    assert [run.config["seed"] for run in read_runs(tmp_path / "root")] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_cell_that_another_process_runs_is_left_to_it_and_the_others_run(seeds, tmp_path, capsys, resume):
    assert main([*SWEEP, "seed=1"]) == 4
    (live,) = (run.folder for run in read_runs(tmp_path / "root/first"))
    (live / "summary.json").unlink()
    seeds.clear()
    with locked(live):  # another sweep is preparing it, before its first step
        before = {path.name: path.read_bytes() for path in live.iterdir()}
        assert main([*SWEEP, "seed=1,3", f"resume={resume}"]) == 4
        assert {path.name: path.read_bytes() for path in live.iterdir()} == before
    assert seeds == [3] and f"in use by other processes and are not started: {live.name}" in capsys.readouterr().out


@pytest.mark.slow
def test_callbacks_that_finished_cells_do_not_get_are_named_once(seeds, capsys):
    assert main([*SWEEP, "seed=0,2"]) == 0
    assert main([*SWEEP, "seed=0,2", "callbacks.samples=null"]) == 0 and seeds == [0, 2]
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no longer has an effect" in line]
    assert "callbacks.samples" in warning and "2 runs" in warning
    assert main([*SWEEP, "seed=0", "callbacks.samples=null", "resume=never"]) == 0
    assert "no longer has an effect" not in capsys.readouterr().err


def test_a_single_run_has_the_folder_of_the_equal_cell(seeds, tmp_path):
    assert main([*SWEEP, "seed=0,2", "budget.steps=7"]) == 0
    seeds.clear()
    assert main(["budget.steps=7", "name=first", "seed=2", "logger=csv"]) == 0
    assert seeds == []


def test_cells_are_refused_before_any_of_them_runs(seeds, capsys):
    assert main([*SWEEP, "seed=0,1", "model.depth=2,abc"]) == 2
    assert "model.depth=abc" in capsys.readouterr().err
    assert seeds == []


@pytest.mark.slow
def test_two_cells_that_are_the_same_run_run_once_with_a_message(seeds, capsys):
    assert main([*SWEEP, "seed=0", "logger=csv,wandb"]) == 0
    assert seeds == [0]
    assert "logger=wandb" in capsys.readouterr().out


@pytest.mark.slow
def test_cells_that_differ_only_in_devices_are_the_same_run(seeds, capsys):
    """FAULTS 15: the number of devices is no part of a run's identity."""
    assert main([*SWEEP, "seed=0", "trainer=ddp", "trainer.devices=1,2"]) == 0
    assert seeds == [0]
    assert "trainer.devices=2" in capsys.readouterr().out


def test_a_cell_that_is_preempted_in_one_process_ends_the_sweep(seeds, monkeypatch):
    monkeypatch.setattr(kleiber.runs.run, "train", lambda *_: seeds.append(7) or 75)
    assert main([*SWEEP, "seed=0,2"]) == 75
    assert seeds == [7]


def test_launcher_basic_refuses_several_devices(seeds, capsys):
    assert main([*SWEEP, "seed=0,2", "trainer=ddp"]) == 2
    assert "trainer.devices=2" in capsys.readouterr().err and seeds == []


def test_a_sweep_inside_a_cell_is_refused(seeds, monkeypatch, capsys):
    monkeypatch.setenv("KLEIBER_CELL", "1")
    assert main([*SWEEP, "seed=0,2"]) == 2
    assert "KLEIBER_CELL" in capsys.readouterr().err


@pytest.mark.slow
def test_a_config_file_can_start_a_sweep(seeds, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nname: asked\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {seed: '0,2'}\n"
    (tmp_path / "conf" / "experiment" / "e.yaml").write_text(text)
    assert main(["--config-dir", "conf", "experiment=e", "launcher=basic", "model.depth=1,2"]) == 0
    assert seeds == [0, 0, 2, 2]
    assert len(read_runs(tmp_path / "root" / "asked")) == 4
    seeds.clear()
    assert main(["--config-dir", "conf", "experiment=e", "launcher=basic", "model.depth=3"]) == 0
    assert seeds == [0, 2]


@pytest.mark.slow
def test_a_config_file_can_choose_the_launcher(seeds, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /launcher: basic]\nname: asked\n"
    (tmp_path / "conf" / "experiment" / "e.yaml").write_text(text)
    assert main(["-m", "--config-dir", "conf", "experiment=e", "seed=0,2"]) == 0
    assert seeds == [0, 2], "in this process, as `basic` does"


def test_a_dry_run_of_a_sweep_trains_and_writes_nothing(seeds, monkeypatch, tmp_path):
    priced = []
    monkeypatch.setattr(
        "kleiber.launch.price.print_price", lambda runs: priced.append(sorted(c["seed"] for c in runs.values()))
    )
    assert main(["-m", "name=first", "launcher=process", "seed=0,2", "dry_run=true"]) == 0
    assert priced == [[0, 2]] and seeds == []
    assert not (tmp_path / "root").exists()
