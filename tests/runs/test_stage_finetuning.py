"""Whole runs of fine-tuning: interruptions, ranks, start points and task heads do not change the results."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE
from small_run import REPOSITORY
from tables import folder

from kleiber.evals.task_scores import Runtime, score_task
from kleiber.runs.open import open_model
from kleiber.types.contracts import Task

DATA = REPOSITORY / "tests/data"
TASKS = [("classify", "labelled"), ("sft", "instruct"), ("dpo", "preference"), ("reward", "preference")]
TASKS += [("kto", "unpaired")]
PAIRS = ["data=preference", f"data.path={DATA}/preference.jsonl", "objective=dpo", "optimizer.lr=0.05"]


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())["stages"][0]["metrics"]


@pytest.mark.slow
def test_an_interrupted_dpo_run_equals_an_uninterrupted_one(launch, interrupted):
    options = [*PAIRS, "callbacks.checkpoints.every=5", "callbacks.log.every=1"]
    whole = launch(*options, root="whole")
    with interrupted(2):
        broken = launch(*options, root="broken", code=130)
    before = np.load(broken / "stages/main/reference.npz")["train"]
    launch(*options, root="broken")
    assert np.array_equal(np.load(broken / "stages/main/reference.npz")["train"], before)
    assert metrics(broken) == metrics(whole)
    assert metrics(whole)["val/preference/reward_accuracy"] > 0.9  # the words alone say which is preferred
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6) and losses[-1] < 0.6


@pytest.mark.slow
def test_a_dpo_run_in_bf16_starts_with_a_margin_of_zero(launch):
    folder = launch(*PAIRS, "trainer.precision=bf16", "trainer.max_steps=1", "callbacks.log.every=1", "model.depth=1")
    (row,) = [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "train/margin" in r]
    assert row["train/margin"] == pytest.approx(0, abs=1e-6)
    assert row["train/loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("name,data", TASKS)
def test_fine_tuning_on_two_ranks_equals_one_process(launch, process, tmp_path, name, data):
    options = [
        f"data={data}", f"data.path={DATA}/{data}.jsonl", f"objective={name}", "trainer=ddp", "trainer.precision=64",
        "model.depth=1", "model.context=64", "data.max_bytes=20000", "trainer.max_steps=8", "batch.micro=3",
        "callbacks.log.every=1",
    ]  # fmt: skip
    alone = launch(*options, "trainer.devices=1", root="alone")
    pair = process(*options, "trainer.devices=2", root="pair")
    _, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 0, err
    (folder,) = (tmp_path / "pair").glob("*/*")
    scores = metrics(folder)
    assert scores == pytest.approx(metrics(alone), abs=1e-6)
    if name == "classify":
        assert scores["val/labelled/accuracy"] == metrics(alone)["val/labelled/accuracy"]
        same = [(f / "classes/labelled.json").read_text() for f in (alone, folder)]
        assert same[0] == same[1]


@pytest.mark.slow
def test_data_that_do_not_fit_the_objective_are_refused(launch, capsys):
    for objective in ("classify", "sft", "dpo", "reward", "kto"):
        launch(f"objective={objective}", code=2)
        assert objective in capsys.readouterr().err.lower()


def stage(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())["stages"][0]


@pytest.mark.slow
def test_a_pair_fills_two_rows_of_the_batch_and_padding_is_not_counted(launch, capsys):
    """batch.tokens counts rows of model.context tokens; the tokens of a step are those without padding."""
    options = ["batch.tokens=512", "model.context=64", "budget.steps=3", "data.max_bytes=20000"]
    folder = launch(*PAIRS, *options)
    pairs, num_pairs = stage(folder), len(np.load(folder / "stages/main/reference.npz")["train"])
    assert pairs["samples"] == 3 * 512 // (2 * 64)
    assert pairs["batch_tokens"] == round(4 * pairs["data"]["tokens"] / num_pairs) < 512
    assert pairs["tokens"] == 3 * pairs["batch_tokens"]
    launch(*PAIRS, "batch.tokens=192", "model.context=64", code=2)
    assert "batch.tokens=192" in capsys.readouterr().err
    labelled = ["data=labelled", f"data.path={DATA}/labelled.jsonl", "objective=classify"]
    single = stage(launch(*labelled, *options))
    assert single["samples"] == 24 and single["tokens"] < 3 * 512
    assert single["unique_tokens"] == pytest.approx(single["tokens"], rel=0.01), "less than an epoch"


def test_fine_tuning_without_a_budget_reads_the_data_three_times(launch):
    labelled = ["data=labelled", f"data.path={DATA}/labelled.jsonl", "objective=classify", "data.max_bytes=1000"]
    record = stage(launch(*labelled, "budget.steps=null", "trainer.max_steps=null"))
    assert record["tokens"] == pytest.approx(3 * record["data"]["tokens"], rel=0.1), "rounded to whole batches"


SMALL = ["batch.tokens=512", "model.context=64", "data.max_bytes=20000"]


@pytest.mark.parametrize("name,data", [TASKS[0], *(pytest.param(*task, marks=pytest.mark.slow) for task in TASKS[1:])])
def test_a_run_from_a_fine_tuned_run_is_scored_on_its_task(launch, name, data):
    """The data and the output layer of the task are inherited with the weights, so forgetting can be measured."""
    table = [f"data={data}", f"data.path={DATA}/{data}.jsonl", f"objective={name}"]
    tuned = launch(*table, *SMALL, "budget.steps=4", "optimizer.lr=0.05", root="tuned")
    start = ["init=checkpoint", f"init.path={tuned}", "batch.tokens=512", "budget.steps=2"]
    record = json.loads((launch(*start, root="after") / "summary.json").read_text())
    assert record["R"]["tasks"] == [data, "tiny"]
    assert record["R"]["baseline"][0] == pytest.approx(metrics(tuned)[record["R"]["metric"][data]], abs=1e-6)
    assert record["R"]["matrix"][0][0] is not None
    loss = record["stages"][0]["start_metrics"][f"val/{data}/loss"]
    assert loss == pytest.approx(metrics(tuned)[f"val/{data}/loss"], abs=1e-6), "against the first reference"
    run = open_model(tuned)
    task = Task(data, run.objective, run.corpus.validation[data])
    assert score_task(run.model, task, None, 16, Runtime())["loss"].value == pytest.approx(loss, abs=1e-5), (
        "also when the run is opened"
    )


@pytest.mark.slow
def test_a_resumed_chain_scores_pairs_against_the_first_reference(launch, interrupted):
    tuned = "{_target_:kleiber.data.Preference,path:" + f"{DATA}/preference.jsonl,max_bytes:20000}}"
    pairs = f"pairs:{{data:{tuned},objective:{{_target_:kleiber.objectives.DPO}},budget:{{steps:4}}}}"
    chain = ["stages=chain", f"stages.chain={{{pairs},text:{{budget:{{steps:4}}}}}}", "batch.tokens=512"]
    options = [*chain, "model.context=64", "optimizer.lr=0.05", "callbacks.checkpoints.every=2"]
    whole = launch(*options, root="whole")
    with interrupted(3):
        launch(*options, root="broken", code=130)
    broken = launch(*options, root="broken")
    straight, resumed = (json.loads((f / "summary.json").read_text())["stages"][1]["metrics"] for f in (whole, broken))
    assert straight == resumed and straight["val/preference/loss"] != pytest.approx(np.log(2), abs=1e-4)


@pytest.mark.slow
def test_a_branch_has_the_dpo_reference_of_its_trunk(launch):
    tree = ["stages=trunk_and_cooldowns", "stages.branches=[2048,4096]", "batch.tokens=512", "model.context=64"]
    folder = launch(*PAIRS, *tree, "data.max_bytes=20000")
    assert [file.parent.name for file in folder.glob("stages/*/reference.npz")] == ["trunk"]


@pytest.mark.slow
def test_ewc_and_lwf_retain_a_classification_task(launch):
    """Fisher information and predictions of the old model are those of the output layer of the task."""
    labelled = "{_target_:kleiber.data.Labelled,path:" + f"{DATA}/labelled.jsonl,max_bytes:20000}}"
    first = f"classes:{{data:{labelled},objective:{{_target_:kleiber.objectives.Classify}},budget:{{steps:4}}}}"
    chain = ["stages=chain", f"stages.chain={{{first},text:{{budget:{{steps:3}}}}}}", "retention=[ewc,lwf]"]
    folder = launch(*chain, "retention.ewc.samples=4", "batch.tokens=512", "model.context=64", "callbacks.log.every=1")
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    assert stages[1]["metrics"]["drift/labelled/kl"] > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("ewc", "lwf"):
        assert any(value > 0 for row in rows for key, value in row.items() if key.endswith(f"train/retention/{name}"))


@pytest.mark.slow
def test_a_run_starts_from_a_fine_tuned_wrapped_model(launch):
    sizes = "{hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}"
    wrapped = ["model=hf", "model.path=bert", "model.weights=random", f"model.config={sizes}", "model.depth=1"]
    wrapped += ["model.context=64", "data=labelled", f"data.path={DATA}/labelled.jsonl", "objective=classify"]
    wrapped += ["objective.scale=2"]  # the default is another one from trained weights
    first = launch(*wrapped, root="first")
    second = launch(*wrapped, "init=checkpoint", f"init.path={first}", root="second")
    stage = json.loads((second / "summary.json").read_text())["stages"][0]
    assert stage["start_metrics"]["val/labelled/loss"] == pytest.approx(metrics(first)["val/labelled/loss"], rel=1e-6)


@pytest.mark.slow
def test_a_text_with_other_labels_is_another_task(launch, tmp_path, capsys):
    rows = [{"text": f"{i} {'ab'[i % 2]}", "a": i % 2, "b": (i // 2) % 3} for i in range(40)]
    path = folder(tmp_path / "both", train=rows, validation=rows[:20])
    common = ["objective=classify", "data=labelled", f"data.path={path}", "model.context=64"]
    stages = "stages.chain={one:{data:{label:a}},two:{data:{label:b}}}"
    launch("stages=chain", stages, *common, "budget.steps=1", root="chain", code=2)
    assert "stages.chain.two" in (error := capsys.readouterr().err) and "'both'" in error
    base = launch(*common, "data.label=a", "budget.steps=30", "optimizer.lr=0.02", root="base")
    start = ["init=checkpoint", f"init.path={base}", "data.label=b", "budget.steps=1", "optimizer.lr=1e-9"]
    record = json.loads((launch(*common, *start, root="tuned") / "summary.json").read_text())
    learned = json.loads((base / "summary.json").read_text())["stages"][0]["metrics"]["val/both/accuracy"]
    assert record["R"]["tasks"] == ["both-before", "both"] and record["R"]["baseline"][0] == pytest.approx(learned)
    assert learned > 0.9


@pytest.mark.slow
def test_wise_and_l2sp_work_on_a_pretrained_wrapped_model(launch, shared, capsys):
    """WiSE and L2-SP need no earlier task; replay needs one and is refused."""
    source = shared / "data" / "models" / "stories260K"
    wrapped = ["model=hf", f"model.path={source}", "model.context=64", "budget.steps=2", "callbacks.samples=null"]
    wrapped += ["objective=classify", "data=labelled", f"data.path={DATA}/labelled.jsonl"]
    held = launch(*wrapped, "retention=[wise,l2sp]", "retention.wise.alphas=[0,1]", root="held")
    scores = json.loads((held / "summary.json").read_text())["stages"][0]["metrics"]
    assert scores["wise/1/labelled/loss"] == scores["val/labelled/loss"] != scores["wise/0/labelled/loss"]
    capsys.readouterr()
    launch(*wrapped, "retention=replay", root="none", code=2)
    assert "retention.replay" in capsys.readouterr().err
