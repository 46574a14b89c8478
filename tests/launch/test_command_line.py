"""What is wrong with the words of a command line, and what to write instead."""

import pytest

from kleiber.config.errors import ConfigError
from kleiber.launch import cli
from kleiber.launch.command_line import parse_flags, refuse_repeated_keys


@pytest.mark.parametrize(
    ("words", "override"),
    [
        (["--dry-run"], "dry_run=true"),
        (["--dry-run", "seed=1"], "dry_run=true"),
        (["--resume"], "resume=VALUE"),
        (["--lr=0.25"], "optimizer.lr=0.25"),
        (["--batch_size", "32"], "batch.tokens"),
        (["--model.depth=3"], "model.depth=3"),
        (["--seed", "3"], "seed=3"),
        (["seed=1", "-model=moe"], "model=moe"),
        (["-model/mlp=moe"], "model/mlp=moe"),
    ],
)
def test_an_option_that_is_an_override_is_refused_with_the_override(words, override):
    with pytest.raises(ConfigError) as refused:
        parse_flags(words)
    assert f"write {override}" in str(refused.value)


@pytest.mark.parametrize("words", [["--frobnicate"], ["-xyz"]])
def test_another_option_is_refused_with_the_help(words):
    with pytest.raises(ConfigError) as refused:
        parse_flags(words)
    assert words[0] in str(refused.value) and "kleiber train --help" in str(refused.value)


def test_options_of_hydra_and_their_short_forms_are_read():
    assert parse_flags(["-m", "seed=0,1", "~evals"]).overrides == ["seed=0,1", "~evals"]
    assert parse_flags([]).overrides == []
    assert parse_flags(["--multi", "--cfg", "job"]).multirun
    assert parse_flags(["--config-dir=mine", "-cn", "train"]).config_dir == "mine"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["-sc", "install=bash"], "kleiber --install-completion"),
        (["--shell-completion"], "kleiber --install-completion"),
        (["--experimental-rerun", "x"], "kleiber reproduce"),
        (["--config-path", "conf"], "--config-dir"),
        (["-p", "model"], "--cfg job -p model"),
        (["--resolve"], "--cfg job --resolve"),
    ],
)
def test_a_flag_that_cannot_work_is_refused_with_the_right_flag(words, advice):
    """FAULTS 128."""
    with pytest.raises(ConfigError) as refused:
        parse_flags(words)
    assert advice in str(refused.value)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["seed=0", "seed=1"], ["seed is set twice (0, 1)", "-m seed=0,1"]),
        (["model=gpt", "-m", "+model=moe", "model=lstm"], ["model is set 3 times (gpt, moe, lstm)"]),
    ],
)
def test_a_key_with_two_values_is_refused(words, values):
    with pytest.raises(ConfigError) as refused:
        refuse_repeated_keys(words)
    assert all(value in str(refused.value) for value in values)


def test_a_repeated_value_and_keys_of_one_group_are_no_mistakes():
    refuse_repeated_keys(["seed=0", "seed=0", "model=gpt", "model/mlp=moe", "model.depth=2", "~evals", "--cfg", "job"])


@pytest.mark.parametrize("command", ["train", "config"])
def test_the_commands_refuse_a_repeated_key(command, capsys):
    try:
        code = cli.main([command, "seed=0", "seed=1"])
    except SystemExit as end:
        code = end.code
    assert code == 2 and "seed is set twice (0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "model.mlp.hidden=8 model.mlp=null", "callbacks.log.every=3 seed=1 ~callbacks.log",
        "+optimizer.lr.x=1 optimizer.lr=0.1", "callbacks.samples.length=8 callbacks.samples=null",
    ],
)  # fmt: skip
def test_a_key_whose_node_a_later_override_replaces_is_refused_with_both(line):
    """FAULTS 109."""
    with pytest.raises(ConfigError) as error:
        refuse_repeated_keys(line.split())
    assert line.split()[0] in str(error.value) and line.split()[-1] in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "model.depth=3 model=moe",
        "model.mlp=null model.mlp.hidden=8",
        "model.mlp.k=1 model.mlp={hidden:8}",
        "a.b=1 a.bc=2",
    ],
)
def test_a_key_that_is_merged_or_set_later_is_accepted(line):
    refuse_repeated_keys(line.split())
