"""The transfer study pairs starts by seed, and counts pretraining in labels."""

import pytest

from kleiber.studies.transfer import Transfer

from .transfer_runs import paired_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return paired_runs(tmp_path_factory.mktemp("runs"))


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
