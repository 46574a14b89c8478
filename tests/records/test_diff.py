"""The differences of two runs: every kind is named with both values, and equal runs differ in nothing."""

import json

import pytest
from fake_run import fake_run

from kleiber.config.errors import ConfigError
from kleiber.launch.cli import main
from kleiber.records.diff import diff_lines, diff_runs, open_run
from kleiber.records.folder import config_hash

ROWS = [
    {"step": 10, "train/loss": 3.0, "train/lr": 0.1, "speed/seconds": 1.0},
    {"step": 20, "train/loss": 2.5, "train/lr": 0.1, "speed/seconds": 2.0},
    {"step": 20, "val/docs/loss": 2.6},
]


def write(folder, *, loss=2.6, rows=ROWS, seed=0, threads=None, **summary):
    config = {
        "seed": seed,
        "model": {"depth": 2},
        "trainer": {"threads": threads, "precision": 32},
        "name": folder.name,
    }
    stage = {"metrics": {"val/docs/loss": loss, "eval/latency/random/prefill": loss}}
    summary = {"inputs": {"data/docs": "aa"}, "versions": {"torch": "2.10"}, "commit": "abc", "dirty": False, **summary}
    return fake_run(folder, [stage], config=config, rows=rows, seed=seed, **summary)


def diff(tmp_path, **changes):
    return diff_runs(*(open_run(path) for path in (write(tmp_path / "a"), write(tmp_path / "b", **changes))))


def test_equal_runs_differ_in_nothing_but_their_names(tmp_path):
    faster = [{**row, "speed/seconds": 0.5} for row in ROWS]
    result = diff(tmp_path, rows=faster)
    assert (result.config, result.data, result.code, result.environment, result.first) == ({}, {}, {}, {}, None)
    assert result.settings == {"name": ("a", "b")} and result.steps == 2
    assert result.metrics == {"val/docs/loss": (2.6, 2.6)}


def test_each_kind_of_difference_has_both_values(tmp_path):
    result = diff(
        tmp_path, seed=1, threads=2, inputs={"data/docs": "bb"}, versions={"torch": "2.11", "numpy": "2"}, commit="def",
        dirty=True, loss=2.7,
    )  # fmt: skip
    assert result.config == {"seed": (0, 1)}
    assert result.settings == {"trainer.threads": (None, 2), "name": ("a", "b")}
    assert result.data == {"data/docs": ("aa", "bb")}
    assert result.code == {"commit": ("abc", "def"), "dirty": (False, True)}
    assert result.environment == {"versions.torch": ("2.10", "2.11"), "versions.numpy": (None, "2")}
    assert result.metrics == {"val/docs/loss": (2.6, 2.7)}


@pytest.mark.parametrize(
    ("policies", "changes"), [(("tell", "skip"), True), (("tell", "tell"), False), (("tell", "rollback"), True)]
)
def test_what_a_run_does_at_a_spike_can_change_its_result(tmp_path, policies, changes):
    runs = []
    for name, policy, window in zip("ab", policies, (50, 60), strict=True):
        stability = {"policy": policy, "window": window}
        config = {"callbacks": {"stability": stability, "checkpoints": {"every": window, "keep": window}}}
        runs.append(open_run(fake_run(tmp_path / name, config=config)))
    result = diff_runs(*runs)
    windows = {"callbacks.stability.window": (50, 60)}
    every = {"callbacks.checkpoints.every": (50, 60)} if "rollback" in policies else {}
    assert result.config == ({"callbacks.stability.policy": policies, **windows, **every} if changes else {})
    assert "callbacks.checkpoints.keep" in result.settings and changes != (windows.items() <= result.settings.items())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"callbacks": None}, {"callbacks": {}}),
        ({"callbacks": None}, {"callbacks": {"lr": {"every": 1}}}),
        ({"init": None}, {"init": {"_target_": "kleiber.runs.Scratch"}}),
        ({"adapter": None}, {}),
        ({"init": {"path": "/r/a/run-12345678"}}, {"init": {"path": "/r/b/run-12345678"}}),
    ],
)
def test_runs_of_one_identity_differ_in_no_key_that_changes_the_result(tmp_path, first, second):
    configs = [{"root": "/r", "name": name, **keys} for name, keys in (("a", first), ("b", second))]
    assert config_hash(configs[0]) == config_hash(configs[1])
    runs = [open_run(fake_run(tmp_path / config["name"], config=config)) for config in configs]
    result = diff_runs(*runs)
    assert result.config == {} and result.settings["name"] == ("a", "b")


def test_the_first_step_that_differs_is_found(tmp_path):
    changed = [ROWS[0], {**ROWS[1], "train/lr": 0.2, "train/loss": 2.0}, {"step": 20, "val/docs/loss": 9.0}]
    first = diff(tmp_path, rows=changed).first
    assert (first.stage, first.step) == ("main", 20)
    assert first.values == {"train/loss": (2.5, 2.0), "train/lr": (0.1, 0.2), "val/docs/loss": (2.6, 9.0)}


def test_a_value_that_is_not_a_number_equals_itself_and_missing_steps_are_not_compared(tmp_path):
    rows = [{"step": 10, "train/loss": float("nan")}]
    both = [open_run(write(tmp_path / name, rows=rows)) for name in "ab"]
    assert diff_runs(*both).first is None
    assert diff_runs(both[0], open_run(write(tmp_path / "c", rows=[{"step": 5, "train/loss": 1.0}]))).steps == 0


def test_the_lines_contain_every_difference(tmp_path):
    text = "\n".join(diff_lines(diff(tmp_path, seed=1, loss=2.7, rows=[{"step": 10, "train/loss": 4.0}])))
    for part in ("seed", "step 10", "+1", "2.7", "+0.1"):
        assert part in text


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    runs = [str(write(tmp_path / "a")), str(write(tmp_path / "b", seed=3))]
    assert main(["diff", *runs, "--json", str(tmp_path / "diff.json")]) == 0
    written = json.loads((tmp_path / "diff.json").read_text())
    assert (written["schema"], written["folders"]) == ("kleiber.diff/1", runs)
    assert written["config"] == {"seed": [0, 3]} and "seed" in capsys.readouterr().out


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        open_run(tmp_path)
