"""Retention methods in whole runs: what a branch inherits from its trunk, and which settings are refused."""

import pytest
import torch
from processes import PATIENCE
from safetensors.torch import load_file
from small_run import REPOSITORY
from tables import folder

from kleiber.records.summary_file import read_summary


def last_weights(run, stage):
    return load_file(max((run / "stages" / stage / "checkpoints").glob("step-*")) / "model.safetensors")


@pytest.mark.slow
def test_a_branch_retains_the_same_weights_as_its_trunk(launch, tmp_path):
    """A branch equals a separate run of its length, so it is pulled to the start of the trunk, not of the branch."""
    other = tmp_path / "other.txt"
    other.write_text("".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(2000)))
    base = launch("budget.steps=4", root="base")
    held = ["init=checkpoint", f"init.path={base}", f"data.path={other}", "optimizer.lr=0.02", "schedule=wsd"]
    held += ["retention=[l2sp,lwf]", "retention.l2sp.strength=5.0", "callbacks.samples=null", "eval.every_steps=0"]
    tree = launch(*held, "stages=trunk_and_cooldowns", "stages.branches=[4096,8192]", root="tree")
    alone = launch(*held, "budget.steps=8", root="alone")
    for name, value in last_weights(alone, "main").items():
        assert torch.equal(last_weights(tree, "4096")[name], value)


def test_replay_that_the_model_cannot_generate_is_refused_in_one_line(launch, capsys):
    base = launch("model=bert", "objective=mlm", "budget.steps=1", root="base")
    again = ["init=checkpoint", f"init.path={base}", "objective=mlm", "retention=replay", "budget.steps=1"]
    capsys.readouterr()
    launch(*again, "retention.replay.source=generated", root="again", code=2)
    error = capsys.readouterr().err
    assert "Traceback" not in error and "kleiber: " in error and "model=gpt" in error


TEXT_THEN_CLASSES = [
    "stages=chain", "objective=classify", "data=labelled", "data.label=b", "retention=replay", "model.tied=false",
    "stages.chain={text:{data:{_target_:kleiber.data.Text,path:TINY},objective:{_target_:kleiber.objectives.CLM}},"
    "first:{data:{label:a,name:first}},second:{}}",
    "retention.replay.fraction=0.1", "budget.steps=6", "model.context=64", "model.depth=1", "optimizer.lr=0.05",
    "batch.tokens=512", "callbacks.samples=null", "eval.every_steps=0",
]  # fmt: skip


def chain_options(tmp_path):
    rows = [{"text": f"{i} {'ab'[i % 2]} {'xyz'[i % 3]}", "a": i % 2, "b": i % 3} for i in range(60)]
    path = folder(tmp_path / "both", train=rows, validation=rows[:20])
    options = [option.replace("TINY", f"{REPOSITORY}/tests/data/tiny.txt") for option in TEXT_THEN_CLASSES]
    return [*options, f"data.path={path}"]


@pytest.mark.slow
@pytest.mark.parametrize("replay", [True, False])
def test_replay_trains_the_output_layers_of_the_tasks_that_it_replays(launch, tmp_path, replay):
    options = [option for option in chain_options(tmp_path) if replay or "retention" not in option]
    run = launch(*options)
    text, first, second = (last_weights(run, stage) for stage in ("text", "first", "second"))
    (head,) = [name for name in first if name.startswith("heads.") and name.endswith("weight") and first[name].any()]
    assert torch.equal(text["head.weight"], first["head.weight"]) != replay
    assert torch.equal(first[head], second[head]) != replay
    params = [stage["params"] for stage in read_summary(run)["stages"]]
    assert (params[2]["trainable"] == params[2]["total"]) == replay


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_replay_beside_the_batch_on_two_ranks_equals_one_process(launch, process, tmp_path):
    """Most steps draw samples of a task on one rank alone, or on none."""
    options = [*chain_options(tmp_path), "trainer=ddp", "trainer.precision=64", "trainer.max_steps=6", "batch.micro=3"]
    alone = launch(*options, "trainer.devices=1", root="alone")
    pair = process(*options, "trainer.devices=2", root="pair")
    _, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 0, err
    (together,) = (tmp_path / "pair").glob("*/*")
    for name, value in last_weights(alone, "second").items():
        assert torch.allclose(last_weights(together, "second")[name], value, atol=1e-7), name
