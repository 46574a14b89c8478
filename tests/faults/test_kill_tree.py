"""SIGKILL in a tree of stages: in the trunk, in a branch, between two, and the end is that of the unbroken tree."""

import json
import signal
from pathlib import Path

import pytest
from small_run import REPOSITORY

STAGES = ("trunk", "5120", "10240", "15360")
TREE = ["stages=trunk_and_cooldowns", "stages.branches=[5120,10240,15360]", "trainer.max_steps=30"]
TREE += ["callbacks.log.every=1", "callbacks.checkpoints.every=4", "eval.every_steps=7"]
KILLS = [
    ("kleiber.training.lit.accumulate", 11),  # in the trunk
    ("kleiber.training.checkpoint._commit", 4),
    ("kleiber.evals.task_scores.held_out_loss", 3),
    ("kleiber.runs.stage.remove_branch_checkpoints", 1),  # between stages
    ("kleiber.training.lit.accumulate", 2),  # in a branch, before its first checkpoint
    ("kleiber.training.checkpoint._sync", 3),
]


@pytest.mark.slow
def test_a_tree_killed_in_trunk_branch_and_between_ends_bit_identical(child, tmp_path):
    assert child(*TREE, root="unbroken") == 0
    for at in KILLS:
        assert child(*TREE, root="killed", at=at) == -signal.SIGKILL, at
    assert child(*TREE, root="killed") == 0
    assert facts(tmp_path / "killed") == facts(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_kill_before_the_score_matrix_is_written_leaves_none_that_lacks_a_stage(child, once, tmp_path):
    (tmp_path / "more.txt").write_text(Path(REPOSITORY / "tests/data/tiny.txt").read_text()[::-1])
    second = f"{{data:{{path:{tmp_path / 'more.txt'}}},budget:{{steps:6}}}}"
    chain = ["stages=chain", f"stages.chain={{one:{{budget:{{steps:6}}}},two:{second}}}", "trainer.max_steps=6"]
    expected = json.loads((once(*chain) / "summary.json").read_text())["R"]
    for number in (1, 2):
        assert child(*chain, root="killed", at=("kleiber.records.summary.score_matrix", number)) == -signal.SIGKILL
    assert child(*chain, root="killed") == 0
    (path,) = tmp_path.glob("killed/*/*/summary.json")
    assert json.loads(path.read_text())["R"] == expected and len(expected["matrix"]) == 2


def facts(root: Path) -> tuple[list[str], list[dict], list[dict]]:
    """Digests of each stage's last weights, logged rows without times, and what the summary measured."""
    (folder,) = root.glob("*/*")
    last = [max((folder / "stages" / stage / "checkpoints").glob("step-*")) for stage in STAGES]
    digests = [json.loads((path / "meta.json").read_text())["sha256"]["model.safetensors"] for path in last]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return digests, rows, [{k: stage[k] for k in ("name", "metrics", "curve", "tokens")} for stage in stages]
