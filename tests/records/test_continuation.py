"""Which commands may continue a run, and which runs are those of a command."""

import copy
import shutil

import pytest
from fake_run import fake_run, write_summary

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.records.catalog import archive_runs
from kleiber.records.continuation import (
    check_never_continued,
    check_same_config,
    config_kept_until_trained,
    warn_without_effect,
)
from kleiber.records.folder import config_hash, read_config, write_config

CONFIG = resolve_config(Composer().compose([]))[0]


def changed(**values: object) -> dict:
    """CONFIG with other values, by key with `__` for a dot."""
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        *groups, last = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    return config


def test_resume_of_a_changed_config_names_the_keys(tmp_path):
    write_config(tmp_path, CONFIG, [])
    longer = changed(budget__tokens="1M", logger=None, trainer__max_steps=4, trainer__precision="bf16", batch__micro=2)
    check_same_config(tmp_path, longer)
    with pytest.raises(ConfigError, match=r"model\.depth: 2 -> 9; seed: 0 -> 7"):
        check_same_config(tmp_path, {**longer, "seed": 7, "model": {**CONFIG["model"], "depth": 9}})
    with pytest.raises(ConfigError, match="nope"):
        check_same_config(tmp_path / "nope", CONFIG)


@pytest.mark.parametrize(
    ("begun", "then", "key"),
    [
        ({}, {"trainer__precision": 64}, "trainer.precision: 32 -> 64"),
        ({"privacy": {"epsilon": 1.0}}, {"budget__steps": 5}, "budget.steps: None -> 5"),
        ({"stages": {"branches": ["1M"]}}, {"trainer__max_steps": 4}, "trainer.max_steps: None -> 4"),
    ],
)
def test_what_the_steps_so_far_depend_on_may_not_change(tmp_path, begun, then, key):
    write_config(tmp_path, changed(**begun), [])
    with pytest.raises(ConfigError, match=key):
        check_same_config(tmp_path, changed(**begun, **then))


def test_a_run_that_was_continued_with_another_budget_is_not_that_of_its_first_command(tmp_path):
    check_never_continued(tmp_path, CONFIG)
    shorter = changed(budget__steps=6)
    write_config(tmp_path, shorter, [])
    write_summary(tmp_path, config_hash=config_hash(shorter)[:8])
    with pytest.raises(ConfigError, match=r"budget\.steps: 6 -> None.*resume=never"):
        check_never_continued(tmp_path, CONFIG)
    write_config(tmp_path, CONFIG, [])  # whose budget it was given again, after steps with the other one
    write_summary(tmp_path, config_hash=config_hash(CONFIG)[:8], continued=True)
    with pytest.raises(ConfigError, match="resume=never"):
        check_never_continued(tmp_path, CONFIG)


def test_a_run_whose_summary_has_the_hash_of_an_earlier_version_is_that_of_its_config(tmp_path):
    write_config(tmp_path, CONFIG, [])
    write_summary(tmp_path, config_hash="0" * 8)
    check_never_continued(tmp_path, CONFIG)


def test_keys_that_act_while_a_run_trains_are_named_once_it_is_finished(tmp_path, capsys):
    ema, stability = {"_target_": "kleiber.training.EMA"}, {**CONFIG["callbacks"]["stability"], "window": 7}
    callbacks = {**CONFIG["callbacks"], "ema": ema, "stability": stability, "samples": None}
    watched = changed(callbacks=callbacks, eval__every_tokens="1K", evals={"perplexity": {}})
    assert config_hash(watched) == config_hash(CONFIG)
    write_config(tmp_path, CONFIG, [])
    for status, config, keys in (
        ("running", watched, ""),
        ("finished", CONFIG, ""),
        ("finished", watched, "callbacks.ema, callbacks.samples, callbacks.stability.window, eval.every_tokens"),
    ):
        write_summary(tmp_path, status=status)
        warn_without_effect({tmp_path: config})
        assert capsys.readouterr().err.removeprefix("warning: ").partition(" no longer")[0] == keys
    warn_without_effect({tmp_path / "nope": watched, tmp_path: changed(callbacks=callbacks, resume="never")})
    assert not capsys.readouterr().err


def test_cells_of_a_sweep_have_one_warning_whether_their_folders_are_there_or_archived(tmp_path, capsys):
    configs = {tmp_path / name: changed(seed=seed, name="study") for seed, name in enumerate(("here", "archived"))}
    for folder, config in configs.items():
        fake_run(folder, [{}], config=config)
    archive_runs(tmp_path)
    shutil.rmtree(tmp_path / "archived")
    warn_without_effect(configs)
    assert not capsys.readouterr().err
    warn_without_effect({folder: {**config, "callbacks": None} for folder, config in configs.items()})
    (warning,) = capsys.readouterr().err.splitlines()
    assert "callbacks.stability" in warning and f"2 runs in {tmp_path}" in warning


@pytest.mark.parametrize("trained", [True, False])
def test_the_config_of_a_run_is_replaced_only_by_one_that_trained_it(tmp_path, trained):
    write_config(tmp_path, CONFIG, ["seed=0"])
    write_summary(tmp_path, config_hash=config_hash(CONFIG)[:8])
    shorter = changed(budget__steps=6, resume=str(tmp_path))
    with config_kept_until_trained(shorter):
        write_config(tmp_path, shorter, ["seed=0", "budget.steps=6"])
        if trained:
            write_summary(tmp_path, config_hash=config_hash(shorter)[:8])
    assert read_config(tmp_path) == (shorter if trained else CONFIG)
