"""The command `kleiber`: its commands and options, its exit codes, and one line for each error."""

import pytest

import kleiber
from kleiber.launch.cli import app, main, parse_widths

COMMANDS = {
    "train", "config", "check", "runs", "plot", "diff", "reproduce", "compare", "report", "clean", "fit", "predict",
    "eval", "generate", "chat", "judge", "data", "export", "push", "import",
}  # fmt: skip


def test_help_lists_the_commands_and_each_has_a_help(capsys):
    assert {entry.name or vars(entry)["callback"].__name__ for entry in app.registered_commands} == COMMANDS
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS - {"train"}:  # whose help is that of training
        assert command in text
        assert main([command, "--help"]) == 0
        assert f"kleiber {command}" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kleiber {kleiber.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kleiber repr", ["reproduce"]),
        ("kleiber train model = m", ["moe"]),
        ("kleiber train seed=1 model/mlp =", ["dropping", "gelu", "moe", "relu2", "swiglu"]),
        ("kleiber config data = glue/ss", ["glue/sst2"]),
        ("kleiber train optim", ["optimizer="]),
        ("kleiber train seed = 1", []),
        ("kleiber train ../x=", []),
    ],
)
def test_bash_completes_commands_groups_and_choices(words, expected, monkeypatch, capsys):
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_KLEIBER_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == expected


def test_the_script_of_completion_is_shown_for_a_shell(monkeypatch, capsys):
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))  # make starts tests from sh
    with pytest.raises(SystemExit):
        main(["--show-completion"])
    assert "_KLEIBER_COMPLETE" in capsys.readouterr().out


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
