"""The transfer study pairs starts by seed, and counts pretraining in labels."""

import json
import math
from pathlib import Path

import pytest
from studies.ablation_runs import copied

from kleiber.records.catalog import read_runs
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.studies.study import PlannedPoint
from kleiber_topics.transfer.transfer import Transfer

from .transfer_runs import paired_runs, write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return paired_runs(tmp_path_factory.mktemp("runs"))


def test_gaps_are_paired_and_data_is_counted(runs):
    findings = Transfer(against={"mlm": "hf"}).analyze(runs)
    gaps = {
        (row["of"]["start"], *row["against"].values()): row for row in findings.estimates if row["of"]["share"] == 1
    }
    helps, weak = gaps["docs/1M", "scratch"], gaps["docs/2M", "scratch"]
    assert helps["value"] == pytest.approx(0.1) and helps["hi"] - helps["lo"] < 1e-6 and weak["lo"] < 0 < weak["hi"]
    assert gaps["docs/1M", "hf"]["value"] == pytest.approx(0.01)
    (claim,) = [result.to_json() for result in findings.claims]
    assert claim["of"] == {"kind": "mlm", "start": "docs/2M", "task": "toy"}, "of the largest text, with all labels"
    assert claim["value"] == weak["value"] and claim["decision"] == "not tested" and claim["tuned"] is False
    assert "censored" in {row["code"] for row in findings.caveats} and "on toy by -0.01 [" in findings.answer
    data = {(row["start"], row["share"]): row for row in findings.tables["Effective data transferred"]}
    assert data["docs/1M", 0.01]["times the labels"] == "10" and data["docs/1M", 0.01]["labelled tokens"] == 10
    assert data["docs/1M", 0.1]["transferred tokens"] == "900"
    assert float(data["docs/1M", 0.1]["lower end"]) == pytest.approx(10, rel=0.02)
    half = student_quantile(2, 0.9) * 0.01 / math.sqrt(3)
    ends = [float(data["docs/2M", 0.1][key]) for key in ("lower end", "upper end")]
    assert ends == pytest.approx([10 ** ((-0.01 - half) / 0.1), 10 ** ((-0.01 + half) / 0.1)], rel=0.02)
    assert data["docs/2M", 0.01]["lower end"] == "less than 1", "the curve ends there"
    assert data["docs/1M", 1.0]["times the labels"] == "more than all labels"
    assert [row["lr"] for row in findings.tables["Scores"] if row["start"] == "scratch"] == [0.005] * 3
    with pytest.raises(ValueError, match="no finished run of any task"):
        Transfer().analyze([])


def test_where_pretraining_hurts_is_counted(tmp_path):
    for seed in range(3):
        starts = {"scratch": 0.6, "docs/1M": 0.7, "code/1M": 0.5 + 0.001 * seed, "web/1M": 0.55 + 0.05 * seed}
        for start, score in starts.items():
            lines = [f"seed={seed}", "study.task=toy", "study.kind=mlm", "study.share=1", f"study.start={start}"]
            write(tmp_path, lines, accuracy=score + 0.02 * seed, loss=0.5)
    findings = Transfer().analyze(read_runs(tmp_path))
    rows = {row["domain"]: row for row in findings.tables["Where pre-training helps and hurts"]}
    assert (rows["docs"]["helps"], rows["docs"]["hurts"]) == (1, 0)
    assert (rows["code"]["helps"], rows["code"]["hurts"], rows["code"]["hurts on"]) == (0, 1, "toy (mlm, code/1M)")
    assert (rows["web"]["helps"], rows["web"]["undecided"], rows["web"]["hurts"]) == (0, 1, 0)
    text = "labels); it hurts in 1 of the 1 from code with 100% of the labels"
    assert (
        text in findings.answer
        and "hurts in 1 of 3 comparisons" in findings.answer
        and "effect, 0.1 of the 3 would help" in findings.answer
    )
    assert list(findings.figures) == ["domains", "gaps"], "three domains, one size and one share"
    drawn = json.dumps(findings.figures["domains"]().to_dict())
    assert "\\u22120.099" in drawn, "a decided cell is without parentheses"
    difference, *_ = findings.tables["Differences between texts"]
    assert (difference["text"], difference["against"]) == ("code/1M", "docs/1M")
    assert difference["value"] == pytest.approx(-0.199) and "Failure modes" not in findings.tables


def test_failure_modes_are_counted_against_the_references(runs):
    rows = Transfer().analyze(runs).tables["Failure modes"]
    modes = {(row["from"], row["share"]): row for row in rows}
    few, all_labels = modes["scratch", 0.01], modes["docs", 1.0]
    assert few["no better than the largest class"] == pytest.approx(1 / 3), (
        ".50 of the first seed is no more than the largest class"
    )
    assert (few["below TF-IDF"], few["overfitted"], few["score of TF-IDF"]) == (1, 0, pytest.approx(0.71))
    assert (all_labels["below TF-IDF"], all_labels["overfitted"]) == (pytest.approx(1 / 9), 1)
    assert all_labels["training loss"] == pytest.approx(0.1)


