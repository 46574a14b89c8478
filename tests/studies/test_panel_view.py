"""Means, contrasts, answers and caveats of a panel, and the order and names of levels."""

import math

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.decision import mean_estimate
from kleiber.studies.panel import Panel

from .panels import LOSS, plant, row, rows

NOISE = {"plain": [0.0, 0.2, -0.1], "new": [0.1, 0.0, 0.0]}
SIZES = (32, 64)
KEYS = {
    "arm": {"source": "study.arm", "title": "recipe", "labels": {"plain": "plain training"}},
    "size": {"source": "model.width", "labels": "width {}"},
}
OPTIONS = {"keys": KEYS, "measures": {"loss": LOSS, "share": {"source": "share", "limits": [0, 1]}},
           "equal": "learning_rate"}  # fmt: skip


def loss(arm, size, seed):
    return 3.0 - 0.1 * (arm == "new") - (size - 32) / 64 + NOISE[arm][seed]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    for arm in ("plain", "new"):
        for size in SIZES:
            for seed in range(3):
                metrics = {LOSS: loss(arm, size, seed), "share": [0.9, 1.0, 0.7][seed]}
                design = {"arms": {"new": {}, "plain": {}}}
                plant(folder, f"{arm}{size}", metrics, seed, arm=arm, model={"width": size}, design=design)
    return read_runs(folder)


def analyzed(runs, **options):
    return Panel(**{**OPTIONS, **options}).analyze(runs)


def test_a_mean_has_its_noise_or_that_of_all_cells(runs):
    by = {"measures": "loss", "by": ["arm", "size"]}
    findings = analyzed(runs, means=[{"title": "Own", **by}, {"title": "Pooled", **by, "noise": "pooled"}])
    cell = {"recipe": "new", "size": 32, "measure": "loss on docs"}
    own, pooled = (row(findings, title, **cell) for title in ("Own", "Pooled"))
    estimate = mean_estimate([loss("new", 32, seed) for seed in range(3)], 0.9, "")
    assert (own["value"], own["lo"], own["hi"]) == pytest.approx((estimate.value, estimate.lo, estimate.hi))
    halves = {round(each["hi"] - each["lo"], 12) for each in findings.tables["Pooled"]}
    assert len(halves) == 1 and pooled["value"] == pytest.approx(own["value"])
    wide = row(findings, "Own", recipe="plain training", size=32, measure="loss on docs")
    assert own["hi"] - own["lo"] < halves.pop() < wide["hi"] - wide["lo"]


def test_rows_are_in_the_order_of_labels_arms_and_numbers_and_tables_keep_numbers(runs):
    findings = analyzed(runs, means=[{"title": "Means", "by": ["arm", "size"]}])
    places = [(each["recipe"], each["size"]) for each in rows(findings, "Means", measure="loss on docs")]
    assert places == [("plain training", 32), ("plain training", 64), ("new", 32), ("new", 64)]
    unlabeled = analyzed(runs, means=[{"title": "Means", "by": ["arm"]}], keys={**KEYS, "arm": "study.arm"})
    assert [each["arm"] for each in rows(unlabeled, "Means", measure="loss on docs")] == ["new", "plain"]


def test_open_keys_are_averaged_and_where_chooses_values(runs):
    findings = analyzed(
        runs,
        means=[
            {"title": "All", "measures": "loss", "by": ["arm"]},
            {"title": "Large", "measures": "loss", "by": ["arm"], "where": {"size": "largest"}},
            {"title": "Listed", "measures": "loss", "by": ["arm"], "where": {"size": {"not": [32]}}},
        ],
    )
    assert row(findings, "All", recipe="new")["value"] == pytest.approx(2.9 - 0.25 + 0.1 / 3)
    assert row(findings, "Large", recipe="new") == row(findings, "Listed", recipe="new")
    assert row(findings, "All", recipe="new")["n"] == 3, "a seed is one sample at all sizes"


def test_intervals_end_at_the_limits_of_a_measure_but_not_those_of_differences(runs):
    findings = analyzed(
        runs, means=[{"title": "Means", "measures": "share", "by": ["arm"]}],
        contrasts=[{"title": "Gaps", "measures": "share", "of": {"arm": "new"}, "against": {"arm": "plain"}}],
    )  # fmt: skip
    mean = row(findings, "Means", recipe="new")
    assert mean["hi"] == 1.0 and mean["lo"] > 0 and row(findings, "Gaps")["value"] == 0


def test_contrasts_have_a_row_for_each_value_and_cell(runs):
    contrast = {"of": {}, "each": {"arm": {"not": ["plain"]}}, "against": {"arm": "plain"}}
    findings = analyzed(
        runs,
        contrasts=[
            {"title": "Gaps", "measures": "loss", **contrast, "by": ["size"]},
            {"title": "Interaction", "measures": "loss", "of": {"arm": "new", "size": 64}, "against": {"arm": "plain"},
             "than": {"size": 32}},
        ],
    )  # fmt: skip
    gaps = [loss("new", 64, seed) - loss("plain", 64, seed) for seed in range(3)]
    assert row(findings, "Gaps", size=64)["value"] == pytest.approx(sum(gaps) / 3)
    assert [each["size"] for each in findings.tables["Gaps"]] == [32, 64]
    assert row(findings, "Interaction")["value"] == pytest.approx(0)


