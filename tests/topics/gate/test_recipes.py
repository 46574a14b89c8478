"""What a proposal may not change: seeds, data, evaluation, and protected files."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from topics.gate.streams import begin, install, propose, rows

from kleiber.launch.cli import main
from kleiber_topics.gate.recipes import Recipe, module_folders, worktree
from kleiber_topics.gate.runner import execute


@pytest.fixture
def home(tmp_path, monkeypatch):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval.py").write_text("evaluate()\n")
    begin(tmp_path / "stream", "--protect", "*.py")
    return tmp_path / "stream"


@pytest.mark.parametrize(
    "line", ["seed=3", "data=text", "data.path=other.txt", "evals=[pairs]", "eval.tokens=9", "+seed=1"]
)
def test_overrides_that_change_what_is_measured_are_refused(line):
    with pytest.raises(ValueError, match="changes what is measured"):
        Recipe.of_overrides("model=gpt").with_overrides(line)


def test_later_overrides_replace_those_of_the_same_key():
    recipe = Recipe.of_overrides("model=gpt optimizer.lr=0.01").with_overrides("optimizer.lr=0.02")
    assert recipe.overrides == ("model=gpt", "optimizer.lr=0.02")


def test_a_protected_file_that_changed_is_refused_by_name(home, tmp_path, capsys):
    (tmp_path / "eval.py").write_text("cheat()\n")
    assert propose(home, "cheat", "--gain=1") == 2
    assert "eval.py" in capsys.readouterr().err
    assert rows(home, "refusal")[0]["files"] == ["eval.py"]
    assert rows(home, "run") == []


def test_a_file_of_the_plain_command_may_not_change(tmp_path, monkeypatch, capsys):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("train()\n")
    begin(tmp_path / "stream", command="python train.py {seed}")
    (tmp_path / "train.py").write_text("train_better()\n")
    command = ["gate", "propose", str(tmp_path / "stream"), "--name", "a", "--command", "python other.py {seed}"]
    assert main(command) == 2
    assert "train.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train --seed=3 {size}", "train {seed}"], ids=["a seed of its own", "a placeholder is missing"]
)
def test_a_command_without_its_placeholders_is_refused(home, command):
    assert main(["gate", "propose", str(home), "--name", "a", "--command", command]) == 2
    assert rows(home, "run") == []


@pytest.mark.parametrize(
    "options",
    [
        ["--metric", "loss"],
        ["--metric", "loss: ("],
        ["--error", "none"],
        ["--level", "1"],
        ["--take", "first"],
        ["--better", "more"],
        ["--timeout", "0"],
        ["--max-seeds", "3"],
        ["--protect", "*.none"],
        ["--confirm-at", "width=3"],
        ["--set", "seed=3"],
        ["--cwd", "nowhere"],
        ["--reserve", "hidden"],
    ],
    ids=" ".join,
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options):
    command = [
        "gate",
        "init",
        str(tmp_path / "stream"),
        "--command",
        "train {seed}",
        "--metric",
        "loss: (.*)",
        *options,
    ]
    assert main(command) == 2
    assert not (tmp_path / "stream" / "gate.jsonl").exists()


def test_a_folder_has_one_stream_and_settings_are_fixed(home):
    assert begin(home) == 2
    assert propose(home, "a", "--as=a", "--level", "0.5") == 2
    assert main(["gate", "propose", str(home), "--name", "a", "--overrides", "model=gpt"]) == 2
    assert main(["gate", "stop", str(home)]) == 2


@pytest.mark.slow
@pytest.mark.process
def test_a_commit_is_run_in_a_worktree_of_its_own(tmp_path, monkeypatch):
    repository, trainer = tmp_path / "repository", install(monkeypatch)
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "plain"]):
        subprocess.run([*git, *words], check=True)
    (repository / "change.txt").write_text("changed")
    for words in (
        ["checkout", "-q", "-b", "change"],
        ["add", "."],
        ["commit", "-q", "-m", "change"],
        ["checkout", "-q", "-"],
    ):
        subprocess.run([*git, *words], check=True)
    begin(tmp_path / "stream", "--cwd", str(repository), "--protect", ".git/HEAD", command="train --seed={seed}")
    folders = []
    monkeypatch.setattr(
        "kleiber_topics.gate.engine.run_command",
        lambda command, folder, *rest: (
            folders.append((folder, (folder / "change.txt").exists())) or trainer(command, folder, *rest)
        ),
    )
    command = ["gate", "propose", str(tmp_path / "stream"), "--name", "change", "--ref", "change"]
    assert main(command) == 2, "a worktree has no .git/HEAD, so a protected file is gone"
    begin(tmp_path / "other", "--cwd", str(repository), command="train --seed={seed}")
    command[2] = str(tmp_path / "other")
    assert main(command) == 5
    assert {folder == repository: changed for folder, changed in folders} == {True: False, False: True}
    assert main([*command[:-1], "missing"]) == 2


@pytest.mark.process
def test_packages_of_a_checkout_are_imported_from_the_worktree(tmp_path, monkeypatch):
    """A package that is installed from the checkout would otherwise be that of the checkout, not of the commit."""
    repository = tmp_path / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for file in ("src/a.py", "examples/train.py"):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).touch()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "change"]):
        subprocess.run([*git, *words], check=True)
    (repository / ".venv").mkdir()
    monkeypatch.setattr(sys, "path", ["", str(repository / "src"), str(repository / ".venv"), *sys.path])
    place = worktree(tmp_path / "home", repository / "examples", "HEAD")
    modules = module_folders(repository / "examples", place)
    assert [*map(Path, modules)] == [place.parent / "src"]
    assert module_folders(repository, repository) == []
    words = [sys.executable, "-c", "import a; print(a.__file__)"]
    for command in (words, shlex.join(words)):
        printed = execute(command, place, tmp_path / "run", {}, None, modules)
        assert Path(printed.strip()) == place.parent / "src/a.py"
