"""The study of the forgetting law recovers a known law, and refuses a grid that does not determine it."""

import json
import shutil

import pandas as pd
import pytest

from kleiber.launch.cli import main
from kleiber.records.catalog import read_runs
from kleiber.studies.forgetting_law import ForgettingLaw, grid_cells, headline

from .comparisons import write_arm, write_base
from .grid_runs import RATIOS, SHARES, SIZES, TOKENS, TRUTH, forgetting, write_grid


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "law"
    write_grid(home)
    return home


@pytest.fixture(scope="module")
def record(study):
    return ForgettingLaw(tolerate=0.1, bootstrap=60).fitted(read_runs(study))


@pytest.mark.slow
def test_seeds_are_averaged_into_cells(study):
    rows, noise = grid_cells(read_runs(study))
    assert len(rows) == 3 * 2 * 3 * 4 and set(rows["n"]) == {2}
    assert noise.sd == pytest.approx(0.004, rel=0.25) and noise.df == len(rows)
    assert sorted(rows["M"].unique()) == [20, 80]


def test_replay_that_comes_on_top_stands_beside_as_much_new_text(tmp_path):
    """design.equal=target: a replayed run takes more steps than any plain one."""
    write_grid(tmp_path / "top", sizes=SIZES[:1], ratios=RATIOS[:1], seeds=1, on_top=True)
    rows, _ = grid_cells(read_runs(tmp_path / "top"))
    assert len(rows) == 3 * 4 and sorted(rows["p"].unique()) == list(SHARES)
    assert rows.groupby(rows["D"].round(-4))["p"].nunique().tolist() == [4, 4, 4]


@pytest.mark.slow
def test_the_law_is_found_again(record):
    assert record["main"]["law"] == "replay_grid_ratio"
    for name, value in TRUTH.items():
        result = record["main"]["params"][name]
        if name != "A":
            assert result["identified"] and 0.97 * result["lo"] < value < 1.03 * result["hi"], name
    assert record["main"]["residual_rms"] < 0.004


def test_the_critical_share_is_the_laws_own(record):
    at = {"N": SIZES[-1], "D": TOKENS[-1], "M": RATIOS[-1]}
    exact = ((forgetting(**at, p=0) + TRUTH["c"]) / (0.1 + TRUTH["c"]) - 1) / TRUTH["B"]
    result = record["critical"]
    assert result["at"] == at and result["why_not"] is None
    assert result["lo"] < exact < result["hi"] and result["value"] == pytest.approx(exact, rel=0.1)
    assert forgetting(**at, p=result["value"]) == pytest.approx(0.1, abs=0.01)


def test_what_is_within_noise_is_kept_from_laws_that_cannot_be_there(record):
    gone = record["beside"]["forgetting"]["excluded"]
    assert gone and all(entry["rule"].startswith("censored: F below 3 ") for entry in gone)
    low = {entry["row"] for entry in gone}
    assert all(
        (row["F"] < 0.015) == (i in low) for i, row in enumerate(record["rows"]) if abs(row["F"] - 0.012) > 0.004
    )
    assert record["main"]["n"] == len(record["rows"]), "the law with an offset keeps every cell"


@pytest.mark.slow
def test_cells_of_the_same_bases_are_no_independent_samples(study):
    """What a base gives to all of its cells, and the law cannot know, is drawn once a base."""
    rows, _ = grid_cells(read_runs(study))
    base = {key: 0.02 * (-1) ** n for n, key in enumerate(sorted(set(zip(rows["N"], rows["M"], strict=True))))}
    moved = rows.assign(
        F=[F + base[key] for F, key in zip(rows["F"], zip(rows["N"], rows["M"], strict=True), strict=True)]
    )
    record = ForgettingLaw(bootstrap=20).fit(moved, "replay_grid_ratio")
    assert record["bootstrap"]["method"] == "cluster t" and record["noise"]["between"] > 0


@pytest.mark.slow
def test_no_cell_is_left_out_for_a_base_of_less_pretraining(tmp_path):
    """Of two sizes the larger had less of it, and a worse loss: it has not diverged."""
    write_grid(tmp_path / "s", sizes=SIZES[:2], seeds=1)
    for folder in [*(tmp_path / "s").glob("90000-20-*"), *(tmp_path / "s").glob("36000-80-*")]:
        content = json.loads((folder / "summary.json").read_text())
        content["stages"][0]["metrics"]["val/code/loss"] += 0.5 if folder.name.startswith("9") else -0.5
        (folder / "summary.json").write_text(json.dumps(content))
    fitted = ForgettingLaw(bootstrap=0).fitted(read_runs(tmp_path / "s"))
    assert fitted["beside"]["transfer"]["n"] == 2 * 2 * 3 and fitted["main"]["n"] == 2 * 2 * 3 * 4


def test_published_laws_stand_beside_it(record):
    assert set(record["beside"]) == {"forgetting", "transfer", "forgetting_power", "forgetting_line"}
    assert record["beside"]["forgetting"]["n"] < record["main"]["n"]
    assert record["beside"]["transfer"]["n"] == record["beside"]["forgetting_line"]["n"] == 3 * 2 * 3, "without replay"
    assert "Bethune" in record["beside"]["forgetting"]["source"]


@pytest.mark.slow
def test_without_enough_replay_nothing_is_claimed(tmp_path):
    write_grid(tmp_path / "s", shares=(0.0,), seeds=1)
    fitted = ForgettingLaw(bootstrap=0).fitted(read_runs(tmp_path / "s"))
    assert fitted["critical"]["why_not"] in headline(fitted)


