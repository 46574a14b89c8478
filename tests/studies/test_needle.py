"""The study `needle` shows each arm's accuracy in every cell, at its best rate, and decides the claims."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.claims import overall
from kleiber.studies.needle import Needle

from .colors import colors

LENGTHS, DEPTHS, RATES = (32, 96), (0.0, 1.0), (0.0025, 0.005, 0.01, 0.02, 0.04)
PREFIX = "eval/needle/recall"
CLAIM = {"arm": "full", "against": "lstm", "direction": "higher", "measure": f"{PREFIX}/length96/accuracy"}
ACCURACY = {"full": {32: 1.0, 96: 1.0}, "lstm": {32: 0.8, 96: 0.5}}


def write(folder, arm: str, pairs: int = 16, scored: bool = True) -> None:
    """Runs with the accuracy of their arm, lower by .1 at every rate but the best, and noise of the seed."""
    for rate in RATES:
        for seed in range(3):
            lost = 0.0 if rate == 0.01 else 0.1
            noise = 0.01 * (seed - 1)
            metrics = {"val/recall/loss": 1.0}
            if scored:
                metrics[f"{PREFIX}/loss"] = 1 - ACCURACY[arm.partition("_")[0]][96] + lost + noise
                for length in LENGTHS:
                    value = ACCURACY[arm.partition("_")[0]][length] - lost - noise
                    metrics[f"{PREFIX}/length{length}/accuracy"] = value
                    metrics |= {f"{PREFIX}/length{length}/depth{depth:g}/accuracy": value for depth in DEPTHS}
            config = {
                "seed": seed, "model": {"depth": 2, "width": 32, "context": 128}, "optimizer": {"lr": rate},
                "study": {"arm": arm}, "data": {"values": 8, "distractors": pairs - 1},
            }  # fmt: skip
            params = {"total": 100, "active": 100, "non_embedding": 50, "embedding": 50}
            stage = {
                "name": "main", "lr": rate, "tokens": 1e6, "params": params, "flops": {"model": 1e9},
                "tokens_per_s": 1e4, "metrics": metrics,
            }  # fmt: skip
            fake_run(folder / f"{arm}-{rate:g}-{seed}", [stage], config=config, seed=seed)


@pytest.fixture
def findings(tmp_path):
    for arm in ACCURACY:
        write(tmp_path, arm)
    return Needle(measure=f"{PREFIX}/loss", claims=[CLAIM]).analyze(read_runs(tmp_path))


def test_the_headline_has_the_accuracy_at_the_longest_haystack(findings):
    start = "In haystacks of 96 tokens the needle is recalled by full attention 100% ["
    assert findings.answer.startswith(start) and "LSTM 50% [" in findings.answer
    assert overall(findings.claims) == "supported"


def test_every_cell_is_in_the_tables_and_figures(findings):
    cells = findings.tables["Accuracy by length and depth"]
    assert {(row["arm"], row["length"], row["depth"]) for row in cells} == {
        (arm, length, depth) for arm in ("full attention", "LSTM") for length in LENGTHS for depth in DEPTHS
    }
    by_length = {(row["arm"], row["length"]): row for row in findings.tables["Accuracy by length of the haystack"]}
    lstm = by_length["LSTM", 96]
    assert lstm["accuracy"] == pytest.approx(0.5) and lstm["lo"] < 0.5 < lstm["hi"] and lstm["seeds"] == 3
    heat, lines = (findings.figures[name]().to_dict() for name in ("needle", "needle_lengths"))
    assert heat["facet"]["sort"] == ["full attention", "LSTM"] and "12.5%" in heat["title"]["subtitle"]
    assert [*colors(lines).values()] == [*colors(findings.figures["arms"]().to_dict()).values()]
    assert colors(lines).keys() == colors(findings.figures["tuning"]().to_dict()).keys() == {"full attention", "LSTM"}
    assert "haystack (tokens)" in str(lines) and "tuning" in findings.figures


def test_runs_without_needles_are_refused(tmp_path):
    for arm in ACCURACY:
        write(tmp_path, arm, scored=False)
    with pytest.raises(ValueError, match="evals=needle"):
        Needle(measure="loss", claims=[{"arm": "full", "against": "lstm"}]).analyze(read_runs(tmp_path))


def test_arms_are_named_by_their_pairs_where_these_differ(tmp_path):
    for arm, pairs in (("full", 16), ("lstm", 16), ("lstm_4", 4)):
        write(tmp_path, arm, pairs)
    findings = Needle(measure=f"{PREFIX}/loss", claims=[CLAIM]).analyze(read_runs(tmp_path))
    panels = findings.figures["needle"]().to_dict()["facet"]["sort"]
    assert panels == ["full attention, 16 pairs", "LSTM, 16 pairs", "LSTM, 4 pairs"]


def test_arms_of_one_model_have_their_own_names(tmp_path):
    for arm in ("full_2", "full_8", "lstm"):
        write(tmp_path, arm)
    claims = [{**CLAIM, "arm": "full_2"}]
    findings = Needle(measure=f"{PREFIX}/loss", claims=claims).analyze(read_runs(tmp_path))
    rows = findings.tables["Accuracy by length of the haystack"]
    assert {row["arm"] for row in rows} == {"full_2", "full_8", "LSTM"}
