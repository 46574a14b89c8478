"""The README's commands work: each is run as it stands, with the cap of the smoke trainer behind it."""

import json
import re
import shlex
from pathlib import Path

import pytest
from small_run import REPOSITORY, TINY

from kleiber.launch.main import main
from kleiber.records.catalog import read_runs

BLOCKS = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line and not line.startswith("#")]
TRAIN = [line for line in COMMANDS if line.startswith("python train.py")]


def test_there_are_commands_and_all_are_known():
    assert len(TRAIN) >= 5
    assert all(line.startswith(("python train.py", "kleiber ")) for line in COMMANDS)


@pytest.mark.parametrize(
    "command", [line for line in TRAIN if not {"-m", "trainer.devices=2"} & {*line.split()} and "study=" not in line]
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
def test_a_study_and_its_report(at_home, capsys):
    """In small: eight cells of a tree each. Twenty steps are no ladder, so the law is refused with exit code 3."""
    (line,) = [line for line in TRAIN if "study=scaling" in line]
    tiny = [word for word in TINY if not word.startswith("callbacks.samples")]
    design = ["design.widths=[32,48,64,96]", "design.seeds=2", "study.min_tokens=1k", "launcher=basic"]
    assert main([*tiny, *shlex.split(line)[2:], *design]) == 0
    assert "8 finished" in capsys.readouterr().out
    assert {run.summary["study"] for run in read_runs(at_home / "multirun/scaling")} == {"scaling"}
    assert exit_codes("kleiber report") == {
        "kleiber report multirun/scaling": 3,
        "kleiber report multirun/scaling/runs.jsonl.gz --out scaling.html": 3,
        "kleiber report multirun/scaling --wandb": 3,
    }
    assert (at_home / "multirun/scaling/report.html").is_file() and (at_home / "scaling.html").is_file()


@pytest.mark.slow
def test_a_comparison_of_two_arms(at_home, capsys):
    """In small: one rate and two seeds, so the arms are not tuned and nothing is decided."""
    (line,) = [line for line in TRAIN if "study=compare" in line]
    tiny = [word for word in TINY if not word.startswith("callbacks.samples")]
    small = ["design.lrs=[0.01]", "design.seeds=2", "launcher=basic", "trainer.max_steps=2"]
    assert main([*tiny, *shlex.split(line)[2:], *small]) == 3
    findings = json.loads((at_home / "multirun/qk_norm/findings.json").read_text())
    assert findings["decision"] == "not tested" and len(read_runs(at_home / "multirun/qk_norm")) == 4


@pytest.mark.slow
def test_a_sweep_and_its_table(at_home, capsys):
    (line,) = [line for line in TRAIN if "-m" in line.split()]
    assert main([*TINY, *shlex.split(line)[2:], "launcher=basic", "trainer.max_steps=2"]) == 0
    assert {run.status for run in read_runs(at_home / "multirun/first")} == {"finished"}
    capsys.readouterr()
    assert exit_codes("kleiber runs") == {"kleiber runs multirun/first": 0}
    assert capsys.readouterr().out.count("finished") == 1 + 8  # a line of totals and one a cell


def test_a_law_from_a_table(at_home, capsys):
    import numpy as np

    random = np.random.default_rng(0)
    n, d = np.meshgrid([1e6, 4e6, 16e6, 64e6], [2e7, 1e8, 5e8, 2e9, 1e10])
    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.002 * random.standard_normal(n.shape))
    rows = [f"{a},{b},{c}" for a, b, c in zip(n.flat, d.flat, loss.flat, strict=True)]
    for name in ("runs.csv", "later.csv"):
        (at_home / name).write_text("\n".join(["params,tokens,loss", *rows]))
    assert [*exit_codes("kleiber fit").values()] == [0]
    law = json.loads((at_home / "laws.json").read_text())
    assert law["law"] == "chinchilla" and law["n"] == 20 and (at_home / "fit.html").is_file()
    assert all(parameter["identified"] for parameter in law["params"].values())
    assert law["params"]["alpha"]["lo"] < 0.34 < law["params"]["alpha"]["hi"]
    capsys.readouterr()
    assert [*exit_codes("kleiber predict").values()] == [0, 0]
    assert sum(line.startswith("N=") for line in capsys.readouterr().out.splitlines()) == 1 + 20
