"""The README's commands work: each is run as it stands, with the cap of the smoke trainer behind it."""

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
    "command", [line for line in TRAIN if not {"-m", "trainer.devices=2", "study=scaling"} & {*line.split()}]
)
def test_single_runs(command, tmp_path, cache_dir):
    words = [w for w in shlex.split(command)[2:] if not w.startswith("data=") and w != "trainer=ddp"]
    if "stages=docs_then_code" in words:  # two small texts in place of the domains of the built-in one
        (tmp_path / "other.txt").write_text(Path(__file__).read_text())
        words += ["~stages.chain.docs.data", "~stages.chain.code.data.domain"]
        words += [f"stages.chain.code.data.path={tmp_path}/other.txt"]
    assert main([*TINY, *words, f"root={tmp_path}"]) == 0


@pytest.mark.slow
def test_a_study_and_its_report(tmp_path, cache_dir, capsys):
    """In small: eight cells of a tree each. Twenty steps are no ladder, so what it says of a law is not asked here."""
    from kleiber.launch import cli

    (line,) = [line for line in TRAIN if "study=" in line]
    tiny = [word for word in TINY if not word.startswith("callbacks.samples")]
    design = ["design.widths=[32,48,64,96]", "design.seeds=2", "study.min_tokens=1k", "launcher=basic"]
    assert main([*tiny, *shlex.split(line)[2:], *design, f"root={tmp_path}"]) == 0
    assert "8 finished" in capsys.readouterr().out
    assert {run.summary["study"] for run in read_runs(tmp_path / "scaling")} == {"scaling"}
    assert cli.main(["report", str(tmp_path / "scaling")]) == 0
    assert (tmp_path / "scaling/report.html").is_file()


def test_a_law_from_a_table(tmp_path, monkeypatch, capsys):
    import numpy as np

    from kleiber.launch import cli

    commands = [line for line in COMMANDS if line.startswith(("kleiber fit", "kleiber predict"))]
    random = np.random.default_rng(0)
    n, d = np.meshgrid([1e6, 4e6, 16e6, 64e6], [2e7, 1e8, 5e8, 2e9, 1e10])
    loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.002 * random.standard_normal(n.shape))
    rows = [f"{a},{b},{c}" for a, b, c in zip(n.flat, d.flat, loss.flat, strict=True)]
    for name in ("runs.csv", "later.csv"):
        (tmp_path / name).write_text("\n".join(["params,tokens,loss", *rows]))
    monkeypatch.chdir(tmp_path)
    codes = [cli.main(shlex.split(line.replace("--bootstrap 1000", "--bootstrap 50"))[1:]) for line in commands]
    out = capsys.readouterr().out
    assert codes[0] in (0, 3) and codes[1:] == [0, 0], out
    assert "alpha" in out and "20 cells: error" in out
