"""The command `kleiber`: its commands and options, its exit codes, and one line for each error."""

import re

import pytest
from typer.main import get_command

import kleiber
from kleiber.config.extensions import offers
from kleiber.launch import cli
from kleiber.launch.cli import Group, app, main, parse_widths

COMMANDS = {
    "train", "config", "check", "runs", "plan", "plot", "diff", "reproduce", "compare", "report", "publish", "clean",
    "fit",
    "predict", "eval", "generate", "chat", "data", "export", "push", "import",
}  # fmt: skip


@pytest.mark.slow
def test_help_lists_the_commands_and_each_has_a_help(capsys):
    present = {entry.name for entry in app.registered_commands}
    assert present - offers("COMMANDS").keys() == COMMANDS
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS - {"train"}:  # whose help is that of training
        assert command in text
        assert main([command, "--help"]) == 0
        assert f"kleiber {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "listed"), [(["--help"], True), (["config", "--help"], False)])
def test_commands_of_packages_are_imported_for_the_help_that_lists_them_and_not_for_others(
    words, listed, monkeypatch, capsys
):
    offered = offers("COMMANDS").keys()
    assert offered
    monkeypatch.setattr(app, "registered_commands", [e for e in app.registered_commands if e.name not in offered])
    imported = []
    monkeypatch.setattr(cli, "import_offer", lambda kind, name, place: imported.append(name) or (lambda: None))
    assert main(words) == 0
    assert {*imported} == (offered if listed else set())
    assert all(f" {name} " in capsys.readouterr().out for name in imported[:1])


def test_the_help_has_flags_without_a_type_and_paragraphs_without_line_breaks(capsys):
    group = get_command(app)
    assert isinstance(group, Group)
    for command in (group, *group.commands.values()):
        assert not re.search(r"[^\n]\n[^\n]", command.help or ""), command.name
    assert main(["report", "--help"]) == 0 and "<bool>" not in capsys.readouterr().out
    assert main(["--help"]) == 0 and "<bool>" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_folder_of_choices_is_an_option_of_config(tmp_path, capsys):
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("_target_: kleiber.optimizers.WSD\ndecay: 0.25\n")
    options = [["--config-dir", str(tmp_path), "schedule=mine"], ["schedule=mine", f"--config-dir={tmp_path}"]]
    for arguments in (*options, ["schedule=mine", "-cd", str(tmp_path)]):
        assert main(["config", *arguments]) == 0
        assert "decay: 0.25" in capsys.readouterr().out
    assert main(["config", "--help"]) == 0 and "--config-dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", ".", "--out"], ["fit", "t.csv", "--report"], ["eval", ".", "--evals", "ood", "--report"],
        ["data", ".", "--bias", "--report"],
    ],
)  # fmt: skip
def test_a_page_must_have_the_name_of_one(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "x.txt"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kleiber: ") and f"{arguments[-1]} x.txt" in error and ".html" in error


@pytest.mark.parametrize("command", [["fit", "no.csv"], ["predict", "no.json"], ["report", "no"], ["runs", "no"]])
def test_every_error_begins_with_the_name_of_the_program(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("kleiber: ")


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kleiber {kleiber.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kleiber repr", ["reproduce"]),
        ("kleiber train model = m", ["moe"]),
        ("kleiber train seed=1 model/mlp =", ["gelu", "moe", "relu2", "swiglu"]),
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
    monkeypatch.setattr("kleiber.launch.main.main", lambda argv, typed: passed.append(argv) or 75)
    assert main(["train", *arguments]) == 75
    assert passed == [arguments]


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
