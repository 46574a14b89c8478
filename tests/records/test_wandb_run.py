"""When W&B is used online: the key, the server, and what is printed."""

import time

import pytest

from kleiber.records import wandb_run


def test_auto_without_a_key_is_offline_at_once_and_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "WANDB_API_KEY" in (wandb_run.unreachable() or "")
    assert wandb_run.choose_online("auto", tmp_path) is False
    assert capsys.readouterr().err == ""
    assert wandb_run.choose_online("online", tmp_path) is False
    assert "WANDB_API_KEY" in capsys.readouterr().err


def test_a_server_that_does_not_answer_costs_two_seconds_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")
    began = time.monotonic()
    assert wandb_run.choose_online("auto", tmp_path) is False
    assert time.monotonic() - began < 2
    err = capsys.readouterr().err
    assert "localhost" in err and err.count("\n") == 1


@pytest.mark.parametrize(("mode", "online"), [("auto", True), ("online", True), ("offline", False)])
def test_with_key_and_server_the_mode_decides(tmp_path, monkeypatch, mode, online):
    monkeypatch.setattr(wandb_run, "unreachable", lambda: None)
    assert wandb_run.choose_online(mode, tmp_path) is online


@pytest.mark.parametrize(
    ("config", "node"),
    [({}, {}), ({"logger": {"csv": {}}}, {}), ({"logger": {"wandb": {"project": "lab"}}}, {"project": "lab"})],
)  # fmt: skip
def test_the_settings_of_a_run_are_found_where_it_has_them(config, node):
    assert wandb_run.node_of(config) == node
