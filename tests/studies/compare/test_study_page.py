"""The page docs/compare.md: its study of one's own is trained and decided, its commands are accepted."""

import json
import re
import shlex

import pytest
from small_run import REPOSITORY

from kleiber.launch.main import main

pytestmark = pytest.mark.slow

PAGE = (REPOSITORY / "docs" / "compare.md").read_text(encoding="utf-8")
SMALL = ["experiment=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=1024"]


@pytest.fixture
def own_study(tmp_path, monkeypatch):
    (study,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert study.count("\n") <= 40
    (tmp_path / "my_conf" / "study").mkdir(parents=True)
    (tmp_path / "my_conf" / "study" / "warmup.yaml").write_text(study)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_is_accepted(own_study, capsys):
    commands = re.findall(r"^python train\.py (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main([*shlex.split(command), *SMALL]) == 0
        assert "dry run" in capsys.readouterr().out


def test_the_study_of_the_page_is_trained_and_its_claims_are_decided(own_study):
    lrs = "design.lrs={short: [0.01, 0.02], usual: [0.01, 0.02], long: [0.02, 0.04]}"
    few = [lrs, "design.seeds=2", "root=runs"]
    assert main(["--config-dir", "my_conf", "study=warmup", *SMALL, *few]) == 3
    findings = json.loads((own_study / "runs" / "warmup" / "findings.json").read_text())
    assert findings["decision"] == "not tested" and findings["runs"] == "12 finished"
    pairs = [(row["arm"], row["against"], row["n"]) for row in findings["estimates"]]
    assert pairs == [("usual", "short", 2), ("long", "usual", 2)]
