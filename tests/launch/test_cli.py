"""The command `kleiber`: its commands and options, its exit codes, and one line for each error."""

import io
import json

import pytest
from fake_run import fake_run

from kleiber.data.tokenizers import Bytes
from kleiber.launch.cli import main, parse_widths
from kleiber.models.transformer import Transformer
from kleiber.runs.open import TrainedModel


@pytest.fixture
def study(tmp_path):
    fake_run(tmp_path / "a", [{"metrics": {"val/docs/loss": 2.5}}])
    fake_run(tmp_path / "b", status="failed", error="ValueError: no")
    return tmp_path


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


def test_runs_are_listed_as_json_with_their_folders(study, capsys):
    assert main(["runs", str(study), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["folder"], row["status"]) for row in rows] == [
        (str(study / "a"), "finished"), (str(study / "b"), "failed"),
    ]  # fmt: skip


def test_runs_are_selected_by_status(study, capsys):
    assert main(["runs", str(study), "--json", "--status", "failed"]) == 0
    assert [row["folder"] for row in json.loads(capsys.readouterr().out)] == [str(study / "b")]
    assert main(["runs", str(study), "--status", "running"]) == 0
    out = capsys.readouterr().out
    assert "running" in out and str(study) in out and "finished" not in out


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


def test_an_error_that_the_user_cannot_correct_is_raised(monkeypatch, study):
    def broken(folder):
        raise ZeroDivisionError

    monkeypatch.setattr("kleiber.records.catalog.read_runs", broken)
    with pytest.raises(ZeroDivisionError):
        main(["runs", str(study)])


@pytest.mark.parametrize(("command", "function"), [("export", "export"), ("import", "import_hf")])
def test_export_and_import_pass_their_paths_on(monkeypatch, tmp_path, capsys, command, function):
    calls = []
    monkeypatch.setattr(f"kleiber.runs.huggingface.{function}", lambda *paths: calls.append(paths))
    assert main([command, "source", str(tmp_path)]) == 0
    assert [str(path) for path in calls[0][:2]] == ["source", str(tmp_path)]
    assert str(tmp_path) in capsys.readouterr().out


def test_widths_are_whole_numbers_separated_by_commas():
    assert parse_widths("64,128, 256") == [64, 128, 256]
    with pytest.raises(ValueError):
        parse_widths("64;128")


@pytest.fixture
def small_model(monkeypatch, tmp_path):
    """Makes every folder the run of an untrained model of bytes."""
    run = TrainedModel(tmp_path, Transformer(Bytes().vocab_size, depth=1, width=16).eval(), Bytes(), {"objective": {}})
    monkeypatch.setattr("kleiber.runs.open.open_model", lambda _path: run)
    return tmp_path


def test_a_prompt_is_continued_and_written_with_its_settings(small_model, capsys):
    file = small_model / "text.json"
    options = ["--tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--stop", "zz", "--seed", "3"]
    assert main(["generate", str(small_model), "--prompt", "one", *options, "--json", str(file)]) == 0
    answer = json.loads(file.read_text())
    assert (answer["schema"], answer["prompt"], answer["tokens"]) == ("kleiber.generate/1", "one", 5)
    assert answer["sampling"] == {"tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["zz"], "seed": 3}
    assert capsys.readouterr().out == f"one{answer['text']}\n"


def test_a_chat_answers_each_line_until_the_input_ends(small_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nwhy?\n"))
    assert main(["chat", str(small_model), "--tokens", "0"]) == 0
    assert capsys.readouterr().out == "\n\n"


@pytest.mark.parametrize("option", [["--top-p", "2"], ["--temperature", "-1"], ["--tokens", "-1"]])
def test_settings_of_sampling_that_cannot_be_exit_with_2(option, small_model, capsys):
    assert main(["generate", str(small_model), "--prompt", "x", *option]) == 2
    out = capsys.readouterr()
    assert option[1] in out.err and not out.out
