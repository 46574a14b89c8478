"""The study of one's own in the tutorial on comparisons: it is short, it is trained, and its claims are decided."""

import json
import re

import pytest
from small_run import REPOSITORY

from kleiber.launch.main import main

PAGE = REPOSITORY / "docs/tutorials/is_b_better.md"
SMALL = ["experiment=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=1024"]


@pytest.mark.slow
def test_the_study_of_the_page_is_trained_and_its_claims_are_decided(tmp_path, monkeypatch):
    (study,) = re.findall(r"<<'EOF'\n(.*?)EOF", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert study.count("\n") <= 40
    (tmp_path / "my_conf" / "study").mkdir(parents=True)
    (tmp_path / "my_conf" / "study" / "warmup.yaml").write_text(study)
    monkeypatch.chdir(tmp_path)
    lrs = "design.lrs={short: [0.01, 0.02], usual: [0.01, 0.02], long: [0.02, 0.04]}"
    few = [lrs, "design.seeds=2", "root=runs"]
    assert main(["--config-dir", "my_conf", "study=warmup", *SMALL, *few]) == 3
    findings = json.loads((tmp_path / "runs" / "warmup" / "findings.json").read_text())
    assert findings["decision"] == "not tested" and findings["runs"] == "12 finished"
    pairs = [(row["arm"], row["against"], row["n"]) for row in findings["estimates"]]
    assert pairs == [("usual", "short", 2), ("long", "usual", 2)]