def test_joint_intervals_are_those_of_a_level_divided_by_the_rows(runs):
    tables = [{"title": title, "measures": "loss", "by": ["arm", "size"], **more}
              for title, more in (("Own", {}), ("Joint", {"joint": True}))]  # fmt: skip
    findings = analyzed(runs, means=tables)
    values = [loss("new", 32, seed) for seed in range(3)]
    joint = row(findings, "Joint", recipe="new", size=32)
    assert joint["hi"] == pytest.approx(mean_estimate(values, 1 - 0.1 / 4, "").hi)
    assert joint["hi"] > row(findings, "Own", recipe="new", size=32)["hi"]


def test_an_answer_has_the_declared_numbers(runs):
    values = {
        "level": {"of": {"arm": "new", "size": "largest"}, "format": ".1f"},
        "gap": {"of": {"arm": "new"}, "against": {"arm": "plain"}, "format": "+.2f"},
    }
    gap = {"of": {"arm": "new"}, "against": {"arm": "plain"}}
    findings = analyzed(runs, answer={"text": "A loss of {level}, changed by {gap}.", "values": values}, claims=[gap])
    assert findings.answer.startswith("A loss of 2.4 [2.3, 2.5], changed by -0.10 [")
    assert findings.answer.endswith("Claims: 1 undecided, with a 90% interval.")
    alone = analyzed(runs, answer={"text": "A loss of {level}, changed by {gap}.", "values": values})
    assert "Claims" not in alone.answer


def test_an_answer_without_its_numbers_is_made_from_the_claims(runs):
    missing = {"text": "{x}", "values": {"x": {"of": {"arm": "absent"}}}}
    level = {"of": {"arm": "new"}, "less": 9.0}
    assert analyzed(runs, answer=missing, claims=[level]).answer.startswith("Supported: ")
    assert analyzed(runs, answer=missing).answer == analyzed(runs).answer


def test_samples_that_a_side_lacks_are_left_out_with_a_caveat(runs):
    lacking = [run for run in runs if not run.name.startswith("new") or run.config["seed"] < 2]
    findings = analyzed(lacking, claims=[{"of": {"arm": "new"}, "against": {"arm": "plain"}}])
    (caveat,) = findings.caveats
    assert caveat["code"] == "unpaired" and "2 of 3" in caveat["text"]
    assert findings.claims[0].estimate.n == 2 and analyzed(runs).caveats == []


def test_a_side_without_runs_is_named(runs):
    findings = analyzed(runs, claims=[{"of": {"arm": "absent"}, "against": {"arm": "plain"}}])
    (result,) = findings.claims
    assert result.decision == "not tested" and "absent" in result.why and result.estimate is None


def test_a_group_is_not_compared_with_itself(runs):
    small = [run for run in runs if run.config["model"]["width"] == 32]
    (result,) = analyzed(small, claims=[{"of": {"size": "largest"}, "against": {"size": "smallest"}}]).claims
    assert result.decision == "not tested" and result.estimate.value == 0


def test_seeds_alone_have_no_interval(runs):
    alone = [run for run in runs if run.config["seed"] == 0]
    findings = analyzed(alone, means=[{"title": "Means", "measures": "loss", "by": ["arm"], "noise": "pooled"}])
    assert all(each["lo"] is None or math.isnan(each["lo"]) for each in findings.tables["Means"])


def test_several_metrics_of_a_measure_are_called_by_its_name(tmp_path):
    plant(tmp_path, "a", {"val/docs/loss": 1.0, "val/code/loss": 2.0})
    means = [{"title": "Means", "by": ["data"]}]
    findings = Panel(measures={"held_out": "val/{data}/loss"}, means=means).analyze(read_runs(tmp_path))
    assert {(each["data"], each["measure"]) for each in findings.tables["Means"]} == {
        ("docs", "held out"), ("code", "held out"),
    }  # fmt: skip


def test_sides_are_paired_by_design_where_they_share_more_than_the_seed(runs):
    by_arm = {"of": {"arm": "new", "size": 64}, "against": {"arm": "plain"}, "equal": "learning_rate"}
    (tested,) = analyzed(runs, claims=[by_arm]).claims
    (by_size,) = analyzed(runs, samples=["size", "seed"], claims=[{**by_arm, "of": {"arm": "new"}}]).claims
    assert not tested.question.paired and [*tested.question.groups] == ["arm=new, size=64", "arm=plain, size=64"]
    assert (
        by_size.question.paired
        and not by_size.question.groups
        and by_size.question.samples == "values of size and seed"
    )
    assert by_size.spread.paired and by_size.spread.df == 5
