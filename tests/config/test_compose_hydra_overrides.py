"""Hydra's other launchers and sweepers are refused with kleiber's way, wherever they are chosen."""

import pytest

from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError
from kleiber.launch.main import main

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@pytest.mark.parametrize(
    ("override", "way"),
    [
        ("hydra/launcher=basic", "launcher=basic"),
        ("hydra/launcher=joblib", "launcher=process"),
        ("hydra/launcher=submitit_slurm", "launcher=submitit"),
        ("hydra/launcher=submitit_local", "launcher.cluster=local"),
        ("hydra/launcher=ray", "launcher=ray"),
        ("hydra/launcher@hydra.launcher=basic", "launcher=basic"),
        ("hydra/launcher=null", "launcher=process"),
        ("~hydra/launcher", "launcher=process"),
        ("hydra.launcher.n_jobs=4", "launcher.workers=4"),
        (f"hydra.launcher._target_={BASIC}", "launcher=process"),
        ("hydra/sweeper=basic", "-m KEY=A,B"),
        ("hydra/sweeper=optuna", "design=search"),
        ("hydra.sweeper.n_trials=20", "design=search"),
    ],
)
@pytest.mark.parametrize("flags", [["-m"], []])
def test_another_launcher_or_sweeper_is_refused_with_kleibers_way(override, way, flags, tmp_path, monkeypatch, capsys):
    """FAULTS 125."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLEIBER_ROOT", str(tmp_path / "root"))
    assert main([*flags, override, "trainer=smoke"]) == 2
    error = capsys.readouterr().err
    assert override in error and way in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("plugin", ["launcher", "sweeper"])
def test_a_config_file_cannot_choose_them_either(plugin, tmp_path):
    (tmp_path / "experiment").mkdir()
    node = f"hydra: {{mode: MULTIRUN, {plugin}: {{_target_: {BASIC}}}}}"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{node}\n")
    composer = Composer(config_dir=str(tmp_path))
    for compose in (composer.compose, lambda lines: composer.multirun(lines, print)):
        with pytest.raises(ConfigError) as refused:
            compose(["experiment=mine"])
        assert f"hydra.{plugin}._target_={BASIC}" in str(refused.value)


def test_kleibers_own_and_swept_values_of_a_file_are_accepted():
    lines = ["hydra/launcher=kleiber", "hydra/sweeper=kleiber", "+hydra.sweeper.params.seed='0,1'"]
    assert Composer().compose(lines).hydra.sweeper.params == {"seed": "0,1"}


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "hydra.job.chdir"])
def test_the_folder_of_a_run_is_not_set_through_hydra(key):
    with pytest.raises(ConfigError, match="root= or name="):
        Composer().compose([f"{key}=elsewhere"])
