"""The gain of a mixture on runs with known losses, at equal tokens and time, and its trends."""

import json
import math

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies.moe_gain import MoEGain
from kleiber.studies.report import report

from .arm_runs import TOKENS, write

PAIRS = [{"mixture": "moe", "dense": "dense"}, {"mixture": "moe_96", "dense": "dense_96"}]
STUDY = {"_target_": "kleiber.studies.MoEGain", "pairs": PAIRS}


@pytest.fixture
def runs(tmp_path):
    """One learning rate; the dense loss falls by .1 for each doubling of the tokens, the mixture's as fast and .08
    lower, .12 lower at the larger size; the mixture takes sqrt(2) of the time."""
    folder = tmp_path / "moe_gain"
    for size, gain, core in (("", 0.08, 100_000), ("_96", 0.12, 225_000)):
        write(folder, STUDY, f"moe{size}", 3.0 - gain, lrs=[0.02], core=core, speed=1e4 / math.sqrt(2))
        write(folder, STUDY, f"dense{size}", 3.0, lrs=[0.02], core=core)
    return folder


def move(folder, arm, by):
    """Adds `by(tokens)` to every loss of an arm, and `by(tokens, seed)` where the seed matters too."""
    for path in folder.glob(f"{arm}-lr*/summary.json"):
        content = json.loads(path.read_text())
        for stage in content["stages"][1:]:
            stage["metrics"]["val/docs/loss"] += by(stage["tokens"], content["seed"])
        path.write_text(json.dumps(content))


def test_the_gain_is_told_at_equal_tokens_and_at_equal_time(runs):
    findings = MoEGain(pairs=PAIRS).analyze(read_runs(runs))
    rows = findings.tables["Gain"]
    assert [(row["what"], row["tokens"]) for row in rows] == [
        (f"moe{size} - dense{size}", tokens) for size in ("", "_96") for tokens in TOKENS
    ]
    assert [row["value"] for row in rows] == pytest.approx([-0.08] * 3 + [-0.12] * 3)
    # In the mixture's time the dense model sees sqrt(2) of the tokens, worth half a doubling; of the most tokens that
    # lies beyond its budgets, and is not told.
    clock = [row["value at equal time"] for row in rows]
    assert clock[:2] == pytest.approx([-0.03] * 2) and clock[3:5] == pytest.approx([-0.07] * 2)
    assert clock[2] is None and clock[5] is None
    assert "better in 18 of 18 pairs" in findings.headline and "-0.0800" in findings.headline


def test_a_trend_is_told_with_tokens_and_with_size_and_only_beyond_its_interval(runs):
    move(runs, "moe", lambda tokens, seed: -0.02 * math.log2(tokens / 4e6) + 0.001 * seed)
    findings = MoEGain(pairs=PAIRS).analyze(read_runs(runs))
    grows, flat, size = findings.tables["Trends"]
    assert grows["value"] == pytest.approx(-0.02) and "doubling" in grows["what"]
    assert flat["value"] == pytest.approx(0, abs=1e-9)
    # .04 more at the larger size, and .001 for each seed that the smaller one lost
    assert size["value"] == pytest.approx(-0.041) and size["seeds"] == 3
    texts = [verdict["text"] for verdict in findings.verdicts]
    assert "the gain grows" in texts[0] and "not told from none" in texts[1] and "the gain grows" in texts[2]


def test_the_fastest_run_tells_the_time_for_other_work_only_slows(runs):
    for path in runs.glob("dense-lr*-seed[12]/summary.json"):
        content = json.loads(path.read_text())
        for stage in content["stages"][1:]:
            stage["tokens_per_s"] = 10.0
        path.write_text(json.dumps(content))
    assert MoEGain(pairs=PAIRS).analyze(read_runs(runs)).tables["Gain"][0]["time"] == pytest.approx(math.sqrt(2))


def test_a_pair_that_is_not_there_is_named_and_bad_pairs_are_refused(runs):
    findings = MoEGain(pairs=[*PAIRS, {"mixture": "huge", "dense": "dense"}]).analyze(read_runs(runs))
    assert findings.verdicts[0] == {"code": "missing", "level": "warn", "text": "no finished run of huge"}
    with pytest.raises(ValueError, match="mixture and dense"):
        MoEGain(pairs=[{"moe": "a", "dense": "b"}])


def test_the_report_draws_the_gain_and_asks_what_was_asked_last(runs):
    assert len(report(runs)["tables"]["Gain"]) == 6
    (runs / "study.yaml").write_text(yaml.safe_dump({**STUDY, "pairs": PAIRS[1:]}))
    (runs / "figures/stale.png").touch()
    assert [row["what"] for row in report(runs)["tables"]["Gain"]] == ["moe_96 - dense_96"] * 3
    assert (runs / "figures/gain.png").read_bytes()[:4] == b"\x89PNG" and not (runs / "figures/stale.png").exists()
