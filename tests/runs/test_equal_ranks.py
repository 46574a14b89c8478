"""Ranks with other configs or inputs are refused, with what differs on which rank. FAULTS 107."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_ranks import fork_ranks
from small_run import TINY, last_of_each

from kleiber.config.errors import ConfigError, RankTimeout
from kleiber.launch.main import main
from kleiber.launch.process import main as run_process
from kleiber.runs import equal_ranks
from kleiber.runs.equal_ranks import check_equal, describe_differences, exchange

PAIR = [*TINY, "trainer=ddp", "trainer.devices=2", "trainer.max_steps=4", "budget.steps=4", "eval.tokens=1024"]


def in_two_ranks(folder: Path, work: Callable[[int], int]) -> list[tuple[int, str]]:
    """Runs `work` in two forked ranks; returns the exit code of each and what it printed."""

    def run(rank: int) -> int:
        log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(log, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        code = work(rank)
        sys.stderr.flush()
        (folder / f"{rank}.code").write_text(str(code))
        return code

    fork_ranks(2, run)
    return [(int((folder / f"{rank}.code").read_text()), (folder / f"{rank}.log").read_text()) for rank in (0, 1)]


def test_values_that_differ_are_named_with_their_ranks():
    values = [{"seed": "0", "data": "a"}, {"seed": "1", "data": "a"}, {"seed": "0", "data": "a", "init": "x"}]
    assert describe_differences(values) == [
        "seed is 0 on rank 0, 2 and 1 on rank 1",
        "init is absent on rank 0, 1 and x on rank 2",
    ]
    assert describe_differences([{"seed": "0"}, {"seed": "0"}]) == []


def test_a_single_process_compares_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_equal({"seed": "0"})


def test_ranks_exchange_texts_again_and_again_and_refuse_differences(tmp_path):
    def work(rank: int) -> int:
        for number in range(20):
            assert exchange(f"{number} of {rank}", 60) == [f"{number} of 0", f"{number} of 1"]
        check_equal({"seed": "0"})
        with pytest.raises(ConfigError, match="seed is 0 on rank 0 and 1 on rank 1"):
            check_equal({"seed": str(rank)})
        return 0

    assert [code for code, _ in in_two_ranks(tmp_path, work)] == [0, 0]


def test_a_rank_that_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(equal_ranks, "POLL_SECONDS", 0.01)

    def work(rank: int) -> int:
        if rank == 0:
            with pytest.raises(RankTimeout, match="rank 1 did not start"):
                exchange("", 0.5)
        return 0

    assert [code for code, _ in in_two_ranks(tmp_path, work)] == [0, 0]


DIFFERENT = {
    "seed": (["seed=0"], ["seed=1"]),
    "data.path": (["data.path={home}/first.txt"], ["data.path={home}/second.txt"]),
    "init.path": (["init=checkpoint", "init.path={base}"], ["init=checkpoint", "init.path={other}"]),
    "budget.steps": (["budget.steps=4"], ["budget.steps=5"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", DIFFERENT)
def test_ranks_that_torchrun_starts_with_other_overrides_are_refused(tmp_path, once, cache_dir, key):
    for name, text in (("first", "first words " * 400), ("second", "other words " * 400)):
        (tmp_path / f"{name}.txt").write_text(text)
    places = {"{home}": str(tmp_path)}
    if key == "init.path":
        places |= {"{base}": str(once("budget.steps=2")), "{other}": str(once("budget.steps=2", "seed=1"))}

    def work(rank: int) -> int:
        overrides = [*PAIR, f"root={tmp_path / 'root'}", *DIFFERENT[key][rank]]
        for name, value in places.items():
            overrides = [text.replace(name, value) for text in overrides]
        return main(last_of_each(overrides))

    (first, printed), (second, _) = in_two_ranks(tmp_path, work)
    assert first == second == 2
    assert f"{key} is " in printed and "on rank 0 and " in printed and "Traceback" not in printed
    assert not (tmp_path / "root").exists(), "a run that was refused leaves no folder"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_ranks_that_find_other_data_under_one_name_are_refused(tmp_path, cache_dir, monkeypatch, trainer):
    """KLEIBER_DATA on the second node has other files."""
    for rank in (0, 1):
        folder = tmp_path / f"data{rank}" / "owner" / "texts"
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [{"text": f"document {number} of rank {rank} " * 20} for number in range(60)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("kleiber.launch.ranks.run_fresh", lambda folder, devices: 0)
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path / "data0"))
    overrides = [*PAIR, f"trainer={trainer}", "data.path=owner/texts", f"root={tmp_path / 'root'}"]
    assert main(last_of_each(overrides)) == 0
    (config,) = tmp_path.glob("root/*/*/config.yaml")

    def work(rank: int) -> int:
        os.environ["KLEIBER_DATA"] = str(tmp_path / f"data{rank}")
        return run_process([str(config.parent)])

    (first, printed), (second, _) = in_two_ranks(tmp_path, work)
    assert first == second == 2 and "data/" in printed and "on rank 0 and " in printed
    assert "Traceback" not in printed and not list(tmp_path.glob("root/*/*/stages"))
