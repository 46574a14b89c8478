"""The transfer study pairs starts by seed, and counts pretraining in labels."""

import json

import pytest

from kleiber.studies.transfer import Transfer

from .transfer_runs import paired_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return paired_runs(tmp_path_factory.mktemp("runs"))


def test_gaps_are_paired_and_data_is_counted(runs):
    findings = Transfer(against={"mlm": "hf"}).analyze(runs)
    by_code = {row["code"]: row for row in findings.verdicts}
    helps = by_code["mlm_docs/1M_scratch_toy_1"]
    assert helps["holds"] is True and helps["value"] == pytest.approx(0.1) and helps["hi"] - helps["lo"] < 1e-6
    weak = by_code["mlm_docs/2M_scratch_toy_1"]
    assert weak["holds"] is None and weak["lo"] < 0 < weak["hi"] and "undecided" in weak["text"]
    assert by_code["mlm_docs/1M_hf_toy_1"]["value"] == pytest.approx(0.01)
    assert "censored" in by_code and "toy +0.1000" in findings.headline
    data = {(row["start"], row["share"]): row for row in findings.tables["Effective data transferred"]}
    assert data["docs/1M", 0.01]["times the labels"] == "10" and data["docs/1M", 0.01]["labelled tokens"] == 10
    assert data["docs/1M", 0.1]["transferred tokens"] == "900"
    assert data["docs/1M", 1.0]["times the labels"] == "more than all labels"
    assert [row["lr"] for row in findings.tables["Scores"] if row["start"] == "scratch"] == [0.005] * 3
    with pytest.raises(ValueError, match="no finished run of any task"):
        Transfer().analyze([])


def test_one_seed_makes_no_claim(runs):
    findings = Transfer().analyze([run for run in runs if run.summary["seed"] == 0])
    assert (
        not any(verdict["code"].startswith("mlm") for verdict in findings.verdicts)
        and "no interval: 1 seed" in findings.headline
    )
    assert any(verdict["code"] == "few_seeds" for verdict in findings.verdicts)


def test_every_figure_is_drawn(runs):
    pytest.importorskip("altair")
    built = Transfer().analyze(runs).figures
    assert list(built) == ["gaps", "labels", "transferred", "texts"]
    for name, make in built.items():
        assert "toy" in json.dumps(make().to_dict()), name
