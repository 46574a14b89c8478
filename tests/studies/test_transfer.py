"""What pre-training gives: planned in rounds, tuned, paired with the same model from nothing, counted in labels."""

import math

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.transfer import Transfer

from .transfer_runs import write


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """From nothing .5 + .1 per decade of labels and of the seed; a base is worth a decade, but never above .75."""
    home = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for share in (0.01, 0.1, 1):
            lines = [
                f"seed={seed}",
                "study.task=toy",
                "study.kind=mlm",
                f"study.share={share:g}",
                f"data.share={share}",
            ]
            score = 0.7 + 0.1 * math.log10(share) + 0.02 * seed
            write(home, [*lines, "study.start=scratch", "optimizer.lr=0.005"], accuracy=score, loss=0.5)
            write(home, [*lines, "study.start=docs/1M", "optimizer.lr=0.01"], accuracy=score + 0.1, loss=0.4)
            write(home, [*lines, "study.start=docs/2M", "optimizer.lr=0.01"], accuracy=score - 0.01 * seed, loss=0.4)
        lines = [f"seed={seed}", "study.task=toy", "study.kind=hf", "study.start=docs/1M", "study.share=1"]
        write(home, [*lines, "optimizer.lr=0.001"], accuracy=0.79 + 0.02 * seed, loss=0.4)
    other = ["seed=0", "study.task=toy", "study.kind=mlm", "study.start=scratch", "study.share=1", "optimizer.lr=0.002"]
    write(home, other, accuracy=0.99, loss=0.1)  # tried at one seed, and no part of the comparison
    return read_runs(home)


def test_gaps_are_paired_and_data_is_counted(runs):
    found = Transfer(against={"mlm": "hf"}).analyse(runs)
    told = {one["code"]: one for one in found.verdicts}
    helps = told["mlm_docs/1M_scratch_toy_1"]
    assert helps["holds"] is True and helps["value"] == pytest.approx(0.1) and helps["hi"] - helps["lo"] < 1e-6
    weak = told["mlm_docs/2M_scratch_toy_1"]
    assert weak["holds"] is None and weak["lo"] < 0 < weak["hi"] and weak["text"].startswith("undecided")
    assert told["mlm_docs/1M_hf_toy_1"]["value"] == pytest.approx(0.01)
    assert "censored" in told and "toy +0.1000" in found.headline
    data = {(one["start"], one["share"]): one for one in found.tables["Effective data transferred"]}
    assert data["docs/1M", 0.01]["times the labels"] == "10" and data["docs/1M", 0.01]["labelled tokens"] == 10
    assert data["docs/1M", 0.1]["transferred tokens"] == "900"
    assert data["docs/1M", 1.0]["times the labels"] == "more than all labels"
    assert [one["lr"] for one in found.tables["Scores"] if one["start"] == "scratch"] == [0.005] * 3
    with pytest.raises(ValueError, match="no finished run of any task"):
        Transfer().analyse([])


def test_one_seed_makes_no_claim(runs):
    found = Transfer().analyse([run for run in runs if run.summary["seed"] == 0])
    assert not any(one["code"].startswith("mlm") for one in found.verdicts) and "no interval: 1 seed" in found.headline
    assert any(one["code"] == "few_seeds" for one in found.verdicts)
