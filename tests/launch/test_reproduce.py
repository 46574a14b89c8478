"""Reproductions: equal, within the noise of seeds, or different and where; which runs are trained again, and how."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from recorded_run import record
from scipy import stats
from small_run import TINY

from kleiber.config.errors import ConfigError
from kleiber.launch import reproduce
from kleiber.launch.cli import main
from kleiber.launch.local_pool import Basic, Process
from kleiber.launch.main import main as train
from kleiber.launch.reproduce import Verdict, compare_again, seed_noise, weights_hashes
from kleiber.records.catalog import read_run, read_runs
from kleiber.records.evaluations import add_scores
from kleiber.types.score import Score


@pytest.mark.parametrize(
    ("changes", "noise", "verdict"),
    [
        ({"weights": "a"}, {}, Verdict.EQUAL),
        ({"weights": "a", "loss": 9.0}, {}, Verdict.EQUAL),  # the evaluation alone differs
        ({"weights": "b", "loss": 2.01}, {}, Verdict.WITHIN_NOISE),  # half a percent
        ({"weights": "b", "loss": 2.1}, {}, Verdict.DIFFERENT),
        ({"weights": "b", "loss": 2.1}, {"val/docs/loss": 0.2}, Verdict.WITHIN_NOISE),
        ({"weights": "b", "loss": 2.1}, {"val/docs/loss": 0.05}, Verdict.DIFFERENT),
        ({"weights": "b", "loss": float("nan")}, {}, Verdict.DIFFERENT),
        ({"status": "failed"}, {}, Verdict.FAILED),
    ],
)
def test_the_verdict_follows_from_weights_and_losses(tmp_path, changes, noise, verdict):
    was, now = record(tmp_path / "a", weights="a"), record(tmp_path / "b", **changes)
    assert compare_again(was, now, noise).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({}, Verdict.EQUAL), ({"rows": [(10, 3.1)]}, Verdict.WITHIN_NOISE), ({"loss": 2.01}, Verdict.WITHIN_NOISE)],
)
def test_without_recorded_weights_all_values_have_to_be_equal(tmp_path, changes, verdict):
    was, now = record(tmp_path / "a"), record(tmp_path / "b", weights="b", **changes)
    assert compare_again(was, now, {}).verdict == verdict


def test_scores_that_were_added_after_training_are_no_difference(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name)
    add_scores(tmp_path / "a", "main", {"eval/perplexity/code/loss": Score(2.0).to_json()})
    assert compare_again(read_run(tmp_path / "a"), read_run(tmp_path / "b"), {}).verdict == Verdict.EQUAL
    add_scores(tmp_path / "b", "main", {"eval/perplexity/code/loss": Score(3.0).to_json()})
    assert compare_again(read_run(tmp_path / "a"), read_run(tmp_path / "b"), {}).verdict != Verdict.EQUAL


def test_the_noise_is_that_of_two_seeds_pooled_over_configs(tmp_path):
    for number, (depth, seed, loss) in enumerate([(1, 0, 1.0), (1, 1, 1.2), (2, 0, 3.0), (2, 1, 3.4), (3, 0, 9.0)]):
        record(tmp_path / str(number), loss, depth=depth, seed=seed)
    variance = (0.02 + 0.08) / 2
    expected = stats.t.ppf(0.975, 2) * (2 * variance) ** 0.5
    assert seed_noise(read_runs(tmp_path)) == {"val/docs/loss": pytest.approx(expected)}
    assert seed_noise(read_runs(tmp_path)[3:4]) == {}


def test_the_worst_verdict_decides_about_the_exit_code():
    results = [reproduce.Reproduction("a", verdict) for verdict in Verdict]
    assert [reproduce.worst(results[:n]) for n in (1, 2, 3, 4)] == [0, 0, 5, 1]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The folder of a run of 20 steps; cells are run in this process."""
    monkeypatch.setattr(Process, "run", lambda _self, cells: Basic().run(cells))
    assert train([*TINY, f"root={tmp_path}", "name=first", "trainer.max_steps=4"]) == 0
    return next(path.parent for path in (tmp_path / "first").glob("*/config.yaml"))


def written(out: Path) -> dict:
    return json.loads((out / reproduce.FILE).read_text())


@pytest.mark.slow
def test_a_run_is_reproduced_bit_for_bit_and_a_changed_record_is_found(trained, tmp_path, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert main(["reproduce", str(trained)]) == 0
    out = tmp_path / "first-reproduced"
    assert written(out)["runs"][0]["verdict"] == "equal" and trained.name in capsys.readouterr().out
    again = read_run(out / trained.name)
    assert weights_hashes(again) == weights_hashes(read_run(trained)) != {}
    assert (again.config["logger"], again.config["trainer"]["threads"]) == ({}, 1)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before

    config = yaml.safe_load((trained / "config.yaml").read_text())
    (trained / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 7}))
    assert main(["reproduce", str(trained), "--out", str(out)]) == 5
    entry = written(out)["runs"][0]
    assert entry["verdict"] == "different" and entry["diff"]["first"]["values"]
    assert (out / f"{trained.name}.1").is_dir()

    (trained / "config.yaml").write_text(yaml.safe_dump({**config, "model": {"_target_": "os.system"}}))
    assert main(["reproduce", str(trained)]) == 2
    assert "os.system" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fine_tune_of_a_moved_study_is_reproduced_and_the_report_of_refused_runs_is_written(trained, tmp_path):
    start = [f"root={tmp_path}", "name=first", "init=checkpoint", f"init.path={trained}/main", "trainer.max_steps=2"]
    assert train([*TINY, *start]) == 0
    name = next(run.name for run in read_runs(tmp_path / "first") if run.name != trained.name)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert main(["reproduce", str(tmp_path / "moved" / name)]) == 0
    assert written(tmp_path / "moved-reproduced")["runs"][0]["verdict"] == "equal"

    shutil.rmtree(tmp_path / "moved" / trained.name)
    out = tmp_path / "new" / "refused"
    assert main(["reproduce", str(tmp_path / "moved" / name), "--out", str(out)]) == 1
    assert written(out)["runs"][0]["verdict"] == "failed"


def test_a_folder_without_finished_runs_is_refused(tmp_path):
    record(tmp_path / "a", status="failed")
    with pytest.raises(ConfigError, match="no finished run"):
        reproduce.reproduce(tmp_path, None, None)
