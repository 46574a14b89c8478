"""Ranks: which processes are ranks, where their output goes, and whose failure is reported."""

import os

import pytest

from kleiber.config.errors import ConfigError, RankTimeout
from kleiber.launch import ranks


@pytest.fixture(autouse=True)
def no_rank(monkeypatch):
    for name in (*ranks.RANK_VARIABLES, *ranks.LAUNCHERS, ranks.FAILURES):
        monkeypatch.delenv(name, raising=False)


def test_a_rank_is_a_process_that_torchrun_or_slurm_started(monkeypatch):
    assert not ranks.started_as_rank() and ranks.rank() == 0
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="RANK=3"):
        ranks.started_as_rank()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert ranks.started_as_rank() and ranks.rank() == 3


def test_the_exit_code_is_that_of_the_rank_that_failed_first(monkeypatch, tmp_path, capsys):
    assert ranks.first_failure(tmp_path, 2) is None
    monkeypatch.setenv(ranks.FAILURES, str(tmp_path))
    for rank, code, error in (("1", 3, RuntimeError("boom")), ("0", 1, RuntimeError("Connection closed by peer"))):
        monkeypatch.setenv("RANK", rank)
        ranks.record_failure(code, error)
    assert ranks.first_failure(tmp_path, 2) == (3, "rank 1: RuntimeError('boom')")
    assert "rank 1 " in capsys.readouterr().err


def test_ranks_that_did_not_answer_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(ranks.FAILURES, str(tmp_path))
    for rank, error in (("0", RankTimeout("waited")), ("2", RuntimeError("Connection closed by peer"))):
        monkeypatch.setenv("RANK", rank)
        ranks.record_failure(1, error)
    code, text = ranks.first_failure(tmp_path, 4)
    assert code == 1 and "rank 1, 3 " in text and "rank 1, 3 " in capsys.readouterr().err


def test_ranks_other_than_0_write_to_a_file_of_their_own(monkeypatch, tmp_path, capfd):
    written = []
    monkeypatch.setattr(ranks, "redirect_output", written.append)
    ranks.redirect_rank_output(tmp_path)
    monkeypatch.setenv("RANK", "2")
    ranks.redirect_rank_output(tmp_path)
    assert written == [tmp_path / "ranks" / "2.txt"] and written[0].parent.is_dir()


def test_cores_are_those_that_the_process_may_use():
    assert 1 <= ranks.cores() <= (os.cpu_count() or 1)
