"""The study `needle`: a comparison whose panel shows each arm's accuracy in every cell, at its best rate."""

import pytest
from fake_run import fake_run
from studies.colors import colors
from studies.panels import declared, row

from kleiber.records.catalog import read_runs
from kleiber.studies.claims import overall

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
    return declared("needle", claims=[CLAIM]).analyze(read_runs(tmp_path))


def test_claims_are_those_of_the_comparison_and_the_answer_begins_with_the_recall(tmp_path):
    for arm in (*ACCURACY, "lstm_4"):
        write(tmp_path, arm)
    findings = declared("needle", claims=[CLAIM]).analyze(read_runs(tmp_path))
    assert overall(findings.claims) == "supported" and findings.claims[0].claim.of == {"arm": "full"}
    assert "among 16 keys in 100% [" in findings.answer and "among 16 keys" in findings.answer


@pytest.mark.slow
def test_every_cell_is_in_the_tables_and_figures_at_the_best_rate(findings):
    cells = findings.tables["Accuracy by length and depth"]
    names = ("full attention, 16 keys", "LSTM, 16 keys")
    places = {(each["arm"], each["haystack (tokens)"], each["depth of the needle"]) for each in cells}
    assert places == {(name, length, depth) for name in names for length in LENGTHS for depth in DEPTHS}
    lengths = "Accuracy by length of the haystack"
    lstm = row(findings, lengths, arm="LSTM, 16 keys", **{"haystack (tokens)": 96})
    assert lstm["value"] == pytest.approx(0.5) and lstm["lo"] < 0.5 < lstm["hi"] and lstm["n"] == 3
    drawn = {name: draw().to_dict() for name, draw in findings.figures.items()}
    assert drawn["needle"]["facet"]["sort"] == [*names] and "0.125" in str(drawn["needle"]["title"]["subtitle"])
    assert colors(drawn["needle_lengths"]).keys() == colors(drawn["tuning"]).keys() == {*names}


def test_runs_without_needles_are_refused(tmp_path):
    for arm in ACCURACY:
        write(tmp_path, arm, scored=False)
    with pytest.raises(ValueError, match="eval/needle"):
        declared("needle", measure="loss", claims=[{"arm": "full", "against": "lstm"}]).analyze(read_runs(tmp_path))
