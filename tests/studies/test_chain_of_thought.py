"""The study `chain_of_thought` shows the exact match by number of digits, and what the steps gain at each of them."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.chain_of_thought import ChainOfThought, settings
from kleiber.studies.claims import overall

from .colors import colors

RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
CLAIM = {"arm": "steps_32", "against": "direct_32", "direction": "higher", "margin": 0.05,
         "measure": "eval/exact_match/all/accuracy"}  # fmt: skip
MATCH = {"steps_32": {2: 0.9, 6: 0.6}, "direct_32": {2: 0.5, 6: 0.0}}


def write(folder, scored: bool = True) -> None:
    """Runs whose exact match is that of MATCH at the rate of least loss, with noise of the seed."""
    for arm, by_digits in MATCH.items():
        for rate in RATES:
            for seed in range(3):
                lost, noise = (0.0 if rate == 0.01 else 0.2), 0.01 * (seed - 1)
                metrics = {"val/digits2/loss": 1.0 + lost, "val/digits6/loss": 1.0 + lost + noise}
                values = {f"digits{n}": value * (1 - lost) + noise for n, value in by_digits.items()}
                values["all"] = sum(values.values()) / 2
                if scored:
                    metrics |= {f"eval/exact_match/{name}/accuracy": value for name, value in values.items()}
                config = {
                    "seed": seed, "model": {"depth": 2, "width": 32, "context": 128}, "optimizer": {"lr": rate},
                    "study": {"arm": arm}, "data": {"steps": arm.startswith("steps")},
                }  # fmt: skip
                stage = {"name": "main", "lr": rate, "tokens": 4e5, "metrics": metrics, "flops": {"model": 1e9},
                         "tasks": ["digits2", "digits6"]}  # fmt: skip
                fake_run(folder / f"{arm}-{rate:g}-{seed}", [stage], config=config, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def findings(folder):
    return ChainOfThought(measure="val/digits2/loss", claims=[CLAIM]).analyze(read_runs(folder))


def test_the_headline_has_the_longest_numbers_and_what_steps_gain_there(findings):
    start = "Of held-out sums of numbers with 6 digits these are right: sum alone, width 32, 0% ["
    assert findings.answer.startswith(start) and "worked steps, width 32, 60% [" in findings.answer
    assert "At width 32 the steps gain +0.60 [" in findings.answer
    assert overall(findings.claims) == "supported"


def test_every_number_of_digits_is_in_the_tables_and_the_figure(findings):
    rows = {(row["arm"], row["digits"]): row for row in findings.tables["Exact match by number of digits"]}
    assert rows["worked steps, width 32", 6]["exact match"] == pytest.approx(0.6)
    assert rows["sum alone, width 32", 6]["lo"] == 0  # no share is below 0
    gains = {row["digits"]: row for row in findings.tables["Gain of worked steps by number of digits"]}
    assert gains[6]["value"] == pytest.approx(0.6) and gains[2]["value"] == pytest.approx(0.4)
    assert gains[2]["lo"] <= 0.4 + 1e-9 and gains[2]["n"] == 3
    chart = str(findings.figures["digits"]().to_dict())
    assert "digits of each term" in chart and "worked steps, width 32" in chart
    named = {"sum alone, width 32", "worked steps, width 32"}
    assert colors(findings.figures["tuning"]().to_dict()).keys() == named
    gain = str(findings.figures["gains"]().to_dict())
    assert "exact match with steps less without" in gain and "width 32" in gain
    assert not {"Differences", "Differences by training tokens"} & findings.tables.keys()
    assert not {"differences", "arms", "sizes"} & findings.figures.keys() and "tuning" in findings.figures


def test_one_seed_has_a_figure_of_the_matches_and_none_of_the_gains(folder):
    first = [run for run in read_runs(folder) if run.config["seed"] == 0]
    found = ChainOfThought(measure="val/digits2/loss", claims=[CLAIM]).analyze(first)
    assert "gains" not in found.figures and "worked steps" in str(found.figures["digits"]().to_dict())


def test_two_arms_of_one_width_and_kind_of_answer_are_refused(folder):
    configs = [run.config for run in read_runs(folder)]
    assert settings(configs) == {"direct_32": (False, 32), "steps_32": (True, 32)}
    derived = [{**config, "model": {"depth": 2, "width": None, "aspect": 16}} for config in configs]
    assert settings(derived) == settings(configs)
    with pytest.raises(ValueError, match="deeper"):
        settings([*configs, {**configs[0], "study": {"arm": "deeper"}}])


def test_runs_without_exact_match_are_refused(tmp_path):
    write(tmp_path, scored=False)
    with pytest.raises(ValueError, match="evals=exact_match and data=arithmetic"):
        ChainOfThought(measure="val/digits2/loss", claims=[{**CLAIM, "measure": "val/digits6/loss"}]).analyze(
            read_runs(tmp_path)
        )
