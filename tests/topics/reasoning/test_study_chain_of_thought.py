"""The study `chain_of_thought`: a comparison with the exact match by number of digits, and what the steps gain."""

import pytest
from fake_run import fake_run
from studies.colors import colors
from studies.panels import declared, row

from kleiber.records.catalog import read_runs
from kleiber.studies.claims import overall

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
    return declared("chain_of_thought", measure="val/digits2/loss", claims=[CLAIM]).analyze(read_runs(folder))


@pytest.mark.slow
def test_every_number_of_digits_is_in_the_tables_and_the_figures(findings):
    assert overall(findings.claims) == "supported"
    match, gain, digits = (
        "Exact match by number of digits",
        "Gain of worked steps by number of digits",
        "digits of each term",
    )
    steps = row(findings, match, arm="worked steps, width 32", **{digits: 6})
    assert steps["value"] == pytest.approx(0.6), "that of the rate of least loss"
    assert row(findings, match, arm="answer alone, width 32", **{digits: 6})["lo"] == 0, "no share is below 0"
    six, two = (row(findings, gain, **{digits: number}) for number in (6, 2))
    assert six["value"] == pytest.approx(0.6) and two["value"] == pytest.approx(0.4)
    assert two["lo"] <= 0.4 + 1e-9 and two["n"] == 3 and two["width"] == 32
    drawn = {name: draw().to_dict() for name, draw in findings.figures.items()}
    assert "worked steps, width 32" in str(drawn["digits"]) and "width 32" in str(drawn["gains"])
    assert colors(drawn["tuning"]).keys() == {"answer alone, width 32", "worked steps, width 32"}


def test_losses_of_other_answers_are_not_compared(findings):
    assert not {"Differences", "Differences by training tokens"} & findings.tables.keys()
    assert not {"differences", "arms", "sizes"} & findings.figures.keys() and "tuning" in findings.figures


def test_the_noise_of_seeds_is_that_of_the_arm(findings):
    rows = findings.tables["Exact match by number of digits"]
    widths = {
        each["arm"]: {round(row["hi"] - row["value"], 9) for row in rows if row["arm"] == each["arm"]} for each in rows
    }
    assert all(len(each) == 1 for each in widths.values())


def test_one_seed_has_no_intervals(folder):
    first = [run for run in read_runs(folder) if run.config["seed"] == 0]
    found = declared("chain_of_thought", measure="val/digits2/loss", claims=[CLAIM]).analyze(first)
    assert overall(found.claims) == "not tested" and "worked steps" in str(found.figures["digits"]().to_dict())


def test_runs_without_exact_match_are_refused(tmp_path):
    write(tmp_path, scored=False)
    study = declared("chain_of_thought", measure="val/digits2/loss", claims=[{**CLAIM, "measure": "val/digits6/loss"}])
    with pytest.raises(ValueError, match="eval/exact_match"):
        study.analyze(read_runs(tmp_path))
