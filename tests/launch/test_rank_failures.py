"""Whose failure is reported when ranks fail, and who was killed by a signal."""

import signal

import pytest

from kleiber.config.errors import Interrupted, Preempted, RankLost, RankTimeout
from kleiber.launch.rank_failures import FAILURES, first_failure, record_failure, record_killed_ranks


@pytest.fixture
def failures(monkeypatch, tmp_path):
    """Records the failures of ranks, in this order."""
    monkeypatch.setenv(FAILURES, str(tmp_path))

    def record(*errors: tuple[str, int, Exception]):
        for rank, code, error in errors:
            monkeypatch.setenv("RANK", rank)
            record_failure(code, error)
        return tmp_path

    return record


def test_the_exit_code_is_that_of_the_rank_that_failed_first(failures, tmp_path, capsys):
    assert first_failure(tmp_path, 2) is None
    failures(("1", 3, RuntimeError("boom")), ("0", 1, RuntimeError("later")))
    assert first_failure(tmp_path, 2) == (3, "rank 1: RuntimeError('boom')", False)
    assert "rank 1 " in capsys.readouterr().err


@pytest.mark.parametrize(("code", "ended"), [(75, Preempted("SIGTERM")), (130, Interrupted("SIGINT"))])
def test_a_rank_that_a_signal_ended_as_it_should_prints_no_traceback(failures, capsys, code, ended):
    """FAULTS 122: Ctrl-C reaches every rank of a terminal, and rank 1 may notice it before rank 0."""
    folder = failures(("1", code, ended), ("0", 75, Preempted("SIGTERM, which the launcher forwarded")))
    failure = first_failure(folder, 2)
    assert failure is not None and failure.code == code
    assert not capsys.readouterr().err


def test_a_rank_that_lost_another_one_is_not_the_first_to_fail(failures):
    folder = failures(("0", 1, RankLost("the connection broke")), ("1", 3, RuntimeError("boom")))
    assert first_failure(folder, 2) == (3, "rank 1: RuntimeError('boom')", False)


@pytest.mark.parametrize("other", [RankLost("the connection broke"), Preempted("SIGTERM at step 3")])
def test_a_rank_that_was_killed_is_named_with_the_signal_whatever_the_others_report(failures, capsys, other):
    """FAULTS 108."""
    folder = failures(("0", 75, other))
    record_killed_ranks({1: -signal.SIGKILL, 0: 75, 2: -signal.SIGSEGV})
    failure = first_failure(folder, 3)
    assert failure is not None and failure.code == 1 and failure.is_cause
    assert "rank 1 was killed by SIGKILL" in failure.error and "rank 2 was killed by SIGSEGV" in failure.error
    assert "rank 1 was killed by SIGKILL" in capsys.readouterr().err


def test_ranks_that_did_not_answer_are_named(failures, capsys):
    folder = failures(("0", 1, RankTimeout("waited")), ("2", 1, RankLost("Connection closed by peer")))
    failure = first_failure(folder, 4)
    assert failure is not None and failure.code == 1
    assert "rank 1, 3 " in failure.error and "rank 1, 3 " in capsys.readouterr().err
