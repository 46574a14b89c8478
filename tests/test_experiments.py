"""The worked examples compose as their files say and train; `experiment=smoke` caps any trainer and any study."""

import json
from functools import cache
from typing import Any

import pytest
from omegaconf import OmegaConf
from small_run import REPOSITORY

from kleiber.config.check import check
from kleiber.config.compose import Composer, list_choices, resolve_config
from kleiber.launch.main import main

CONF = REPOSITORY / "conf"
TABLES = REPOSITORY / "tests/data"
CAPS = {
    "trainer": {"max_steps": 20},
    "model": {"depth": 1, "context": 64},
    "data": {"max_bytes": 200_000},
    "eval": {"tokens": 4096},
}
SMALL = {  # small local text in place of what lies on the hub
    "tiny_stories": [f"data.path={TABLES}/tiny.txt", "data.vocab_size=300"],
    "moe_wikitext": [f"data.path={TABLES}/tiny.txt", "data.config=null", "data.vocab_size=300"],
    "gsm8k": [f"data.path={TABLES}/instruct.jsonl", "data.config=null", "data.vocab_size=300"],
    "sft_lora": [f"stages.chain.sft.data.path={TABLES}/instruct.jsonl", "data.max_bytes=20000"],
}
STUDIES = list_choices("study")
FAST = {"scaling", "forgetting", "transfer"}  # a ladder, fine-tunes, and stages with data of their own


@cache
def composer() -> Composer:
    return Composer("train")


def composed(*overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a command line, and the choice of every group."""
    cfg = composer().compose([*overrides, "root=r"])
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    return resolve_config(cfg)[0], {str(group): choice for group, choice in choices.items()}


def differences(wanted: dict[str, Any], config: dict[str, Any], path: str = "") -> list[str]:
    """Keys of `wanted` that have another value in `config`."""
    wrong = []
    for key, value in wanted.items():
        where, present = f"{path}{key}", config.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            wrong += differences(value, present, f"{where}.")
        elif value != present:
            wrong.append(f"{where}={present}")
    return wrong


def test_every_file_is_an_example_or_the_cap():
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == {*SMALL, "smoke"}


@pytest.mark.parametrize("name", [*SMALL, "smoke"])
def test_an_experiment_composes_to_what_its_file_says(name):
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"experiment/{name}.yaml"))
    assert isinstance(node, dict)
    overridden = [entry for entry in node.pop("defaults", []) if isinstance(entry, dict)]
    config, choices = composed(f"experiment={name}")
    check(config)
    assert differences(node, config) == []
    assert differences(node, composed()[0]), "it changes nothing"
    for entry in overridden:
        for key, choice in entry.items():
            assert choices[str(key).removeprefix("override /")] == choice


def test_the_command_line_wins_over_an_experiment():
    config, choices = composed("experiment=moe_wikitext", "budget.steps=7", "model=gpt")
    assert config["budget"] == {"tokens": None, "flops": None, "ratio": None, "epochs": None, "steps": 7}
    assert choices["model"] == "gpt" and "router" not in config["model"]["mlp"]


def test_the_cap_is_that_of_the_smoke_trainer():
    config, _ = composed("experiment=smoke")
    assert config == composed("trainer=smoke")[0] == composed("trainer=smoke", "experiment=smoke")[0]
    assert differences(CAPS, config) == []


@pytest.mark.slow
def test_the_cap_holds_for_other_trainers_and_after_other_experiments():
    config, _ = composed("trainer=gpu", "experiment=smoke")
    assert differences(CAPS, config) == [] and config["trainer"]["precision"] == "bf16"
    for name in SMALL:
        assert differences(CAPS, composed(f"experiment=[{name},smoke]")[0]) == []


@pytest.mark.parametrize(
    "study", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in STUDIES]
)
def test_the_cap_holds_for_a_study(study):
    path = "evals.proxy_reward.reward_path=RUN"
    start = {"rl_forgetting": ["init.path=RUN"], "rlhf": [path]}.get(study, [])  # runs to start from
    config, _ = composed(f"study={study}", *start, "experiment=smoke")
    check(config)
    plain, _ = composed(f"study={study}", *start)
    assert [key for key in ("study", "design", "stages", "objective") if config[key] != plain[key]] == []
    assert differences(CAPS, config) == []


def trained(tmp_path, *overrides: str) -> dict[str, Any]:
    command = [*overrides, "trainer.threads=1", "logger=csv", "callbacks.samples.length=8", f"root={tmp_path / 'runs'}"]
    assert main(command) == 0
    (folder,) = (tmp_path / "runs").glob("*/*")
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_trains(tmp_path, cache_dir, name):
    caps = ["batch.tokens=512", "trainer.max_steps=3"]
    summary = trained(tmp_path, f"experiment=[{name},smoke]", *SMALL[name], *caps)
    assert summary["status"] == "finished"
    assert [stage["steps"] for stage in summary["stages"]] == [3] * (2 if name == "sft_lora" else 1)
    params = summary["stages"][-1]["params"]
    assert (params["trainable"] < params["total"]) == (name == "sft_lora")
    assert (params["active"] < params["total"]) == (name == "moe_wikitext")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_experiment_trains_on_its_own_data(tmp_path, cache_dir, shared, monkeypatch, name):
    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    assert trained(tmp_path, f"experiment=[{name},smoke]")["status"] == "finished"


@pytest.mark.slow
def test_a_capped_study_trains(tmp_path, cache_dir, capsys):
    small = ["design.widths=[32,48]", "design.seeds=1", "launcher=basic", "logger=csv", "trainer.threads=1"]
    assert main(["study=scaling", "experiment=smoke", *small, f"root={tmp_path}"]) == 0
    assert "2 finished" in capsys.readouterr().out
    for file in (tmp_path / "scaling").glob("*/summary.json"):
        assert {stage["steps"] for stage in json.loads(file.read_text())["stages"]} <= {*range(1, 21)}
