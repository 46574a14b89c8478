"""The commands that open a model: what they print and write, and their exit codes."""

import io
import json
import sys

import pytest
from fake_run import fake_run

from kleiber.data.tokenizers import Bytes
from kleiber.launch.cli import main
from kleiber.models.transformer import Transformer
from kleiber.records.terminal import printable
from kleiber.runs.open import TrainedModel


@pytest.mark.parametrize(("command", "function"), [("export", "export"), ("import", "import_hf")])
def test_export_and_import_pass_their_paths_on(monkeypatch, tmp_path, capsys, command, function):
    calls = []
    monkeypatch.setattr(f"kleiber.runs.huggingface.{function}", lambda *paths: calls.append(paths))
    source = fake_run(tmp_path / "source")
    assert main([command, str(source), str(tmp_path)]) == 0
    assert [str(path) for path in calls[0][:2]] == [str(source), str(tmp_path)]
    assert str(tmp_path) in capsys.readouterr().out


@pytest.fixture
def small_model(monkeypatch, tmp_path):
    """Makes every folder the run of an untrained model of bytes."""
    run = TrainedModel(tmp_path, Transformer(Bytes().vocab_size, depth=1, width=16).eval(), Bytes(), {"objective": {}})
    monkeypatch.setattr("kleiber.runs.open.open_model", lambda _path: run)
    return fake_run(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["generate", "nope", "--prompt", "x"], "open"), (["chat", "nope"], "open"),
        (["eval", "nope", "--evals", "perplexity"], "evaluate"), (["export", "nope", "out"], "huggingface"),
        (["push", "nope", "jane/tiny"], "hub_upload"),
    ],
)  # fmt: skip
def test_a_path_is_checked_before_the_packages_are_imported(arguments, module, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, f"kleiber.runs.{module}", None)
    assert main(arguments) == 2
    assert "nope does not exist: name a run, RUN/STAGE or a Hugging Face folder" in capsys.readouterr().err
    (tmp_path / "nope").mkdir()
    assert main(arguments) == 2
    assert "nope is no run" in capsys.readouterr().err
    (tmp_path / "nope/a").mkdir()
    (tmp_path / "nope/a/config.yaml").write_text("")
    assert main(arguments) == 2
    assert "it has 1 run, such as nope/a" in capsys.readouterr().err


def test_a_prompt_is_continued_and_written_with_its_settings(small_model, capsys):
    file = small_model / "text.json"
    options = ["--tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--stop", "zz", "--seed", "3"]
    assert main(["generate", str(small_model), "--prompt", "one", *options, "--json", str(file)]) == 0
    answer = json.loads(file.read_text())
    assert (answer["schema"], answer["prompt"], answer["tokens"]) == ("kleiber.generate/1", "one", 5)
    assert answer["sampling"] == {"tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["zz"], "seed": 3, "beams": 1}
    assert capsys.readouterr().out == f"one{printable(answer['text'])}\n"


def test_beams_search_for_the_most_probable_text_and_exclude_sampling(small_model, capsys):
    assert main(["generate", str(small_model), "--prompt", "one", "--tokens", "6", "--beams", "4"]) == 0
    assert capsys.readouterr().out.startswith("one")
    for options in (["--temperature", "0.5"], ["--top-p", "0.9"]):
        assert main(["generate", str(small_model), "--prompt", "one", "--beams", "4", *options]) == 2
        assert "--beams 4" in capsys.readouterr().err
    assert main(["generate", str(small_model), "--prompt", "one", "--beams", "0"]) == 2


def test_control_characters_of_a_model_are_printed_as_escapes(small_model, capsys, monkeypatch):
    monkeypatch.setattr("kleiber.runs.completion.continue_prompt", lambda *_: iter(["\x1b]0;title\x07", "\t\r\n\x9bé"]))
    assert main(["generate", str(small_model), "--prompt", "one"]) == 0
    assert capsys.readouterr().out == "one\\x1b]0;title\\x07\t\\x0d\n\\x9bé\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    monkeypatch.setattr("kleiber.runs.completion.Chat.answer", lambda *_: iter(["\x1b"]))
    monkeypatch.setattr("kleiber.runs.completion.Chat.remember", lambda *_: None)
    assert main(["chat", str(small_model)]) == 0
    assert capsys.readouterr().out == "\\x1b\n"


def test_a_datastore_stands_in_front_of_the_prompt(small_model, capsys, cache_dir):
    notes, file = small_model / "notes.txt", small_model / "text.json"
    notes.write_text("one is the answer")
    options = ["--tokens", "3", "--json", str(file), "--datastore", str(notes)]
    assert main(["generate", str(small_model), "--prompt", "one", *options]) == 0
    answer = json.loads(file.read_text())
    assert answer["prompt_tokens"] == len("one is the answer\none") and capsys.readouterr().out.startswith("one")
    assert main(["generate", str(small_model), "--prompt", "one", *options, "--retrieval", "x"]) == 2
    assert main(["generate", str(small_model), "--prompt", "one", "--datastore", "nowhere.txt"]) == 2
    assert "datastore nowhere.txt" in capsys.readouterr().err


def test_a_chat_answers_each_line_until_the_input_ends(small_model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\nwhy?\n"))
    assert main(["chat", str(small_model), "--tokens", "0"]) == 0
    assert capsys.readouterr().out == "\n\n"


@pytest.mark.parametrize("option", [["--top-p", "2"], ["--temperature", "-1"], ["--tokens", "-1"]])
def test_settings_of_sampling_that_cannot_be_exit_with_2(option, small_model, capsys):
    assert main(["generate", str(small_model), "--prompt", "x", *option]) == 2
    out = capsys.readouterr()
    assert option[1] in out.err and not out.out


def test_a_stage_of_a_run_is_evaluated_by_its_path(monkeypatch, tmp_path, capsys):
    evaluated = []
    fake_run(tmp_path)
    monkeypatch.setattr("kleiber.runs.evaluate.run_evaluations", lambda path, *_: evaluated.append(path) or {})
    monkeypatch.setattr("kleiber.runs.evaluate.result_lines", lambda _results: [])
    assert main(["eval", str(tmp_path / "8M"), "--evals", "perplexity"]) == 0
    assert evaluated == [tmp_path / "8M"]
    assert main(["eval", str(tmp_path / "nowhere" / "8M"), "--evals", "perplexity"]) == 2


def test_a_second_run_is_told_a_command_of_its_own(tmp_path, capsys):
    for name in ("a", "b"):
        fake_run(tmp_path / name)
    assert main(["eval", str(tmp_path / "a"), str(tmp_path / "b"), "--evals", "perplexity"]) == 2
    assert f"{tmp_path / 'b'} is another" in capsys.readouterr().err


@pytest.mark.parametrize("rest", [[], ["--data", "wikitext"]])
def test_names_of_evaluations_without_a_comma_are_told_the_list_to_write(rest, tmp_path, capsys):
    fake_run(tmp_path)
    command = ["eval", str(tmp_path), "--evals", "perplexity", "pairs", *rest]
    assert main(command) == 2
    assert "--evals perplexity,pairs" in capsys.readouterr().err