def test_errors_are_compared_with_those_of_the_references(tmp_path):
    for seed, error in enumerate((0.7, 0.9, 1.2)):
        lines = [f"seed={seed}", "study.task=toy", "study.kind=mlm", "study.share=1", "study.start=scratch"]
        linear = {"eval/reference/toy/majority/rmse": 1.4, "eval/reference/toy/tfidf/rmse": 1.1}
        write(tmp_path, [*lines, "data.metric=rmse"], rmse=error, loss=0.5, **linear)
    findings = Transfer().analyze(read_runs(tmp_path))
    (row,) = findings.tables["Failure modes"]
    assert row["score of TF-IDF"] == pytest.approx(-1.1) and row["no better than the largest class"] == 0
    assert row["below TF-IDF"] == pytest.approx(1 / 3)
    assert {row["metric"] for row in findings.tables["Scores"]} == {"-rmse"}


def test_fine_tunes_from_bases_that_a_further_seed_has_superseded_do_not_count(tmp_path):
    """The rate .01 was best at the first seed and .02 is over both: what started from .01 stays in the folder."""
    labels = ["study.kind=mlm", "study.start=docs/1M"]
    losses = {(0, 0.01): 1.0, (0, 0.02): 1.1, (1, 0.01): 1.5, (1, 0.02): 1.1}
    bases = {
        (seed, lr): write(tmp_path, [*labels, f"seed={seed}", f"optimizer.lr={lr}"], loss=loss)
        for (seed, lr), loss in losses.items()
    }
    for (seed, lr), score in {(0, 0.01): 0.5, (0, 0.02): 0.7, (1, 0.02): 0.8}.items():
        tuned = [*labels, f"seed={seed}", "study.task=toy", "study.share=1", "optimizer.lr=0.001"]
        write(tmp_path, [*tuned, f"init.path={bases[seed, lr]}/main"], accuracy=score, loss=0.5)
    runs = read_runs(tmp_path)
    assert [row["score"] for row in Transfer().analyze(runs).tables["Scores"]] == [pytest.approx(0.75)]
    first = [run for run in runs if run.summary["seed"] == 0]
    assert [row["score"] for row in Transfer().analyze(first).tables["Scores"]] == [pytest.approx(0.5)]


def test_one_seed_makes_no_claim(runs):
    findings = Transfer().analyze([run for run in runs if run.summary["seed"] == 0])
    assert {result.decision for result in findings.claims} == {
        "not tested"
    } and "no interval: 1 seed" in findings.answer
    assert any(caveat["code"] == "few_seeds" for caveat in findings.caveats)


def test_two_fine_tunes_of_a_seed_are_refused_when_read_and_in_the_plan(runs):
    tuned = next(run for run in runs if run.config["study"]["start"] == "docs/1M")
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay"):
        Transfer().analyze([*runs, copied(tuned, "twin", optimizer={"weight_decay": 0.1})])
    points = [
        PlannedPoint(Path(f"{decay}-{base}"), {**tuned.config, "optimizer": {"lr": 0.01, "weight_decay": decay},
                                               "init": {"path": base}}, 1e5, 1e6)
        for decay in (0, 0.1) for base in ("a", "b")
    ]  # fmt: skip
    assert Transfer().check_plan(points[:2]) == [], "one of two bases is superseded"
    with pytest.raises(ValueError, match=r"optimizer\.weight_decay"):
        Transfer().check_plan(points)


def test_two_seeds_have_an_interval_and_no_warning(runs):
    findings = Transfer().analyze([run for run in runs if run.summary["seed"] < 2])
    assert all(row["lo"] is not None for row in findings.tables["Pre-trained less from nothing"])
    assert not any(caveat["code"] == "few_seeds" for caveat in findings.caveats)


def test_the_headline_is_of_the_largest_text_with_the_most_labels(runs):
    few = [run for run in runs if run.config["study"]["start"] != "docs/2M" or run.config["study"]["share"] != "1"]
    assert "on toy by 0.1 [" in Transfer().analyze(few).answer


def test_pretraining_that_helps_is_decided_where_both_starts_are_tuned(tmp_path):
    """Five rates, of which the middle one is best: the score rises by 0.1 from pre-trained weights."""
    for seed in range(3):
        for start, score in (("scratch", 0.6), ("docs/1M", 0.7)):
            for place, lr in enumerate((0.001, 0.002, 0.004, 0.008, 0.016)):
                lines = [f"seed={seed}", "study.task=toy", "study.kind=mlm", "study.share=1", f"study.start={start}"]
                noise = 0.001 * seed * (1 if start == "scratch" else -1)
                write(
                    tmp_path, [*lines, f"optimizer.lr={lr}"], accuracy=score - 0.05 * abs(place - 2) + noise, loss=0.5
                )
    (result,) = Transfer().analyze(read_runs(tmp_path)).claims
    assert result.decision == "supported" and result.estimate.value == pytest.approx(0.098)
