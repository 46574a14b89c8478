"""The study of routers finds known differences of loss, and reports arms that diverged or are untuned."""

import json

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.routers import Routers

from .arm_runs import write


def test_routers_are_ranked_and_claims_are_shown_contradicted_or_not_tested(tmp_path):
    study = {"_target_": "kleiber.studies.Routers"}
    for arm, loss in (("topk", 3.0), ("hash", 3.1), ("lossfree", 3.05), ("unbalanced", 3.0)):
        write(tmp_path, study, arm, loss)
    findings = Routers(tokens="4M").analyze(read_runs(tmp_path))
    texts = [v["text"] for v in findings.verdicts if v["code"] == "claim"]
    assert "beats hashing: shown" in texts[0] and "no worse loss: contradicted" in texts[1]
    assert "experts die: shown" in texts[2] and "2.0 dead" in texts[2]
    assert findings.headline.startswith("Loss less that of topk: unbalanced +0.0000 nats, 90% [")
    assert "hash +0.1000 nats" in findings.headline
    assert findings.tables["Routers"][0]["max violation"] == pytest.approx(0.4)
    write(tmp_path, study, "hash2", 3.1, seeds=2)
    other = Routers(tokens="4M", hashed="hash2").analyze(read_runs(tmp_path))
    assert any("not tested" in v["text"] for v in other.verdicts)


def test_balance_is_shown_by_intervals_and_not_by_points(tmp_path):
    """A router that is worse on one seed of three by far is neither shown to be as good nor contradicted."""
    study = {"_target_": "kleiber.studies.Routers"}
    write(tmp_path, study, "topk", 3.0)
    write(tmp_path, study, "lossfree", 3.0)

    def verdict():
        (content,) = [
            v["text"] for v in Routers(tokens="4M").analyze(read_runs(tmp_path)).verdicts if v["code"] == "claim"
        ]
        return content

    assert "no worse loss: shown" in verdict()
    home = tmp_path / "lossfree-lr0.02-seed1"
    path = home / "summary.json"
    content = json.loads(path.read_text())
    for stage in content["stages"][1:]:
        stage["metrics"]["val/docs/loss"] += 0.03
    path.write_text(json.dumps(content))
    assert "no worse loss: not shown" in verdict()
    for arm, violation in (("topk", 0.4), ("lossfree", 0.9)):
        for path in tmp_path.glob(f"{arm}-*/metrics.jsonl"):
            path.write_text(json.dumps({"step": 9, "moe/load_entropy/0": 0.9, "moe/max_violation/0": violation}) + "\n")
    assert "no worse loss: contradicted" in verdict()
