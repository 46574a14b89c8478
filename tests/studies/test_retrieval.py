"""The study of retrieval on planted runs: what was forgotten, what each remedy takes back, and at what price."""

import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.retrieval import Retrieval
from studies.planted_retrieval import plant


@pytest.fixture
def findings(tmp_path):
    plant(tmp_path)
    return Retrieval().analyze(read_runs(tmp_path))


def test_claims_are_decided_by_planted_differences(findings):
    verdicts = {verdict["code"]: verdict for verdict in findings.verdicts}
    assert verdicts["forgets"]["holds"] and verdicts["forgets"]["value"] == pytest.approx(0.5)
    assert verdicts["knn_old"]["holds"] and verdicts["knn_old"]["value"] == pytest.approx(-0.2)
    assert verdicts["knn_new"]["holds"] is False, "the datastore costs .04 there, and .01 is tolerated"
    assert verdicts["bm25_old"]["holds"] is False and verdicts["bm25_old"]["value"] == pytest.approx(0.05)
    assert verdicts["old_replay_fraction0.2"]["value"] == pytest.approx(-0.4)
    assert verdicts["knn_against_replay_fraction0.2"]["holds"] is False
    assert verdicts["knn_with_replay_fraction0.2"]["holds"]


def test_a_tolerance_of_0_asks_nothing_about_the_new_domain(tmp_path):
    plant(tmp_path)
    codes = {verdict["code"] for verdict in Retrieval(tolerance=0.0).analyze(read_runs(tmp_path)).verdicts}
    assert "knn_new" not in codes and "knn_old" in codes
    wide = {v["code"]: v for v in Retrieval(tolerance=0.1).analyze(read_runs(tmp_path)).verdicts}
    assert wide["knn_new"]["holds"]


def test_the_headline_and_the_tables_have_the_means(findings):
    assert "costs the old domain +0.500" in findings.answer
    assert "replay of 20 % changes the loss on the old domain by -0.400" in findings.answer
    assert len(findings.tables["Losses by arm and way of retrieval"]) == 9
    assert len(findings.tables["Change by retrieval on the old domain"]) == 12
    assert len(findings.tables["At equal loss on the new domain"]) == 1
    assert list(findings.figures) == ["tradeoff", "sizes"]


def test_runs_that_were_not_evaluated_are_refused(tmp_path):
    plant(tmp_path)
    with pytest.raises(ValueError, match=r"before fine-tuning and plain fine-tuning was evaluated by retrieval on law"):
        Retrieval(old="law", new="fiction").analyze(read_runs(tmp_path))


def test_the_headline_is_of_the_ways_that_were_evaluated(tmp_path):
    plant(tmp_path / "bm25", arms=("base", "none"), kept=("bm25/",))
    headline = Retrieval().analyze(read_runs(tmp_path / "bm25")).answer
    assert "plain fine-tuning with BM25 text in front changes the loss on the old domain by +0.050" in headline
    plant(tmp_path / "alone", arms=("base", "none"), kept=())
    assert Retrieval().analyze(read_runs(tmp_path / "alone")).answer.endswith("nats per token.")
