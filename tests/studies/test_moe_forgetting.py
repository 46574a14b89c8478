"""The study of forgetting in mixtures finds known differences and shifts of load."""

from pathlib import Path

import pytest

from kleiber.launch.main import main as launch
from kleiber.records.catalog import read_runs
from kleiber.studies import moe_forgetting
from kleiber.studies.moe_forgetting import DENSE, FREE, FROZEN, MoEForgetting

from .comparisons import START
from .mixture_runs import write, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "moe_forgetting"
    write_study(home)
    return home


@pytest.fixture(scope="module")
def record(study):
    return MoEForgetting().compare(read_runs(study))


def test_arms_are_told_apart_by_model_and_adapter():
    moe = {"model": {"mlp": {"num_experts": 8}}}
    assert moe_forgetting.arm_of({"model": {"mlp": {"_target_": "x"}}}) == DENSE
    assert moe_forgetting.arm_of(moe) == FREE
    frozen = {"_target_": "kleiber.adapters.Freeze", "train": None, "freeze": ["router"]}
    assert moe_forgetting.arm_of({**moe, "adapter": frozen}) == FROZEN
    assert (
        moe_forgetting.arm_of({**moe, "adapter": {**frozen, "freeze": ["router", "experts"]}})
        == "moe + freeze freeze=router+experts"
    )
    replay = {"replay": {"_target_": "x", "fraction": 0.05}}
    assert moe_forgetting.arm_of({**moe, "retention": replay}) == "moe + replay fraction=0.05"


def test_every_arm_is_read_off_at_a_loss_that_all_of_them_reach(record):
    dense = START["code"] - 1.0  # at the largest rate, where it learns best
    assert record["matched_target"] == pytest.approx(1.02 * dense, abs=0.01)
    assert {method["method"]: method["reached"] for method in record["matched"]} == {DENSE: 3, FREE: 3, FROZEN: 3}


def test_the_questions_are_answered_with_intervals(record):
    by_code = {claim["code"]: claim for claim in record["claims"]}
    assert by_code["moe_less"]["holds"] is True and by_code["frozen_less"]["holds"] is True
    assert by_code["frozen_less"]["value"] == pytest.approx(0.05, abs=0.006)
    assert by_code["frozen_less"]["lo"] < 0.05 < by_code["frozen_less"]["hi"]
    assert abs(by_code["frozen_cost"]["value"]) < 0.005
    assert by_code["moe_less_at_best"]["value"] == pytest.approx(0.08, abs=0.006)
    assert by_code["frozen_load"]["value"] == pytest.approx(0.2) and by_code["frozen_load"]["holds"] is True
    assert "the mixture forgets less than a dense model" in moe_forgetting.headline(record)


def test_a_mixture_that_forgets_more_is_said_to(tmp_path):
    write_study(tmp_path / "s", less=-0.6)
    record = MoEForgetting().compare(read_runs(tmp_path / "s"))
    assert next(claim for claim in record["claims"] if claim["code"] == "moe_less")["holds"] is False
    assert "the mixture forgets more than a dense model" in moe_forgetting.headline(record)


def test_load_shifts_are_told_by_text_layer_and_arm(record):
    rows = {(row["arm"], row["text"], row["distance"], row["layer"]): row for row in record["loads"]}
    entry = rows[FROZEN, "docs", "before to after", 1]
    assert (
        entry["total variation"] == pytest.approx(0.121) and entry["lo"] < 0.121 < entry["hi"] and entry["seeds"] == 3
    )
    assert rows[FREE, "docs", "to the new text, after", 0]["total variation"] == pytest.approx(0.25)
    assert len(rows) == 2 * 2 * 4, "the dense model has no experts"


def test_shifts_of_a_task_with_a_slash_in_its_name_are_read():
    from kleiber.records.catalog import Run

    metrics = {"drift/builtin/docs/load_shift/1": 0.5, "drift/weights": 1.0, "drift/builtin/docs/kl": 0.1}
    run = Run(Path(), "finished", {"stages": [{"metrics": metrics}]})
    assert moe_forgetting.shifts(run) == {("load_shift", "builtin/docs", 1): 0.5}


def test_a_part_of_the_runs_says_what_it_cannot(tmp_path):
    write_study(tmp_path / "s", seeds=1, arms=(DENSE,))
    findings = MoEForgetting().analyze(read_runs(tmp_path / "s"))
    assert "cannot be compared yet: there is dense" in findings.headline
    write_study(tmp_path / "t", seeds=1)
    findings = MoEForgetting().analyze(read_runs(tmp_path / "t"))
    assert "no interval without replicates" in findings.headline
    assert {verdict["holds"] for verdict in findings.verdicts if "holds" in verdict} == {None}


def test_what_weakens_the_comparison_is_said(record, tmp_path):
    assert "edge" in {complaint["code"] for complaint in record["complaints"]}
    home = tmp_path / "s"
    write_study(home, seeds=2)
    for path in home.glob("moe-0.003*/summary.json"):
        path.unlink()
    for path in home.glob("moe-0.01*/summary.json"):
        path.unlink()
    for path in home.glob("moe-0.03*"):  # and one more rate, which learns as much
        write(home / f"{path.name}-again", FREE, 0.04, int(path.name[-1]), params=60_000)
    codes = {
        complaint["code"]: complaint["text"] for complaint in MoEForgetting().compare(read_runs(home))["complaints"]
    }
    assert "at most what is told" in codes["bound"] and codes["bound"].startswith("moe learns more")
    assert "50,000 active parameters and the dense model 40,000" in codes["unequal"]


@pytest.mark.slow
def test_it_trains_bases_and_arms_small_and_continues(tmp_path, cache_dir, capsys):
    small = ["trainer=smoke", "launcher=basic", "logger=csv", "trainer.threads=1", "eval.tokens=2048"]
    plan = ["eval.watch_tokens=2048", "batch.tokens=512", "design.seeds=1", "design.lrs=[0.01]"]
    command = ["study=moe_forgetting", *small, *plan, f"root={tmp_path}"]
    assert launch(command) == 0, capsys.readouterr().err
    runs = read_runs(tmp_path / "moe_forgetting")
    assert len(runs) == 5 and {run.status for run in runs} == {"finished"}
    arms = {method["method"] for method in MoEForgetting().compare(runs)["matched"]}
    assert arms == {DENSE, FREE, FROZEN} and MoEForgetting().compare(runs)["loads"]
    capsys.readouterr()
    assert launch(command) == 0
    assert "3 of 3 cells are finished already" in capsys.readouterr().out
