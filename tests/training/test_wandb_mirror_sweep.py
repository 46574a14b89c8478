"""The W&B sweep in examples/, as its agent reads it: the command that it builds is run, without a server."""

from pathlib import Path

import pytest
import yaml
from wandb_records import read

from kleiber.config.check import check
from kleiber.config.compose import Composer, resolve_config
from kleiber.launch.main import main

SWEEP = yaml.safe_load((Path(__file__).parents[2] / "examples" / "wandb_sweep.yaml").read_text())


def agent_command(values: dict[str, object]) -> list[str]:
    """The command of a trial with these values of the parameters, as `wandb agent` builds it."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    macros |= {"env": ["/usr/bin/env"]}
    words = []
    for word in create_sweep_command([*SWEEP["command"]]):
        name = word.removeprefix("${").removesuffix("}")
        words += macros[name] if word == f"${{{name}}}" else [word]
    return words


def draw() -> dict[str, object]:
    """Values as the server chooses them, one for each parameter."""
    drawn = {}
    for name, parameter in SWEEP["parameters"].items():
        drawn[name] = parameter.get("value", parameter.get("values", [None])[0])
        if "min" in parameter:
            drawn[name] = (parameter["min"] * parameter["max"]) ** 0.5
    return drawn


def test_the_command_of_the_agent_starts_kleiber_with_every_parameter():
    values = draw()
    program, name, verb, *overrides = agent_command(values)
    assert (program, name, verb) == ("/usr/bin/env", "kleiber", "train")
    assert all(f"{key}={value}" in overrides for key, value in values.items())
    config, _ = resolve_config(Composer("train").compose(overrides))
    check(config)
    assert config["optimizer"]["lr"] == values["optimizer.lr"] and config["logger"]["wandb"]["mode"] == "online"


@pytest.mark.slow
def test_a_trial_trains_and_logs_the_metric_that_the_sweep_minimizes(tmp_path, cache_dir, monkeypatch):
    """In place of the server's answer, the client records offline."""
    monkeypatch.setattr("kleiber.training.wandb_mirror.choose_online", lambda mode, folder: False)
    _, _, _, *arguments = agent_command(draw())
    small = ["trainer=smoke", "trainer.threads=1", "callbacks.samples=null", f"root={tmp_path}"]
    assert main([*arguments, *small]) == 0
    (path,) = tmp_path.glob("rate-and-depth/*/wandb/offline-run-*/run-*.wandb")
    record = read(path)
    assert any(SWEEP["metric"]["name"] in row for row in record["history"])
    assert record["config"]["optimizer"]["lr"] == pytest.approx(draw()["optimizer.lr"])
    assert record["config"]["model"]["depth"] == 1 and record["run"]["group"] == "rate-and-depth"


def test_a_sweep_gives_the_run_its_id():
    """The agent sets WANDB_SWEEP_ID; the client then ignores the id and the project that a run has otherwise."""
    from wandb.sdk import wandb_init, wandb_settings

    init = wandb_init._WandbInit.__new__(wandb_init._WandbInit)
    init._wl = type("Setup", (), {"settings": wandb_settings.Settings(sweep_id="sweep1")})()
    ours = wandb_settings.Settings(run_id="kleiber", project="kleiber")
    init.clear_run_path_if_sweep_or_launch(ours)
    assert ours.run_id is None and ours.project is None
