"""Command lines of `python train.py`: the folder of a run, exit codes, and which files are written."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_run import write_summary
from small_run import REPOSITORY, TINY

import kleiber.runs.run
from kleiber import __version__
from kleiber.config.compose import Composer, resolve_config
from kleiber.launch.main import main, use_visible_gpus


class Trainer:
    """Replaces kleiber.runs.run.train: records its calls and writes the summary of a finished run."""

    def __init__(self):
        self.calls, self.raises = [], None

    def __call__(self, config, folder, overrides):
        self.calls.append((config, folder, overrides))
        print("training")
        if self.raises:
            raise self.raises
        write_summary(folder, name=config["name"])
        return 0


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "KLEIBER_CELL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KLEIBER_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    fake = Trainer()
    monkeypatch.setattr(kleiber.runs.run, "train", fake)
    monkeypatch.setattr("kleiber.launch.main.check_equal_configs", lambda config: None)  # there are no other ranks
    return fake


VISIBLE = [
    ("0,1,2", ["trainer=ddp"], ("gpu", "bf16", 3)),
    ("0,1,2", ["trainer=fsdp", "model.depth=3"], ("gpu", "bf16", 3)),
    ("0,1,2", ["trainer=ddp", "trainer.devices=2"], ("gpu", "bf16", 2)),
    ("0,1,2", ["trainer=ddp", "trainer.precision=32"], ("gpu", 32, 3)),
    ("0,1,2", ["trainer=ddp", "trainer.accelerator=gpu"], ("gpu", "bf16", 3)),
    ("0,1,2", ["trainer=ddp", "trainer.accelerator=cpu"], ("cpu", 32, 2)),
    ("0", ["trainer=fsdp"], ("cpu", 32, 2)),
    ("", ["trainer=ddp"], ("cpu", 32, 2)),
    ("0,1,2", ["trainer=cpu"], ("cpu", 32, 1)),
    ("0,1,2", [], ("cpu", 32, 1)),
]


@pytest.mark.parametrize(("visible", "overrides", "chosen"), VISIBLE)
def test_a_distributed_trainer_uses_all_visible_gpus_in_bf16_unless_keys_say_otherwise(
    monkeypatch, visible, overrides, chosen
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = resolve_config(Composer().compose(overrides))[0]
    before = dict(config["trainer"])
    settings = use_visible_gpus(config, overrides)
    trainer = config["trainer"]
    assert (trainer["accelerator"], trainer["precision"], trainer["devices"]) == chosen
    changed = {key for key in trainer if trainer[key] != before[key]}
    assert changed <= {text.removeprefix("trainer.").partition("=")[0] for text in settings}


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "root" / "runs").iterdir())


def test_a_run_writes_its_config_and_its_log_into_one_folder(trainer, tmp_path):
    assert main(["model.depth=3", "seed=1"]) == 0
    (config, folder, overrides) = trainer.calls[0]
    assert folder.parent == tmp_path / "root" / "runs" and overrides == ["model.depth=3", "seed=1"]
    assert config["model"]["depth"] == 3 and "hydra" not in config
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["depth"] == 3
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == overrides
    assert (folder / "log.txt").read_text().endswith("training\n")  # progress of a slow import may precede it
    assert sorted(os.listdir(tmp_path)) == ["root"]


def test_a_finished_run_is_not_trained_again(trainer, tmp_path, capsys):
    assert main(["seed=1"]) == 0
    assert main(["seed=1", "logger=csv", "trainer.threads=1"]) == 0
    assert len(trainer.calls) == 1
    assert str(trainer.calls[0][1]) in capsys.readouterr().out
    assert main(["seed=2"]) == 0
    assert len(trainer.calls) == 2


def test_resume_never_moves_the_old_run_to_another_folder(trainer, tmp_path):
    main(["seed=1"])
    main(["seed=1", "resume=never"])
    assert len(trainer.calls) == 2
    name = trainer.calls[0][1].name
    assert folders(tmp_path) == [name, f"{name}.1"]


def test_resume_path_accepts_a_longer_budget_and_refuses_another_seed(trainer, capsys):
    trainer.raises = RuntimeError("cut off")
    main(["seed=1"])
    trainer.raises = None
    where = trainer.calls[0][1]
    assert main(["seed=2", f"resume={where}"]) == 2
    assert "seed: 1 -> 2" in capsys.readouterr().err
    assert main(["seed=1", "budget.steps=9", f"resume={where}"]) == 0
    assert trainer.calls[-1][1] == where


@pytest.mark.parametrize("dry", ["true", "false"])
def test_a_wrong_value_of_resume_is_refused_also_in_a_dry_run(trainer, capsys, dry):
    assert main(["resume=always", f"dry_run={dry}"]) == 2
    assert "resume=always" in capsys.readouterr().err and not trainer.calls


def test_dry_run_trains_nothing_and_makes_no_folder(trainer, monkeypatch, tmp_path):
    priced = []
    monkeypatch.setattr("kleiber.launch.price.print_price", priced.append)
    assert main(["dry_run=true"]) == 0
    assert len(priced) == 1 and not trainer.calls
    assert os.listdir(tmp_path) == []


def test_flags_may_stand_anywhere(trainer, capsys):
    assert main(["seed=3", "--cfg", "job", "model.depth=4"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["seed"], shown["model"]["depth"]) == (3, 4)


def test_help_lists_groups_with_their_choices(trainer, capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "bert, gpt, hf, lstm, moe" in text and "budget.tokens=20M" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--hydra-help", "seed=1", "trainer=smoke"], "--info"),
        (["--info"], "KleiberSweeper"),
        (["--info", "defaults"], "data/builtin"),
        (["--cfg", "job", "-p", "model", "model.depth=7"], "depth: 7"),
        (["-m", "--cfg", "hydra"], "KleiberLauncher"),
        (["--cfg", "job", "study=scaling"], "Scaling"),
    ],
)
def test_flags_that_print_something_end_with_0(trainer, capsys, tmp_path, monkeypatch, words, shown):
    """FAULTS 128."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # --info adds one, and sets the level to DEBUG
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    assert main(words) == 0
    assert shown in capsys.readouterr().out
    assert not trainer.calls and os.listdir(tmp_path) == []


