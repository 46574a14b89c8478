"""A run that resume=PATH continues with another budget: it trains all steps of that budget, or is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from kleiber.config.errors import ConfigError
from kleiber.records.folder import read_config
from kleiber.runs.run import prepare_continuation
from kleiber.training import checkpoint

SHORT = ["callbacks.checkpoints.every=2", "callbacks.samples=null", "schedule=constant"]


def tree(folder: Path, **stages: tuple[int | None, int, int]) -> SimpleNamespace:
    """Stages with the steps of their record (None: unfinished), of their newest checkpoint and of their new config."""
    done = {name: {"steps": steps} for name, (steps, _, _) in stages.items() if steps is not None}
    for name, (_, saved, _) in stages.items():
        (folder / name / checkpoint.name(saved)).mkdir(parents=True)
    planned = [SimpleNamespace(name=name, plan=SimpleNamespace(stop_step=end)) for name, (_, _, end) in stages.items()]
    return SimpleNamespace(stages=planned, done=done, folder=folder, checkpoints=folder.joinpath)


@pytest.mark.parametrize(
    ("stages", "done"),
    [
        ({"main": (None, 8, 12)}, []),
        ({"main": (6, 6, 12)}, []),
        ({"a": (6, 6, 6), "b": (None, 2, 12)}, ["a"]),
    ],
)
def test_a_run_with_steps_left_continues(tmp_path, stages, done):
    prepared = tree(tmp_path, **stages)
    prepare_continuation(prepared)
    assert [*prepared.done] == done


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"main": (None, 8, 6)}, "it has trained 8 steps, and would end after 6"),
        ({"main": (None, 8, 8)}, "it has trained 8 steps, and would end after 8"),
        ({"main": (8, 8, 6)}, "would end after 6"),
        ({"main": (8, 8, 8)}, "has finished all steps"),
        ({"a": (6, 6, 8), "b": (None, 0, 8)}, "its stage a has trained 6 steps, and would end after 8"),
        ({"a": (6, 6, 6), "b": (None, 4, 3)}, "its stage b has trained 4 steps"),
        ({"a": (6, 6, 6), "b": (6, 6, 6)}, "has finished all steps"),
    ],
)
def test_a_run_without_steps_left_or_with_another_length_of_a_finished_stage_is_refused(tmp_path, stages, message):
    with pytest.raises(ConfigError, match=message):
        prepare_continuation(tree(tmp_path, **stages))


@pytest.mark.slow
def test_a_budget_that_the_run_has_passed_is_refused_and_changes_nothing(launch, interrupted, capsys):
    with interrupted(2):  # before the second checkpoint, that of step 4, is complete
        folder = launch(*SHORT, "budget.steps=40", code=130)
    before = (folder / "summary.json").read_bytes(), read_config(folder)
    launch(*SHORT, "budget.steps=2", f"resume={folder}", code=2)
    assert "has trained 2 steps" in capsys.readouterr().err
    assert ((folder / "summary.json").read_bytes(), read_config(folder)) == before
    launch(*SHORT, "budget.steps=40", f"resume={folder}")
    launch(*SHORT, "budget.steps=40")
    assert "finished already" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("trial", [["budget.steps=4"], ["budget.steps=6", "trainer.max_steps=4"]])
def test_a_finished_run_trains_on_as_the_longer_run_would_have(launch, trial, capsys):
    """At a constant rate the first steps of both are equal."""
    alone = launch(*SHORT, "budget.steps=6", root="alone")
    folder = launch(*SHORT, *trial)
    launch(*SHORT, "budget.steps=6", f"resume={folder}")
    stages = [json.loads((place / "summary.json").read_text())["stages"][0] for place in (alone, folder)]
    assert [stage["steps"] for stage in stages] == [6, 6]
    weights = [
        load_file(place / "stages/main/checkpoints/step-00000006/model.safetensors") for place in (alone, folder)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    launch(*SHORT, *trial, code=2)
    assert "with another config than that of this command" in capsys.readouterr().err
    launch("-m", *SHORT, *trial, code=2)
    launch(*SHORT, "budget.steps=6", f"resume={folder}")
    assert "finished already" in capsys.readouterr().out
