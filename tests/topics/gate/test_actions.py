"""What kleiber gate does: queued proposals, recipes of kleiber, and what it prints."""

import json
import threading

import pytest
from topics.gate.streams import begin, install, propose, rows

from kleiber.launch.cli import main
from kleiber_topics.gate import actions, engine


def test_two_proposals_at_a_time_are_queued(tmp_path, monkeypatch):
    """Both threads decide; the rows of one proposal are never between those of the other."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "stream")
    names = ("first", "second")
    threads = [
        threading.Thread(target=propose, args=(tmp_path / "stream", name, f"--gain=-0.05 --as={name}"))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kinds = [row["kind"] for row in rows(tmp_path / "stream") if row["kind"] in ("proposal", "decision")]
    assert kinds == ["proposal", "decision"] * 2


@pytest.mark.slow
def test_status_has_the_budget_and_every_decision(tmp_path, monkeypatch, capsys):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "stream", "--error", "stream", "--level", "0.95")
    propose(tmp_path / "stream", "better", "--gain=0.05 --as=better")
    capsys.readouterr()
    assert main(["gate", "status", str(tmp_path / "stream"), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["keep"], status["error"], status["open"], status["plain"]["name"]) == (1, "stream", None, "better")
    assert status["error_spent"] + status["error_left"] == pytest.approx(0.05)
    assert [row["decision"] for row in status["decisions"]] == ["keep"]


def test_a_recipe_of_kleiber_is_trained_with_its_overrides(tmp_path, monkeypatch):
    trained, _ = [], install(monkeypatch)

    def run(overrides, seed, *rest):
        trained.append([*overrides])
        return engine.Outcome(3.0 + 0.001 * (seed % 97), 1.0)

    monkeypatch.setattr(engine, "run_kleiber", run)
    monkeypatch.chdir(tmp_path)
    assert main(["gate", "init", "stream", "--overrides", "model=gpt optimizer.lr=0.01", "--measure", "loss"]) == 0
    change = ["gate", "propose", "stream", "--name", "rate", "--overrides", "optimizer.lr=0.02"]
    assert main(change) == 5
    assert trained[0] == ["model=gpt", "optimizer.lr=0.01"]
    assert trained[-1] == ["model=gpt", "optimizer.lr=0.02"]
    assert main([*change[:-1], "data=other"]) == 2


def test_a_recipe_of_kleiber_is_confirmed_at_another_size(tmp_path, monkeypatch):
    trained, _ = [], install(monkeypatch)

    def run(overrides, seed, *rest):
        trained.append([*overrides])
        gain = 0.5 if "optimizer.lr=0.02" in overrides else 0.0
        return engine.Outcome(3.0 - gain + 0.001 * (seed % 97), 1.0)

    monkeypatch.setattr(engine, "run_kleiber", run)
    monkeypatch.chdir(tmp_path)
    begin_size = ["gate", "init", "stream", "--overrides", "model=gpt model.depth=2", "--confirm-at", "model.depth=4"]
    assert main(begin_size) == 0
    assert main(["gate", "propose", "stream", "--name", "rate", "--overrides", "optimizer.lr=0.02"]) == 0
    assert trained[-1] == ["model=gpt", "optimizer.lr=0.02", "model.depth=4"]
    assert rows(tmp_path / "stream", "decision")[0]["size"]["at"] == {"model.depth": "4"}


@pytest.mark.parametrize(
    ("command", "overrides", "options", "key"),
    [
        (None, None, {}, "--command"),
        ("python a.py", "seed=1", {"metric": "loss"}, "--overrides"),
        ("python a.py", None, {}, "--metric"),
        (None, "seed=1", {"metric": "loss"}, "--metric"),
        ("python a.py", None, {"metric": "loss", "measure": "loss"}, "--measure"),
        ("python a.py", None, {"metric": "loss", "cwd": "nowhere"}, "--cwd"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name_and_begin_nothing(tmp_path, command, overrides, options, key):
    with pytest.raises(ValueError, match=key):
        actions.begin(tmp_path / "stream", command, overrides, options)
    assert not (tmp_path / "stream").exists()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_runs_of_kleiber_are_trained_and_read(tmp_path, monkeypatch):
    """The pilot, the screen and the tests of real runs of a few seconds: a diverging rate is discarded."""
    monkeypatch.chdir(tmp_path)
    recipe = "trainer=smoke logger=csv data.max_bytes=300K"
    assert main(["gate", "init", "stream", "--overrides", recipe, "--horizon", "5"]) == 0
    assert main(["gate", "propose", "stream", "--name", "no rate", "--overrides", "optimizer.lr=1e-9"]) == 5
    runs = rows(tmp_path / "stream", "run")
    assert len({row["value"] for row in runs}) == len(runs)
