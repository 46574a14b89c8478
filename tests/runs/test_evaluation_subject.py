"""The subject of an evaluation: earlier checkpoints of its run, and other data in the tokens of its model."""

import pytest
import torch
from fake_run import fake_run, fake_stage
from small_run import TINY

from kleiber.runs.evaluation_subject import earlier_checkpoints, earlier_models, open_subject
from kleiber.runs.open import open_model

RUN = [
    "model=moe",
    "model.width=32",
    "model.num_heads=2",
    "callbacks.checkpoints.every=5",
    "callbacks.checkpoints.keep=3",
]
CHECKPOINTS = [("docs", 900), ("docs", 1000), ("code", 225), ("code", 250)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from kleiber.launch.main import main as train

    root = tmp_path_factory.mktemp("subject")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIBER_CACHE", str(tmp_path_factory.getbasetemp() / "token-cache"))
        assert train([*TINY, *RUN, f"root={root}", "eval.tokens=null"]) == 0
    return next(root.glob("*/*"))


@pytest.mark.slow
def test_checkpoints_come_oldest_first_and_differ(run, cache_dir):
    steps, weights = [], []
    for step, model in earlier_models(run):
        steps.append(step)
        weights.append(model.norm.weight.clone())
    assert steps == [10, 15] and not torch.equal(*weights)
    last = open_model(run / "main")
    assert last.model.training is False and not torch.equal(last.model.norm.weight, weights[-1])


@pytest.mark.slow
def test_the_checkpoints_of_a_branch_begin_with_those_of_its_trunk(tmp_path, cache_dir):
    from kleiber.launch.main import main as train

    tree = ["stages=trunk_and_cooldowns", "stages.branches=[5120,8192]", "callbacks.checkpoints.every=3"]
    assert train([*TINY, *RUN, *tree, "callbacks.checkpoints.keep=9", f"root={tmp_path}", "trainer=cpu"]) == 0
    (run,) = tmp_path.glob("*/*")
    steps = {stage: [step for step, _ in earlier_models(run / stage)] for stage in ("5120", "8192")}
    assert steps == {"5120": [3, 6, 8, 9], "8192": [3, 6, 8, 9, 12, 15]}


def test_a_stage_of_a_chain_does_not_continue_the_checkpoints_of_the_stage_before(tmp_path):
    records = [fake_stage("docs", steps=1000), fake_stage("code", parent="docs", branch_step=1000, steps=250)]
    run = fake_run(tmp_path / "run", records)
    folders = [run / "stages" / name / "checkpoints" / f"step-{step:08d}" for name, step in CHECKPOINTS]
    for folder in folders:
        folder.mkdir(parents=True)
    assert earlier_checkpoints(run, "code") == folders[2:3]


@pytest.mark.slow
def test_data_that_settings_describe_is_read_with_the_tokenizer_of_the_run(run, cache_dir, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text("".join(f'{{"body": "line {i} of another text"}}\n' for i in range(40)))
    subject, own, named = open_subject(run, None, ["data=text", f"data.path={path}", "data.text=body"], None)
    assert [data.name for data in own] == ["tiny"] and [data.name for data in named] == ["other"]
    record, reading = open_model(run).record, subject.reading
    assert reading is not None and reading.rows * reading.steps == record["samples"] and not reading.poisson
    assert int(next(subject_batches(subject, named)).tokens.max()) < subject.model.vocab_size
    with pytest.raises(ValueError, match=r"data\.vocab_size"):
        open_subject(run, None, ["data=text", f"data.path={path}", "data.text=body", "data.vocab_size=300"], None)


def subject_batches(subject, named):
    from dataclasses import replace

    return replace(subject, data=named).batches(named[0].name)


def test_the_data_of_the_run_is_its_own_validation_text_also_by_name(run, cache_dir):
    _, own, named = open_subject(run, None, ["builtin/docs"], None)
    assert named[0].name == "builtin/docs" and not named[0].of_run and own[0].of_run