def test_version_is_that_of_kleiber(trainer, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"kleiber {__version__}\n"


@pytest.mark.parametrize(
    ("words", "advice"), [(["-p", "nope"], "--package nope"), (["-m", "model.depth=1,2"], "dry_run=true")]
)
def test_a_config_that_cannot_be_printed_is_refused_in_one_line(trainer, capsys, words, advice):
    assert main(["--cfg", "job", *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert advice in error


def test_several_values_without_a_sweep_are_refused_with_its_flag(trainer, capsys):
    assert main(["model.depth=1,2"]) == main(["--cfg", "job", "model.depth=1,2"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and "model.depth=1,2" in first and "-m" in first and "model.depth=[1,2]" in first


def test_a_crash_is_1_with_a_traceback_and_a_status(trainer, capsys):
    trainer.raises = ZeroDivisionError("boom")
    assert main([]) == 1
    assert "ZeroDivisionError: boom" in capsys.readouterr().err
    folder = trainer.calls[0][1]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "ZeroDivisionError: boom")
    assert "Traceback" in (folder / "log.txt").read_text()


def test_an_error_that_the_user_can_correct_is_2_in_one_line(trainer, capsys, monkeypatch):
    from kleiber.config.stages import quantity

    monkeypatch.setattr(kleiber.runs.run, "train", lambda *_: quantity("nonsense"))
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kleiber: 'nonsense'") and "Traceback" not in error


def test_ctrl_c_is_130_and_the_run_has_the_status_interrupted(trainer, monkeypatch):
    def interrupted(config, folder, overrides):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(kleiber.runs.run, "train", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main([]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    (summary,) = Path("root").rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("module", "code"), [("launch", 1), ("launch.main", 2), ("launch.cli", 2)])
def test_a_module_of_the_launcher_that_is_started_runs_its_command_or_refuses(module, code):
    """FAULTS 96."""
    ended = subprocess.run([sys.executable, "-m", f"kleiber.{module}", "nonsense=1"], capture_output=True, text=True)
    assert ended.returncode == code and ended.stderr


def test_stale_rank_variables_are_refused(trainer, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main([]) == 2
    assert "LOCAL_RANK=0" in capsys.readouterr().err
    assert trainer.calls == []


def test_under_torchrun_the_number_of_processes_sets_the_devices(trainer, monkeypatch, capsys):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert main(["trainer=ddp", "trainer.devices=4"]) == 2
    assert "trainer.devices=4" in capsys.readouterr().err
    assert main([]) == 2
    assert "trainer=ddp" in capsys.readouterr().err
    assert main(["trainer=ddp"]) == 0
    assert trainer.calls[0][0]["trainer"]["devices"] == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert main(["trainer=ddp", "seed=1"]) == 2
    assert "3 of 2 processes" in capsys.readouterr().err


def test_other_ranks_write_nothing_into_the_folder(trainer, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("kleiber.launch.ranks.redirect_rank_output", lambda folder: None)
    monkeypatch.setattr(kleiber.runs.run, "train", lambda *_: 0)
    assert main(["trainer=ddp"]) == 0
    assert not list(Path("root").rglob("*"))


@pytest.mark.parametrize("place", ["file/below", "/proc/below"])
def test_a_root_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch, capsys, place):
    """FAULTS 46."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([f"root={place}"]) == 2
    error = capsys.readouterr().err
    assert place in error and "KLEIBER_ROOT" in error and len(error.splitlines()) == 1


def test_a_gpu_that_does_not_exist_is_refused_in_one_line(trainer, monkeypatch, capsys):
    """FAULTS 31."""
    monkeypatch.setattr("kleiber.config.check._has_gpu", lambda: False)
    assert main(["trainer=gpu"]) == 2
    error = capsys.readouterr().err
    assert "set trainer.accelerator=cpu" in error and len(error.splitlines()) == 1


REFUSED = {
    "a mistyped path": ["data=text", "data.path=/nope"],
    "a rank above the width": ["stages=chain", "stages.chain={one:{},two:{}}", "adapter=lora", "adapter.rank=100000"],
    "experts in no layer": ["model=moe", "model.mlp.every=3"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(case, tmp_path, cache_dir, capsys):
    overrides = [*TINY, f"root={tmp_path / 'root'}", *REFUSED[case]]
    key = REFUSED[case][-1].split("=")[0]
    assert main(overrides) == 2
    assert f"{key}=" in capsys.readouterr().err
    assert not list((tmp_path / "root").glob("*/*"))


def test_a_started_run_that_is_refused_later_keeps_its_folder(tmp_path, cache_dir):
    text = tmp_path / "text.txt"
    text.write_text((REPOSITORY / "tests/data/tiny.txt").read_text())
    overrides = [
        *TINY,
        f"root={tmp_path / 'root'}",
        f"data.path={text}",
        "trainer.max_steps=1",
        "callbacks.samples=null",
    ]
    assert main(overrides) == 0
    (folder,) = (tmp_path / "root").glob("*/*")
    before = sorted(path.name for path in folder.iterdir())
    (folder / "summary.json").unlink()
    text.unlink()
    assert main(overrides) == 2
    assert set(before) - {"summary.json"} <= {path.name for path in folder.iterdir()}


def test_a_hugging_face_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path, capsys):
    from kleiber.models.hf_twin import to_hf
    from kleiber.models.transformer import Transformer

    to_hf(Transformer(32, depth=1, width=32, context=16, num_heads=2)).save_pretrained(tmp_path / "hf")
    assert main(["model=hf", f"model.path={tmp_path / 'hf'}", f"root={tmp_path}"]) == 2
    printed = capsys.readouterr().err
    assert f"{tmp_path / 'hf'} has no tokenizer.json" in printed and "Traceback" not in printed


def test_any_command_removes_the_scratch_folders_of_killed_launchers(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = ("kleiber-ranks-abc", "kleiber-price-abc", "kleiber-of-a-user")
    folders = {name: tmp_path / name for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / ("notes" if name.endswith("user") else ".kleiber-scratch")).write_text("")
    assert main(["model=nope"]) == 2
    assert [name for name in names if folders[name].exists()] == ["kleiber-of-a-user"]
