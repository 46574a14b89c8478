"""The README's commands work: each is run as it stands, with the cap of the smoke trainer behind it."""

import re
import shlex
from pathlib import Path

import pytest
from small_run import REPOSITORY, TINY

from kleiber.launch.main import main
from kleiber.records.catalog import read_runs

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line and not line.startswith("#")]
TRAIN = [line for line in COMMANDS if line.startswith("python train.py")]


def test_there_are_commands_and_all_are_known():
    assert len(TRAIN) >= 4
    assert all(line.startswith(("python train.py", "kleiber ")) for line in COMMANDS)


SINGLE = [line for line in TRAIN if not {"-m", "trainer.devices=2"} & {*line.split()} and "study=" not in line]


@pytest.mark.parametrize(
    "command", [pytest.param(line, marks=[pytest.mark.slow] * ("stages=" in line)) for line in SINGLE]
)
def test_single_runs(command, tmp_path, cache_dir):
    words = [w for w in shlex.split(command)[2:] if not w.startswith("data=") and w != "trainer=ddp"]
    if "stages=docs_then_code" in words:  # two small texts in place of the domains of the built-in one
        (tmp_path / "other.txt").write_text(Path(__file__).read_text())
        words += ["~stages.chain.docs.data", "~stages.chain.code.data.domain"]
        words += [f"stages.chain.code.data.path={tmp_path}/other.txt"]
    assert main([*TINY, *words, f"root={tmp_path}"]) == 0


@pytest.fixture
def at_home(tmp_path, cache_dir, monkeypatch):
    """A folder in which the commands find `multirun` as a reader of the README does."""
    monkeypatch.delenv("KLEIBER_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exit_codes(beginning: str) -> dict[str, int]:
    """The exit code of each `kleiber` command of the README that begins so, by command."""
    from kleiber.launch import cli

    lines = [line.split("#")[0].strip() for line in COMMANDS if line.startswith(beginning)]
    return {line: cli.main(shlex.split(line)[1:]) for line in lines}


@pytest.mark.slow
def test_a_sweep_and_its_table(at_home, capsys):
    (line,) = [line for line in TRAIN if "-m" in line.split()]
    assert main([*TINY, *shlex.split(line)[2:], "launcher=basic", "trainer.max_steps=2"]) == 0
    assert {run.status for run in read_runs(at_home / "multirun/first")} == {"finished"}
    capsys.readouterr()
    assert exit_codes("kleiber runs") == {"kleiber runs multirun/first": 0}
    assert capsys.readouterr().out.count("finished") == 1 + 4  # a line of totals and one a cell


def test_a_prediction_is_what_the_readme_shows(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert [*exit_codes("kleiber predict").values()] == [0]
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].startswith("N=600000, D=1.2e+07") and [line for line in lines if line not in README] == []


def test_the_readme_is_short_and_has_a_figure_and_a_link_to_the_documentation():
    assert README.count("\n") <= 130
    assert "](multirun/golden/figures/frontier.svg)" in README and "](docs/index.md)" in README
