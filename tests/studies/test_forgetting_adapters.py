"""The study of adapters on runs with known differences between LoRA and full fine-tuning."""

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies.forgetting import Forgetting

from .adapter_runs import OPTIONS, adapter_runs, write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return adapter_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
def test_each_arm_is_compared_at_its_own_best_rate_and_at_equal_target_loss(runs):
    findings = Forgetting(**OPTIONS).analyze(runs)
    results = {(r.claim.measure, r.claim.equal, r.claim.of["arm"]): r for r in findings.claims if "arm" in r.claim.of}
    for rank, gap in ((1, 0.10), (16, 0.02)):
        result = results["target", None, f"rank {rank}"]
        lo, hi = result.estimate.lo, result.estimate.hi
        assert result.decision == "supported" and lo < gap < hi and hi - lo < 0.02, (
            "what the runs of a seed share widens no gap"
        )
    less = results["F", None, "rank 16"]
    assert less.decision == "supported" and less.estimate.value == pytest.approx(-0.02, abs=0.003)
    assert results["F", None, "rank 1"].estimate.value == pytest.approx(0.0, abs=0.003)
    matched = {rank: results["F", "target_loss", f"rank {rank}"] for rank in (1, 16)}
    assert matched[16].decision == "supported" and abs(matched[16].estimate.value) < 0.004
    assert matched[1].decision == "contradicted" and matched[1].estimate.value == pytest.approx(0.1, abs=0.01)
    best = Forgetting(**OPTIONS).compare(runs)["best"]
    rates = best.groupby("method")["lr"].unique().map(list).to_dict()
    assert rates == {"full": [0.01], "rank 1": [0.03], "rank 16": [0.03]}
    assert "rank 16" in findings.answer and "[" in findings.answer


def test_arms_of_one_rank_that_differ_otherwise_are_not_pooled(runs, tmp_path):
    for seed in range(3):
        write(tmp_path / f"full-{seed}", None, 0.01, seed)
        for targets, lr in (("attention", 0.03), ("mlp", 0.001)):
            folder = tmp_path / f"{targets}-{seed}"
            write(folder, 16, lr, seed)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["adapter"]["targets"] = [targets]
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = Forgetting(**OPTIONS).analyze(read_runs(tmp_path)).tables["Settings"]
    names = ["full fine-tuning", "rank 16 targets=['attention']", "rank 16 targets=['mlp']"]
    assert [row["arm"] for row in rows] == names
    assert [row["seeds"] for row in rows] == [3, 3, 3]


def test_what_is_missing_is_said(runs):
    rank1 = [run for run in runs if run.name.startswith(("None-0.01-", "1-"))]
    few = Forgetting(**OPTIONS).analyze([run for run in rank1 if run.name.endswith("-0")])
    assert "no interval: 1 seed" in few.answer
    assert {result.decision for result in few.claims} == {"not tested"}
    assert {
        result.question.tuned for result in few.claims if result.claim.equal is None and "arm" in result.claim.of
    } == {False}
    with pytest.raises(ValueError, match="no finished run of full fine-tuning"):
        Forgetting(**OPTIONS).analyze([run for run in runs if run.name.startswith("1-")])
    alone = Forgetting(**OPTIONS).analyze([run for run in runs if run.name.startswith("None")])
    assert "nothing can be compared" in alone.answer and not alone.tables.get("Differences")
