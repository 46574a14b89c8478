"""Retention methods in whole runs: what a branch inherits from its trunk, and which settings are refused."""

import pytest
import torch
from safetensors.torch import load_file


def last_weights(folder, stage):
    return load_file(max((folder / "stages" / stage / "checkpoints").glob("step-*")) / "model.safetensors")


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
