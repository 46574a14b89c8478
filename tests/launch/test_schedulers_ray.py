"""Sweeps in Ray; a real one runs only where Ray is installed."""

import json
import os
import signal

import pytest

from kleiber.config.errors import ConfigError
from kleiber.launch.schedulers import Ray, run_in_ray


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"kleiber\[ray\]"):
        Ray().run([])


def test_a_cancelled_task_gets_sigterm():
    signals, before = [], signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    try:
        assert run_in_ray(lambda: os.kill(os.getpid(), signal.SIGINT) or 5) == 5
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]


@pytest.mark.slow
@pytest.mark.process
def test_cells_in_ray_have_the_results_of_a_single_run(process, launch, tmp_path):
    pytest.importorskip("ray", reason="needs kleiber[ray]")
    sweep = process("-m", "name=s", "seed=0,1", "model.num_heads=2,64", "launcher=ray", root="ray")
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 4, out + err
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("ray/s/*/summary.json")]
    assert sorted(summary["status"] for summary in summaries) == ["failed", "failed", "finished", "finished"]
    alone = json.loads((launch("optimizer.lr=0.01", "seed=1", root="alone") / "summary.json").read_text())
    (same,) = [summary for summary in summaries if summary["config_hash"] == alone["config_hash"]]
    assert same["stages"][0]["metrics"] == alone["stages"][0]["metrics"]
