"""The study `retrieval` on planted runs: what was forgotten, what remedies take back, and at equal new loss."""

import pytest
from studies.ablation_runs import copied
from studies.panels import claim, declared, draw_all, row, rows
from topics.retrieval.retrieval_runs import plant

from kleiber.records.catalog import read_runs
from kleiber_topics.retrieval.matched import curve, old_loss_at

LOSSES, SIZES = "Losses by arm and way of retrieval", "Change by retrieval on the old domain"
MATCHED = "Nearest neighbors minus another remedy at equal loss on the new domain"
OLD = "loss on the old domain"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    plant(folder)
    return read_runs(folder)


@pytest.mark.slow
def test_claims_are_decided_by_planted_differences(runs):
    findings = declared("retrieval").analyze(runs)
    forgets = claim(findings, "old", {"arm": "base"})
    assert forgets.decision == "supported" and forgets.estimate.value == pytest.approx(0.5)
    assert forgets.claim.equal is None, "one side started from the other"
    helped = claim(findings, "old", {"way": "alone"}, arm="none", way="knn")
    assert helped.decision == "supported" and helped.estimate.value == pytest.approx(-0.2)
    assert claim(findings, "old", {"way": "alone"}, arm="none", way="bm25").decision == "contradicted"
    costs = claim(findings, "new", arm="none", way="knn")
    assert costs.decision == "contradicted", "the datastore costs .04 there, and .01 is tolerated"
    replay = claim(findings, "old", {"arm": "none"}, arm=0.2)
    assert replay.estimate.value == pytest.approx(-0.4) and replay.claim.equal == "learning_rate"
    assert claim(findings, "old", {"arm": "none", "way": "knn"}, arm=0.2).decision == "contradicted"
    assert claim(findings, "old", {"way": "alone"}, arm=0.2, way="knn").decision == "supported"


@pytest.mark.slow
def test_tables_have_every_arm_way_and_size(runs):
    findings = declared("retrieval").analyze(runs)
    old = row(findings, LOSSES, arm="plain fine-tuning", retrieval="nearest neighbors", measure=OLD)
    assert old["value"] == pytest.approx(2.3 + 0.05 / 3) and len(rows(findings, LOSSES, measure=OLD)) == 9
    store = rows(findings, LOSSES, measure="datastore")
    assert {each["value"] for each in store} == {2e6}
    assert "the model without retrieval" not in {each["retrieval"] for each in store}
    changes = rows(findings, SIZES, arm="replay of 20%", retrieval="nearest neighbors")
    assert [each["value"] for each in changes] == pytest.approx([-0.05, -0.1]) and len(findings.tables[SIZES]) == 12


@pytest.mark.slow
def test_neighbors_are_compared_at_the_loss_on_the_new_domain_of_the_other_arm(runs):
    (matched,) = declared("retrieval").analyze(runs).tables[MATCHED]
    # Of 2.02 on the new domain, a quarter of the way from weight .2 to .5: 2.35 on the old one, where replay has 2.1.
    assert matched["arm"] == "replay of 20%" and matched["n"] == 3
    by_seed = declared("retrieval").view(runs).table.query("measure == 'matched'").set_index("seed")["value"]
    assert by_seed[0] == pytest.approx(2.35 - 2.1)
    assert matched["value"] == pytest.approx(by_seed.mean())


def test_the_curve_of_weights_begins_with_the_model_alone(runs):
    table = declared("retrieval").view(runs).table
    points = curve(table[(table["arm"] == "none") & (table["seed"] == 0)])
    assert points == [pytest.approx(point) for point in ((2.0, 2.5), (2.01, 2.4), (2.05, 2.2))]
    assert old_loss_at(points, 2.03) == pytest.approx(2.3) and old_loss_at(points, 2.0) == 2.5
    assert old_loss_at(points, 2.06) is None and old_loss_at(points, None) is None and old_loss_at([], 2.0) is None


@pytest.mark.slow
def test_ways_that_were_not_evaluated_are_not_claimed(tmp_path):
    plant(tmp_path, arms=("base", "none"), kept=("bm25/",))
    findings = declared("retrieval").analyze(read_runs(tmp_path))
    assert claim(findings, "old", {"way": "alone"}, arm="none").claim.of["way"] == "bm25"
    assert claim(findings, "old", arm="base").decision == "not tested"
    assert "sizes" not in findings.figures, "there are no nearest neighbors to draw"


@pytest.mark.slow
def test_figures_show_arms_ways_runs_and_weights(runs):
    charts = draw_all(declared("retrieval").analyze(runs))
    assert list(charts) == ["tradeoff", "sizes"]
    data = [each for values in charts["tradeoff"]["datasets"].values() for each in values]
    assert {each["form"] for each in data if "form" in each} == {"the model without retrieval", "nearest neighbors"}
    assert sorted(each["weight"] for each in data if "weight" in each and "end" not in each) == [0.0, 0.2, 0.5]
    assert sorted(each["weight"] for each in data if "end" in each) == [0.0, 0.5], "both ends of the path are named"


def test_two_runs_of_an_arm_and_seed_are_refused(runs):
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        declared("retrieval").analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])
