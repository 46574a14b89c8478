"""Exposures that are known: by repetitions, width and arm, against the first arm and against chance."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import fake_run

from kleiber.config.errors import Status
from kleiber.records.catalog import Run, read_runs
from kleiber.studies.compare.decision import Estimate
from kleiber.studies.memorization import Cells, Memorization, epsilon_figure, read_cells, repetition_figure
from studies.ablation_runs import copied

ARMS = {"all": None, "dp_8": 7.99, "exact": None}
EXPOSURE = {  # by arm: at 0, 1, 10 and 100 repetitions
    "all": (1.4, 2.0, 6.0, 13.0), "exact": (1.4, 1.9, 1.8, 2.1), "dp_8": (1.4, 1.4, 1.5, 1.4),
}  # fmt: skip
LOSS = {"all": 2.0, "exact": 2.02, "dp_8": 3.0}


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    design = {"arms": {arm: {"a": number} for number, arm in enumerate(ARMS)}}
    for arm, epsilon in ARMS.items():
        for width in (32, 64):
            for seed in (0, 1, 2):
                noise = 0.1 * (seed - 1) + (0.03 * (width == 64))
                wider = 1.0 if width == 64 and arm == "all" else 0.0
                metrics = {"val/docs/loss": LOSS[arm] + noise}
                for count, bits in zip((0, 1, 10, 100), EXPOSURE[arm], strict=True):
                    at = f"eval/memorization/canaries/exposure/{count}"
                    metrics[at] = bits + (seed - 1) * 0.05 * (1 + (count == 100)) + wider * (count == 10)
                    metrics[at.replace("exposure", "extracted")] = float(bits > 12)
                metrics["eval/memorization/docs/membership_auc/loss"] = 0.6
                metrics |= {} if epsilon is None else {"privacy/epsilon": epsilon}
                config = {
                    "model": {"width": width}, "optimizer": {"lr": 0.02}, "seed": seed, "study": {"arm": arm},
                    "data": {"tokenizer": "bytes"}, "design": design,
                }  # fmt: skip
                folder = tmp_path / f"{arm}{width}-{seed}"
                fake_run(folder, [{"metrics": metrics, "lr": 0.02}], config=config, seed=seed)
    return list(read_runs(tmp_path))


def test_exposure_grows_with_repetitions_and_size_and_falls_with_remedies(runs: list[Run]) -> None:
    findings = Memorization().analyze(runs)
    rows = {(row["code"], row["width"]): row for row in findings.tables["Differences"]}
    codes = {f"{kind}_{arm}" for kind in ("exposure", "loss", "chance") for arm in ("exact", "dp_8")}
    codes |= {"repetition", "extraction", "once_dp_8"}
    assert set(rows) == {("size", 64), *((code, width) for code in codes for width in (32, 64))}
    assert rows["extraction", 64]["value"] == 1 and rows["extraction", 64]["unit"] == "share"
    assert rows["once_dp_8", 32]["value"] == pytest.approx(1.4 - 2.1)
    assert rows["repetition", 64]["value"] == pytest.approx(11) and rows["repetition", 64]["lo"] > 10
    assert rows["size", 64]["value"] == pytest.approx(1)
    assert rows["exposure_exact", 32]["value"] == pytest.approx(-10.9)
    assert rows["loss_dp_8", 64]["value"] == pytest.approx(1) and rows["loss_dp_8", 64]["unit"] == "nats per token"
    assert rows["chance_dp_8", 32]["value"] == pytest.approx(0)
    texts = {verdict["text"] for verdict in findings.verdicts if verdict["code"] == "chance_dp_8"}
    assert all(text.endswith("bits, which may be 0.") for text in texts) and len(texts) == 2
    assert "DP-SGD, epsilon 8, width 64: validation loss less that of the arm all is +1.000" in findings.answer
    assert ", width 32:" not in findings.answer


def test_the_tables_have_every_arm_width_and_measure(runs: list[Run]) -> None:
    tables = Memorization().analyze(runs).tables
    assert len(tables["Exposure and extraction by repetitions"]) == 3 * 2 * 4 * 2
    assert len(tables["Loss and membership"]) == 3 * 2 * 2
    private = [row for row in tables["Loss and membership"] if row["epsilon"] is not None]
    assert {row["arm"] for row in private} == {"DP-SGD, epsilon 8"} and private[0]["n"] == 3


def test_a_small_epsilon_is_not_shown_as_zero() -> None:
    assert [Cells(("dp", 32), {}, epsilon).name for epsilon in (99.98, 1.04, 0.0298)] == [
        f"DP-SGD, epsilon {epsilon}" for epsilon in ("100", "1", "0.03")
    ]


def test_intervals_of_shares_and_exposures_end_where_these_do() -> None:
    estimate = Estimate(0.5, -0.2, 1.4, 3, "share")
    assert (estimate.within(0, 1).lo, estimate.within(0, 1).hi) == (0, 1)
    assert estimate.within(0, math.inf).hi == 1.4 and Estimate(0.5, None, None, 1, "share").within(0, 1).lo is None
    ours, theirs = {0: 1.0, 1: 0.9, 2: 0.4}, {0: 0.0, 1: 0.0, 2: 0.0}
    cell = Cells(("all", 32), {}, None)
    ends = {unit: Memorization().row("code", cell, "", ours, theirs, unit)["hi"] for unit in ("share", "bits")}
    assert ends["share"] == 1 < ends["bits"], "a difference of shares neither"


def test_runs_without_canaries_are_refused(tmp_path: Path) -> None:
    config = {"model": {"width": 32}, "optimizer": {"lr": 0.02}, "seed": 0, "study": {"arm": "all"}}
    fake_run(tmp_path / "run", [{"metrics": {"val/docs/loss": 1.0}, "lr": 0.02}], config=config)
    with pytest.raises(ValueError, match="no run here was scored on canaries"):
        Memorization().analyze(read_runs(tmp_path))


def test_the_figures_have_a_line_for_each_arm_and_the_loss_beside_the_exposure(runs: list[Run]) -> None:
    cells = read_cells(runs)
    drawn = str(repetition_figure(cells, [0, 1, 10, 100], "exposure", "exposure (bits)").to_dict())  # type: ignore[attr-defined]
    assert "without exact duplicates" in drawn and "repetitions in the training text" in drawn
    against = str(epsilon_figure(cells, 100).to_dict())  # type: ignore[attr-defined]
    assert "Validation loss" in against and "Exposure of canaries repeated 100 times" in against


def test_two_runs_of_an_arm_size_and_seed_are_refused_since_one_of_them_would_be_read(runs: list[Run]) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        Memorization().analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])


def test_a_first_arm_without_the_narrowest_width_is_compared_with_its_own_narrowest(runs: list[Run]) -> None:
    rows = Memorization().analyze([run for run in runs if not run.name.startswith("all32")]).tables["Differences"]
    assert not any(row["code"] == "size" for row in rows) and {row["width"] for row in rows} == {32, 64}


def test_a_single_number_of_repetitions_is_not_compared_with_itself(runs: list[Run]) -> None:
    kept = {0, 100}
    for run in runs:
        for name in [name for name in run.metrics if "/canaries/" in name and int(name.rpartition("/")[2]) not in kept]:
            del run.metrics[name]
    codes = {row["code"] for row in Memorization().analyze(runs).tables["Differences"]}
    assert codes and not {"repetition", "extraction"} & codes


def test_a_seed_that_diverged_leaves_its_arm_the_epsilon_of_the_others(runs: list[Run]) -> None:
    last = next(run for run in runs if run.name == "dp_832-2")
    ended = {**last.summary, "status": "diverged", "stages": []}
    runs = [*(run for run in runs if run != last), replace(last, status=Status.DIVERGED, summary=ended)]
    rows = Memorization().analyze(runs).tables["Loss and membership"]
    assert {row["epsilon"] for row in rows if row["arm"] == "DP-SGD, epsilon 8"} == {7.99}
    assert {row["width"] for row in rows if row["arm"] == "DP-SGD, epsilon 8"} == {32, 64}


def test_runs_that_are_compared_with_nothing_tell_their_exposure(runs: list[Run]) -> None:
    alone = [run for run in runs if run.name.startswith("all32")]
    for run in alone:
        for name in [name for name in run.metrics if "/canaries/" in name and not name.endswith("/100")]:
            del run.metrics[name]
    assert "repeated 100 times is 13.000 [" in Memorization().analyze(alone).answer
