"""Rows of sequences: one for every method, order, seed and task."""

import json

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies import sequence_metrics
from kleiber.studies.continual import Continual, matrices

from .sequence_runs import sequence_row, study, write_sequence  # noqa: F401  (study is a fixture)


def test_every_metric_of_a_sequence_by_hand(study):  # noqa: F811
    row = sequence_row(study)
    assert row["ACC"] == pytest.approx(-(2.0 + 1.5 + 1.4) / 3)
    assert row["LA"] == pytest.approx(-(1.0 + 1.2 + 1.4) / 3)
    assert row["BWT"] == pytest.approx(-((2.0 - 1.0) + (1.5 - 1.2)) / 2) and row["forgetting"] == pytest.approx(0.65)
    assert row["FWT"] == pytest.approx(((5.0 - 3.0) + (5.0 - 3.5)) / 2)
    assert row["intransigence"] == pytest.approx(((1.0 - 0.9) + (1.2 - 1.1) + (1.4 - 1.0)) / 3)
    # 1.02 is reached at step 99 of the first stage, and at 20 + 20 * .48 / .5 of the last
    assert row["savings"] == pytest.approx(1 - (20 + 20 * 0.48 / 0.5) / 99)
    assert row["upstream"] != row["upstream"], "nothing was there before"


def test_the_order_of_stages_and_not_of_columns_decides(study):  # noqa: F811
    assert sequence_row(study, order="c > a > b").drop(
        ["run", "order", "matrix", "intransigence"]
    ).to_dict() == pytest.approx(
        sequence_row(study).drop(["run", "order", "matrix", "intransigence"]).to_dict(), nan_ok=True
    )
    assert sequence_row(study, order="c > a > b")["intransigence"] == pytest.approx((0.0 + 0.3 + 0.3) / 3)


def test_a_reference_is_that_of_the_seed_at_the_rate_that_is_best_on_average(study):  # noqa: F811
    assert sequence_row(study, seed=1)["intransigence"] == pytest.approx(sequence_row(study)["intransigence"])
    alone = sequence_metrics.alone_scores(read_runs(study))
    assert sequence_metrics.reference(alone, "scratch", "a", 7) == pytest.approx(-0.905), "the mean of the seeds"
    assert sequence_metrics.reference(alone, "elsewhere", "a", 0) != sequence_metrics.reference(
        alone, "elsewhere", "a", 0
    )


def test_heads_of_their_own_tell_no_forward_transfer(tmp_path):
    folder = write_sequence(tmp_path / "s", again=False)
    text = (folder / "summary.json").read_text()
    text = text.replace("/loss", "/accuracy").replace('"clm"', '"classify"').replace("false", "true")
    (folder / "summary.json").write_text(text)
    rows = sequence_metrics.sequence_rows(read_runs(tmp_path / "s"), 0.02)
    row = rows.iloc[0]
    assert row["FWT"] != row["FWT"] and row["ACC"] == pytest.approx(4.9 / 3) and row["kind"] == "accuracy"
    shown = matrices(rows, ["none"])
    assert shown["value"].iloc[-1] == pytest.approx(1.4) and shown["change"].isna().sum() == 3


def test_scores_without_a_common_mean_are_refused(tmp_path):
    folder = write_sequence(tmp_path / "s")
    content = json.loads((folder / "summary.json").read_text())
    content["R"]["metric"]["b"] = "val/b/accuracy"
    (folder / "summary.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="accuracy and loss"):
        Continual().compare(read_runs(tmp_path / "s"))


def test_arms_that_differ_in_their_schedule_are_two_settings(tmp_path):
    for schedule in ("wsd", "constant"):
        folder = write_sequence(tmp_path / schedule, "none")
        (folder / "overrides.yaml").write_text(yaml.safe_dump([f"schedule={schedule}", "optimizer.lr=0.01", "seed=0"]))
        folder.rename(folder.with_name(f"{folder.name}-{schedule}"))
    rows = sequence_metrics.sequence_rows(read_runs(tmp_path), 0.02)
    assert set(rows["setting"]) == {"schedule=wsd", "schedule=constant"}
