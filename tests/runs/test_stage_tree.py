"""A trunk and its cooldowns: each branch is bit-identical to a run of that many tokens."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

import kleiber
from kleiber.config.stages import branch_name
from kleiber.optimizers.schedules import WSD, Constant, Cosine
from kleiber.runs.stage_tree import Stage, Tree, TrunkAndCooldowns

SCHEMA = json.loads((Path(kleiber.__file__).parent / "records" / "summary.schema.json").read_text())
TREE = ["stages=trunk_and_cooldowns", "stages.branches=[5120,10240,15360]", "trainer.max_steps=30"]
OFTEN = ["callbacks.log.every=1", "callbacks.checkpoints.every=4", "eval.every_steps=7"]


def weights(folder: Path, stage: str) -> str:
    """Digest of the last weights of a stage."""
    last = max((folder / "stages" / stage / "checkpoints").glob("step-*"))
    return json.loads((last / "meta.json").read_text())["sha256"]["model.safetensors"]


def rows(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def summary(folder: Path) -> dict:
    record = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(record, SCHEMA)
    return record


@pytest.fixture
def tree(once) -> Path:
    return once(*TREE, *OFTEN)


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "steps"), [("5120", 10), pytest.param("15360", 30, marks=pytest.mark.slow)])
def test_a_branch_equals_a_run_of_that_many_tokens(launch, tree, branch, steps):
    alone = launch(f"budget.steps={steps}", "schedule.warmup_steps=2", "trainer.max_steps=30", *OFTEN, root="alone")
    assert weights(tree, branch) == weights(alone, "main")
    stage = next(s for s in summary(tree)["stages"] if s["name"] == branch)
    assert stage["metrics"] == summary(alone)["stages"][0]["metrics"]
    assert stage["tokens"] == 512 * steps == summary(alone)["stages"][0]["tokens"]
    after = [row for row in rows(tree) if row["stage"] == branch]
    expected = [row for row in rows(alone) if row["step"] > stage["branch_step"]]
    assert [{k: v for k, v in row.items() if k != "stage"} for row in after] == expected


def test_summary_has_trunk_parent_and_branch_step_of_every_stage(tree, capsys):
    stages = summary(tree)["stages"]
    assert [s["name"] for s in stages] == ["trunk", "5120", "10240", "15360"]
    assert [s["parent"] for s in stages] == [None, "trunk", "trunk", "trunk"]
    assert [s["trunk"] for s in stages] == [None, "trunk", "trunk", "trunk"]
    assert [s["branch_step"] for s in stages] == [None, 8, 16, 24]
    assert [s["steps"] for s in stages] == [24, 10, 20, 30]
    kept = {path.name for path in (tree / "stages/trunk/checkpoints").iterdir()}
    assert "step-00000024" in kept and "step-00000008" not in kept  # its child is finished


@pytest.mark.slow
def test_the_table_shows_how_many_steps_the_shared_trunk_saves(launch, capsys):
    launch(*TREE, root="tree")
    out = capsys.readouterr().out
    assert re.search(r"saving +│ 40%", out)  # 24 + 2 + 4 + 6 = 36 steps, and 10 + 20 + 30 = 60 apart
    assert "trunk at step 16" in out


@dataclass(frozen=True)
class Plan:
    """The fields of a plan that a tree of stages reads."""

    schedule: object
    max_steps: int | None = None
    batch_tokens: int = 1000
    steps: int = 0
    stop_step: int = 0


def planned_stages(branches, plan: Plan) -> list[Stage]:
    return TrunkAndCooldowns(branches).stages(None, lambda *_: plan)


def test_all_branches_share_the_warm_up_of_the_shortest():
    stages = planned_stages(["1M", "20k"], Plan(WSD(warmup_steps=100)))
    assert [stage.name for stage in stages] == ["trunk", "20k", "1M"]
    assert {stage.plan.schedule.warmup_steps for stage in stages} == {4}


def test_max_steps_shortens_all_branches_alike():
    stages = planned_stages(["1M", "2M", "4M"], Plan(WSD(), max_steps=20))
    assert [(stage.name, stage.plan.stop_step) for stage in stages] == [
        ("trunk", 16),
        ("1M", 5),
        ("2M", 10),
        ("4M", 20),
    ]


def test_max_steps_without_room_for_a_cooldown_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.max_steps=1"):
        planned_stages(["1M"], Plan(WSD(), max_steps=1))


@pytest.mark.parametrize(("branches", "decay"), [(["1M", "2M"], 1.0), (["2k", "1M"], 0.9)])
def test_a_decay_that_leaves_no_step_of_the_trunk_is_refused(branches, decay):
    with pytest.raises(ValueError, match=r"schedule\.decay .*stages\.branches"):
        planned_stages(branches, Plan(WSD(decay=decay)))


@pytest.mark.parametrize("schedule", [Cosine(), Constant()])
def test_a_schedule_without_a_constant_part_is_refused(schedule):
    with pytest.raises(ValueError, match="set schedule=wsd"):
        planned_stages(["1M"], Plan(schedule))


@pytest.mark.parametrize("branches", [["1M", 1e6], ["1M", "x"]])
def test_wrong_branches_are_refused(branches):
    with pytest.raises(ValueError, match=r"branches|'x'"):
        TrunkAndCooldowns(branches)


def test_a_budget_beside_branches_is_refused_with_both_names(launch, capsys):
    from small_run import TINY

    from kleiber.launch.main import main

    assert main([*TINY, "stages=trunk_and_cooldowns", "budget.tokens=1M"]) == 2
    error = capsys.readouterr().err
    assert "budget.tokens" in error and "stages.branches" in error


def test_branches_are_named_by_their_tokens():
    assert [branch_name(tokens) for tokens in ("1M", 2_000_000, 512, 2.5e6)] == ["1M", "2M", "512", "2.5M"]


def test_stages_lie_behind_those_before_them_and_branches_beside_their_trunk():
    def stage(name: str, batch_tokens: int, parent: str | None = None, continues: bool = False) -> Stage:
        return Stage(name, SimpleNamespace(batch_tokens=batch_tokens), {}, parent, continues, branch_step=3)

    stages = [stage("first", 100), stage("second", 10, "first"), stage("third", 1, "second")]
    tree = Tree([*stages, stage("branch", 10, "second", True)], Path(), None, [], {"first": {"steps": 5}})
    tree.done["second"] = {"steps": 20}
    axes = {stage.name: tree.axis(stage) for stage in tree.stages}
    assert [axes[name].steps(1) for name in ("first", "second", "third")] == [1, 6, 26]
    assert [axes[name].tokens(1) for name in ("first", "second", "third")] == [100, 510, 701]
    assert axes["branch"] == axes["second"], "whose steps it counts on"
