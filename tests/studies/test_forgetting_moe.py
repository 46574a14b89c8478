"""The study of forgetting in mixtures finds known differences and shifts of load."""

import pytest

from kleiber.launch.main import main as launch
from kleiber.records.catalog import read_runs
from kleiber.studies.compare.rows import DENSE, FROZEN, MIXTURE
from kleiber.studies.forgetting import Forgetting, headline

from .comparisons import START
from .mixture_runs import OPTIONS, write, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "moe_forgetting"
    write_study(home)
    return home


@pytest.fixture(scope="module")
def record(study):
    return Forgetting(**OPTIONS).compare(read_runs(study))


@pytest.mark.slow
def test_every_arm_is_read_off_at_a_loss_that_all_of_them_reach(record):
    dense = START["code"] - 1.0  # at the largest rate, where it learns best
    assert record["matched"][0]["at"] == pytest.approx(1.02 * dense, abs=0.01)
    assert {method["method"]: method["reached"] for method in record["matched"]} == {DENSE: 3, MIXTURE: 3, FROZEN: 3}


def test_the_questions_are_answered_with_intervals(record):
    mixture, frozen, at_best, cost = record["between_arms"]
    assert [mixture.decision, frozen.decision] == ["supported"] * 2 and mixture.claim.equal == "target_loss"
    assert frozen.estimate.value == pytest.approx(-0.05, abs=0.006) and frozen.estimate.lo < -0.05 < frozen.estimate.hi
    assert abs(cost.estimate.value) < 0.005 and at_best.estimate.value == pytest.approx(-0.08, abs=0.006)
    assert {at_best.decision, cost.decision} == {"not tested"}, "three rates are too few for best rates"
    load = record["results"][-1]
    assert load.claim.measure == "load_shift" and load.estimate.value == pytest.approx(-0.2)
    assert load.decision == "supported"


@pytest.mark.slow
def test_a_mixture_that_forgets_more_is_said_to(tmp_path):
    write_study(tmp_path / "s", less=-0.6)
    record = Forgetting(**OPTIONS).compare(read_runs(tmp_path / "s"))
    assert record["between_arms"][0].decision == "contradicted" and "contradicted" in headline(record)


@pytest.mark.slow
def test_a_part_of_the_runs_says_what_it_cannot(tmp_path):
    write_study(tmp_path / "s", seeds=1, arms=(DENSE,))
    findings = Forgetting(**OPTIONS).analyze(read_runs(tmp_path / "s"))
    assert "nothing can be compared: the arms are dense" in findings.answer
    write_study(tmp_path / "t", seeds=1)
    findings = Forgetting(**OPTIONS).analyze(read_runs(tmp_path / "t"))
    assert "no interval: 1 seed" in findings.answer
    assert {result.decision for result in findings.claims} == {"not tested"}


def test_what_weakens_the_comparison_is_said(record, tmp_path):
    home = tmp_path / "s"
    write_study(home, seeds=2)
    for path in home.glob("moe-0.003*/summary.json"):
        path.unlink()
    for path in home.glob("moe-0.01*/summary.json"):
        path.unlink()
    for path in home.glob("moe-0.03*"):  # and one more rate, which learns as much
        write(home / f"{path.name}-again", MIXTURE, 0.04, int(path.name[-1]), params=60_000)
    codes = {
        complaint["code"]: complaint["text"]
        for complaint in Forgetting(**OPTIONS).compare(read_runs(home))["complaints"]
    }
    assert codes["bound"].startswith("mixture of experts learns more")
    assert "50,000 active parameters and dense 40,000" in codes["unequal"]


@pytest.mark.slow
def test_it_trains_bases_and_arms_small_and_continues(tmp_path, cache_dir, capsys):
    small = ["trainer=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=2048"]
    plan = ["eval.watch_tokens=2048", "batch.tokens=512", "design.seeds=1", "design.lrs=[0.01]"]
    command = ["study=moe_forgetting", *small, *plan, f"root={tmp_path}"]
    assert launch(command) == 3, "one seed leaves every claim untested"
    runs = read_runs(tmp_path / "moe_forgetting")
    assert len(runs) == 5 and {run.status for run in runs} == {"finished"}
    arms = {method["method"] for method in Forgetting(**OPTIONS).compare(runs)["matched"]}
    assert arms == {DENSE, MIXTURE, FROZEN} and Forgetting(**OPTIONS).compare(runs)["loads"]
    capsys.readouterr()
    assert launch(command) == 3
    assert "3 of 3 cells are finished already" in capsys.readouterr().out
