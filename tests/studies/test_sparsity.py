"""The study of sparsity compares a mixture with dense models at equal compute, parameters, memory and time."""

import json
import math

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.report import report
from kleiber.studies.sparsity import Sparsity

from .arm_runs import TOKENS, write

SPARSITY = {"_target_": "kleiber.studies.Sparsity", "sizes": ["dense", "large"]}


@pytest.fixture
def sparsity(tmp_path):
    """Dense losses fall by .2 for each factor e of N; the mixture is worth 1.5 times its size, at half the speed."""
    folder, gain = tmp_path / "sparsity", 0.2 * math.log(1.5)
    write(folder, SPARSITY, "moe", 3.0 - gain, speed=5e3, total=900_000)
    write(folder, SPARSITY, "dense", 3.0)
    write(folder, SPARSITY, "dense_total", 3.0 - 0.05, total=900_000, core=600_000)
    write(folder, SPARSITY, "large", 3.0 - 0.2 * math.log(2), core=200_000)
    return folder


STUDY = Sparsity(
    comparisons=[
        {"arm": "moe", "against": "dense_total", "equal": "params"},
        {"arm": "moe", "against": "large", "equal": "flops"},
    ],
    sizes=["dense", "large"],
)  # fmt: skip


def test_sparsity_finds_the_gain_the_multiplier_and_the_loss_at_equal_time(sparsity):
    findings = STUDY.analyze(read_runs(sparsity))
    gain = 0.2 * math.log(1.5)
    first, params, flops, clock = findings.tables["Comparisons"]
    assert first["value"] == pytest.approx(-gain) and first["better on"] == 3 and first["tuned"]
    assert params["value"] == pytest.approx(0.05 - gain)
    assert flops["ratio"] == pytest.approx(0.5) and any(v["code"] == "unequal" for v in findings.verdicts)
    # Twice the time is twice the tokens of the dense model, which is worth .1 nats.
    assert clock["ratio"] == pytest.approx(2) and clock["value"] == pytest.approx(0.1 - gain)
    (times,) = findings.tables["Effective parameter multiplier"]
    assert times["value"] == pytest.approx(1.5) and times["lo"] <= 1.5 + 1e-9
    assert [row["tokens"] for row in findings.tables["Gain by training tokens"]] == list(TOKENS)
    assert "-0.0811" in findings.headline and "1.50" in findings.headline


def test_the_price_of_a_mixture_is_told_by_the_best_run_of_each_arm(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, speed=5e3, total=900_000, latency=300.0)
    write(tmp_path, SPARSITY, "dense", 3.0, latency=400.0)
    findings = STUDY.analyze(read_runs(tmp_path))
    arms = {row["arm"]: row for row in findings.tables["Arms"]}
    assert arms["moe"]["decode tokens/s"] == 300 and arms["moe"]["prefill tokens/s"] == 3000
    assert arms["dense"]["decode p50 (ms)"] == 2.5 and arms["dense"]["decode p95 (ms)"] == 5.0
    assert not any(name.startswith("latency/") for row in arms.values() for name in row)
    price = {row["what"]: row for row in findings.tables["Speed and memory"]}
    assert price["training tokens/s"]["moe / dense"] == pytest.approx(0.5)
    assert price["decode tokens/s, 1 at once"] == {
        "what": "decode tokens/s, 1 at once", "moe": 300, "moe / dense": pytest.approx(0.75),
    }  # fmt: skip
    assert price["decode tokens/s, 8 at once"]["moe"] == 2400 and price["prefill tokens/s, 8 at once"]["moe"] == 6000
    assert price["bytes while decoding, 8 at once"]["moe / dense"] == 1
    assert price["bytes of weights and one full context"]["moe / dense"] == pytest.approx(
        (900_000 + 2 * 2 * 128 * 64) / (400_000 + 2 * 2 * 128 * 64)
    )
    assert not any(v["code"] == "latency" for v in findings.verdicts)


def test_runs_from_before_latency_are_read_and_named_and_count_as_nothing(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, latency=300.0)
    write(tmp_path, SPARSITY, "dense", 3.0)
    write(tmp_path, SPARSITY, "large", 2.95, core=200_000, latency=200.0)
    findings = STUDY.analyze(read_runs(tmp_path))
    (output,) = [v["text"] for v in findings.verdicts if v["code"] == "latency"]
    assert "dense" in output and "moe" not in output and "large" not in output
    (dense,) = [row for row in findings.tables["Arms"] if row["arm"] == "dense"]
    assert not any("decode" in name for name in dense)
    price = {row["what"]: row for row in findings.tables["Speed and memory"]}
    assert set(price["decode tokens/s, 1 at once"]) == {"what", "moe", "moe / large"}
    assert set(price["training tokens/s"]) == {"what", "moe", "moe / dense", "moe / large"}
    for path in tmp_path.glob("*/summary.json"):
        content = json.loads(path.read_text())
        for stage in content["stages"]:
            stage["metrics"] = {k: v for k, v in stage["metrics"].items() if not k.startswith("latency/")}
        path.write_text(json.dumps(content))
    none = STUDY.analyze(read_runs(tmp_path))
    assert not any("decode" in row["what"] for row in none.tables["Speed and memory"])
    assert [gap["value"] for gap in none.tables["Comparisons"]] == [
        gap["value"] for gap in findings.tables["Comparisons"]
    ]


def test_untuned_arms_make_no_headline_and_are_named(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, best=0.08)
    write(tmp_path, SPARSITY, "dense", 3.0)
    findings = STUDY.analyze(read_runs(tmp_path))
    assert "No comparison of tuned arms" in findings.headline and "moe" in findings.verdicts[0]["text"]


def test_time_outside_the_dense_budgets_is_said_to_be_uncovered(tmp_path):
    write(tmp_path, SPARSITY, "moe", 2.9, speed=1e3)
    write(tmp_path, SPARSITY, "dense", 3.0)
    findings = STUDY.analyze(read_runs(tmp_path))
    assert any(v["code"] == "uncovered" for v in findings.verdicts) and len(findings.tables["Comparisons"]) == 1


def test_a_report_of_arms_leaves_findings_figures_and_a_page(sparsity):
    report(sparsity)
    findings = json.loads((sparsity / "findings.json").read_text())
    assert findings["tables"]["Comparisons"][0]["seeds"] == 3
    for name in ("differences", "arms", "tuning", "sizes"):
        assert (sparsity / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "Effective parameter multiplier" in (sparsity / "report.html").read_text()


def test_a_folder_without_arms_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("{seed: 0}")
    with pytest.raises(ValueError, match="belongs to an arm"):
        STUDY.analyze(read_runs(tmp_path))
    with pytest.raises(ValueError, match="comparisons"):
        Sparsity(comparisons=[{"arm": "a", "against": "b", "equal": "fun"}])


def test_one_size_of_dense_model_gives_no_multiplier():
    from kleiber.studies.compare.arms import Arm
    from kleiber.studies.sparsity import multiplier

    losses = {"a": 2.0, "b": 1.9, "m": 1.8}
    arms = {name: Arm(name, {0.02: {0: loss}}, 0.02, "", {"core": 1e5}) for name, loss in losses.items()}
    assert multiplier(arms, "m", ["a", "b"], []) is None
