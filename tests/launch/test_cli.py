"""The command `kleiber`: its commands and options, its exit codes, and one line for each error."""

import pytest

from kleiber.launch.cli import main, parse_widths


def test_help_lists_the_commands_and_each_has_a_help(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "train" in text
    for command in [
        "runs",
        "plot",
        "compare",
        "check",
        "eval",
        "generate",
        "chat",
        "export",
        "import",
        "fit",
        "predict",
        "report",
    ]:
        assert command in text
        assert main([command, "--help"]) == 0
        assert f"kleiber {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["model=moe", "-m", "seed=0,1", "--cfg", "job"], ["--help"], ["-cd", "mine", "a=[1, 2]", "~b"], []],
    ids=" ".join,
)
def test_train_passes_its_arguments_on_as_they_are_and_ends_with_the_code(arguments, monkeypatch):
    passed = []
    monkeypatch.setattr("kleiber.launch.main.main", lambda argv: passed.append(argv) or 75)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main(["train", *arguments])
    assert (passed, end.value.code) == ([arguments], 75)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["runs", "x", "--status", "finishd"], "--status finishd"),
        (["check", "nup"], "nup"),
        (["check", "mup", "--widths", "64,a"], "--widths 64,a"),
        (["eval", "nowhere", "--evals", "perplexity"], "nowhere"),
        (["generate", "nowhere/there", "--prompt", "x"], "nowhere/there"),
        (["chat", "nowhere/there"], "nowhere/there"),
        (["runs", "x", "--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_wrong_arguments_exit_with_2_and_without_a_traceback(arguments, value, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert value in error and "Traceback" not in error


def test_widths_are_whole_numbers_separated_by_commas():
    assert parse_widths("64,128, 256") == [64, 128, 256]
    with pytest.raises(ValueError):
        parse_widths("64;128")