@pytest.mark.slow
def test_a_share_far_beyond_those_tried_is_not_told(tmp_path):
    write_grid(tmp_path / "t", shares=(0.0, 0.001, 0.002), sizes=SIZES[:1], ratios=RATIOS[:1])
    fitted = ForgettingLaw(tolerate=0.02, bootstrap=60).fitted(read_runs(tmp_path / "t"))
    assert "0.20%" in fitted["critical"]["why_not"] and fitted["critical"]["why_not"] in headline(fitted)
    longest = [entry for entry in fitted["rows"] if entry["steps"] == max(row["steps"] for row in fitted["rows"])]
    there = [f"{entry['F']:.3f} nats at {100 * entry['p']:.3g}%" for entry in longest]
    assert all(value in headline(fitted) for value in there) and len(there) == 3
    elsewhere = critical_at(fitted, tolerate=0.02, at={"D": 7e5})
    assert elsewhere["seen"] == {} and elsewhere["why_not"] in headline({**fitted, "critical": elsewhere})


def exact_share(tolerate, **at):
    return ((forgetting(**at, p=0) + TRUTH["c"]) / (tolerate + TRUTH["c"]) - 1) / TRUTH["B"]


@pytest.fixture(scope="module")
def one_size(tmp_path_factory):
    """The record of runs of a single size and ratio."""
    home = tmp_path_factory.mktemp("runs") / "one_size"
    write_grid(home, sizes=SIZES[:1], ratios=RATIOS[:1], noise=0.002)
    return ForgettingLaw(tolerate=0.1, bootstrap=60).fitted(read_runs(home))


def critical_at(record, **options):
    """The share that `options` ask for, by the law of a record that is fitted already."""
    return ForgettingLaw(**options).critical(record["main"], pd.DataFrame(record["rows"]))


@pytest.mark.slow
@pytest.mark.parametrize("D", [2.5e5, 1e6])
def test_one_size_tells_the_share_at_each_amount_of_new_text(one_size, D):
    exact, critical = exact_share(0.1, N=SIZES[0], M=RATIOS[0], D=D), critical_at(one_size, tolerate=0.1, at={"D": D})
    assert critical["why_not"] is None and critical["value"] == pytest.approx(exact, rel=0.1)


def test_another_size_than_the_only_one_is_not_told(one_size):
    critical = critical_at(one_size, tolerate=0.1, at={"N": 1e6})
    assert critical["why_not"] and critical["why_not"] in headline({**one_size, "critical": critical})


def test_decades_beyond_the_runs_are_not_told(record):
    assert critical_at(record, at={"D": 3e6})["why_not"] is None
    assert "decades" in critical_at(record, at={"N": 7e9, "D": 1e10})["why_not"]


@pytest.mark.slow
def test_too_few_runs_for_a_law_leave_a_report(tmp_path, capsys):
    write_grid(tmp_path / "s", shares=(0.0, 0.05), sizes=SIZES[:1], ratios=RATIOS[:1], seeds=1)
    for folder in (tmp_path / "s").iterdir():
        if "-250000-" not in folder.name:
            shutil.rmtree(folder)
    assert main(["report", str(tmp_path / "s")]) == 3
    output = capsys.readouterr().out
    assert "not identified" in output.splitlines()[0] and "replay_curve" in output
    assert (tmp_path / "s/figures/tokens.png").exists() and "Grid of runs" in (tmp_path / "s/report.html").read_text()


def test_bases_that_are_not_there_are_named_and_a_moved_sweep_finds_them(tmp_path):
    base = tmp_path / "old" / "gpt-base-1234"
    write_arm(tmp_path / "s" / "arm", "none", 0.0, 0.01, 0, base=base)
    with pytest.raises(ValueError, match="gpt-base-1234"):
        grid_cells(read_runs(tmp_path / "s"))
    write_base(tmp_path / "s" / base.name, 0)
    rows, _ = grid_cells(read_runs(tmp_path / "s"))
    assert rows["M"].tolist() == [4e6 / 40_000]


@pytest.mark.slow
def test_the_report_answers_first_how_much_replay_is_needed(study, capsys):
    assert main(["report", str(study)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Replaying 5.") and "0.1 nats at N = 2e+05, 1e+06 new tokens" in first
    assert "% of the tokens, 90% interval [" in first
    law = json.loads((study / "laws.json").read_text())
    assert law["schema"] == "kleiber.law/1" and law["law"] == "replay_grid_ratio"
    for name in ("replay", "tokens", "fit"):
        assert (study / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "Bethune et al. 2025" in (study / "report.html").read_text()


def test_the_best_learning_rate_is_chosen_without_looking_at_forgetting(tmp_path):
    write_grid(tmp_path / "s", shares=(0.0, 0.05, 0.2), seeds=1, sizes=SIZES[:1], ratios=(20,))
    write_arm(
        tmp_path / "s" / "slow", "none", 0.0, 0.001, 0, F=0.0, tokens=1e6, params=36_000, pretrained=20 * 36_000.0
    )
    rows, _ = grid_cells(read_runs(tmp_path / "s"))
    assert len(rows) == 9 and rows["F"].iloc[-1] > -0.05
    plain = rows[(rows["p"] == 0) & (rows["steps"] == 1000)]["F"].item()
    assert plain == pytest.approx(forgetting(36_000, 1e6, 20, 0), abs=0.02)


def test_a_point_has_the_inputs_of_the_law():
    with pytest.raises(ValueError, match=r"study\.at .*X"):
        ForgettingLaw(at={"X": 1.0})
