"""The unit, direction and label of measures, as they were recorded, and which value is better."""

import pytest
from fake_run import fake_run

from kleiber.data.labelled import METRICS
from kleiber.objectives import Classify
from kleiber.records.catalog import read_runs
from kleiber.studies.compare.measures import LOADS, Measures, direction_of, score_of, with_pattern

MINE = {"value": 2.0, "lo": 1.0, "hi": 3.0, "n": 9, "unit": "steps", "better": "higher", "label": "mine on docs"}
NEITHER = {**MINE, "better": "none"}


@pytest.fixture
def runs(tmp_path):
    """A run without an evaluation, then one with a metric of somebody else's."""
    fake_run(tmp_path / "a", [{"tasks": ["docs"], "metrics": {"val/docs/loss": 2.0}}])
    metrics = {"val/docs/loss": 1.9, "eval/own/docs/mine": 2.0, "eval/own/docs/flat": 2.0, "val/docs/untold": 1.0}
    scores = {"eval/own/docs/mine": MINE, "eval/own/docs/flat": NEITHER}
    fake_run(tmp_path / "b", [{"tasks": ["docs"], "metrics": metrics, "scores": scores}])
    return read_runs(tmp_path)


def test_a_measure_is_what_a_run_recorded_of_it(runs):
    score = score_of(runs, "eval/own/docs/mine")
    assert (score.unit, score.better, score.label) == ("steps", "higher", "mine on docs")
    assert Measures(runs)["eval/own/docs/mine"] == score


def test_a_measure_that_nobody_declared_has_its_name_as_label_and_no_direction(runs):
    for name in ("val/docs/untold", "eval/x/y/z"):
        score = score_of(runs, name)
        assert (score.unit, score.better, score.label) == ("", "none", name)


def test_the_loss_has_the_unit_of_the_losses_of_the_tasks(runs, tmp_path):
    assert (score_of(runs, "loss").unit, score_of(runs, "loss").label) == ("nats per token", "loss")
    score = {**MINE, "unit": "per sample", "better": "lower", "label": "loss on SST-2"}
    stage = {"tasks": ["sst2"], "metrics": {"val/sst2/loss": 2.0}, "scores": {"val/sst2/loss": score}}
    fake_run(tmp_path / "classes/a", [stage])
    found = score_of(read_runs(tmp_path / "classes"), "loss")
    assert (found.unit, found.better, found.label) == ("per sample", "lower", "loss")
    assert score_of((), "loss").better == "lower", "before there is a run"


def test_columns_and_loads_of_experts_have_a_direction(runs):
    directions = {name: score_of(runs, name).better for name in (*LOADS, "seconds", "watt_hours", "tokens")}
    assert directions == {
        "moe/max_violation": "lower", "moe/load_entropy": "higher", "moe/dead": "lower", "seconds": "lower",
        "watt_hours": "lower", "tokens": "none",
    }  # fmt: skip


def test_every_metric_by_which_labelled_data_can_be_scored_has_a_direction():
    metrics = {metric for names in METRICS.values() for metric in names}
    assert {metric for metric in metrics if Classify.metrics[metric].better == "none"} == set()


def test_a_direction_is_that_of_the_record_else_that_of_claims_of_a_single_one(runs):
    def of(measure, *directions):
        return [{"arm": "b", "against": "a", "direction": each, "measure": measure} for each in directions]

    flat = "eval/own/docs/flat"
    assert direction_of("eval/own/docs/mine", (), runs) == "higher"
    assert direction_of(flat, of(flat, "lower", "not_higher", "within"), runs) == "lower"
    assert direction_of(flat, of(flat, "not_lower"), runs) == "higher"
    for claims in ((), of(flat, "within"), of(flat, "lower", "higher"), [{"arm": "b", "measure": "loss"}]):
        with pytest.raises(ValueError, match=f"study.measure={flat}.*study.claims"):
            direction_of(flat, claims, runs)
    assert direction_of("loss", [{"arm": "b", "direction": "higher"}], runs) == "lower", (
        "a claim does not turn a loss around"
    )
    assert direction_of("val/docs/los", (), runs) == "lower", "the table of arms says that no run has it"


def test_a_pattern_is_the_one_metric_of_a_run_that_it_matches(runs):
    rows = runs[1].leaf_rows()
    assert with_pattern(rows[0], "eval/*/mine")["eval/*/mine"] == 2.0
    assert with_pattern(rows[0], "eval/*/absent") == rows[0] == with_pattern(rows[0], "val/docs/loss")
    with pytest.raises(ValueError, match="several metrics of b: eval/own/docs/mine, eval/own/docs/flat"):
        with_pattern(rows[0], "eval/own/*")
    score = score_of(runs, "eval/*/mine")
    assert (score.unit, score.better, score.label) == ("steps", "higher", "mine")
