"""The study of adapters on runs with known differences between LoRA and full fine-tuning."""

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies.adapters import Adapters

from .adapter_runs import adapter_runs, write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return adapter_runs(tmp_path_factory.mktemp("runs"))


def test_each_arm_is_compared_at_its_own_best_rate_and_at_equal_target_loss(runs):
    findings = Adapters().analyze(runs)
    by_code = {entry["code"]: entry for entry in findings.verdicts}
    assert not any(code == "untuned" for code in by_code)
    for rank, gap in ((1, 0.10), (16, 0.02)):
        entry = by_code[f"learns_less_rank{rank}"]
        assert entry["holds"] is True and entry["lo"] < gap < entry["hi"] and entry["hi"] - entry["lo"] < 0.02, (
            "what the runs of a seed share widens no gap"
        )
    assert by_code["forgets_less_rank16"]["holds"] is True and by_code["forgets_less_rank16"]["value"] == pytest.approx(
        0.02, abs=0.003
    )
    assert by_code["forgets_less_rank1"]["value"] == pytest.approx(0.0, abs=0.003)
    assert by_code["matched_rank16"]["holds"] is True and abs(by_code["matched_rank16"]["value"]) < 0.004
    assert by_code["matched_rank1"]["holds"] is False and by_code["matched_rank1"]["value"] == pytest.approx(
        -0.1, abs=0.01
    )
    rows = findings.tables["Each arm at its own best learning rate"]
    assert [(row["arm"], row["lr"]) for row in rows] == [("full", 0.01), ("rank 1", 0.03), ("rank 16", 0.03)]
    assert "rank 1 learns less by +0.1" in findings.headline and "[" in findings.headline


def test_arms_of_one_rank_that_differ_otherwise_are_not_pooled(runs, tmp_path):
    for seed in range(3):
        write(tmp_path / f"full-{seed}", None, 0.01, seed)
        for targets, lr in (("attention", 0.03), ("mlp", 0.001)):
            folder = tmp_path / f"{targets}-{seed}"
            write(folder, 16, lr, seed)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["adapter"]["targets"] = [targets]
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = Adapters().analyze(read_runs(tmp_path)).tables["Each arm at its own best learning rate"]
    assert [row["arm"] for row in rows] == ["full", "rank 16 targets=['attention']", "rank 16 targets=['mlp']"]
    assert [row["seeds"] for row in rows] == [3, 3, 3]


def test_what_is_missing_is_said(runs):
    rank1 = [run for run in runs if run.name.startswith(("None-0.01-", "1-"))]
    few = Adapters().analyze([run for run in rank1 if run.name.endswith("-0")])
    assert "no interval: one seed" in few.headline
    assert {verdict["text"].split(":")[0] for verdict in few.verdicts if verdict["code"] == "untuned"} == {
        "full is not tuned", "rank 1 is not tuned"
    }  # fmt: skip
    assert all(verdict["holds"] is None for verdict in few.verdicts if verdict["code"] != "untuned")
    with pytest.raises(ValueError, match="no run without an adapter"):
        Adapters().analyze([run for run in runs if run.name.startswith("1-")])
    with pytest.raises(ValueError, match="no run with an adapter"):
        Adapters().analyze([run for run in runs if run.name.startswith("None")])
