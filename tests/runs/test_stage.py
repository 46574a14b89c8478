"""Chains of stages and start points: what a stage inherits, which tasks are scored, and what is refused."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from small_run import REPOSITORY, TINY

import kleiber
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.stages import stage_configs
from kleiber.launch.main import main
from kleiber.records.catalog import frame, read_run
from kleiber.runs.stage import resumed_micro_batch

SCHEMA = json.loads((Path(kleiber.__file__).parent / "records" / "summary.schema.json").read_text())
OFTEN = ["callbacks.log.every=1", "callbacks.checkpoints.every=4", "callbacks.samples=null"]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A file with another kind of text than that of the first stage."""
    text = tmp_path_factory.mktemp("text") / "other.txt"
    text.write_text((REPOSITORY / "src/kleiber/nn/attention.py").read_text())
    return text


@pytest.fixture(scope="module")
def chain(other) -> list[str]:
    second = f"two:{{data:{{path:{other}}},budget:{{steps:9}},optimizer:{{lr:0.01}}}}"
    return ["stages=chain", f"stages.chain={{one:{{budget:{{steps:12}}}},{second}}}", *OFTEN]


def summary(folder: Path) -> dict:
    record = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(record, SCHEMA)
    return record


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(max((folder / "stages" / stage / "checkpoints").glob("step-*")) / "model.safetensors")


@pytest.mark.slow
def test_every_task_is_scored_after_every_stage_of_a_chain(launch, chain, capsys):
    folder = launch(*chain)
    record = summary(folder)
    first, second = record["stages"]
    assert (first["parent"], second["parent"]) == (None, "one")
    assert (first["tasks"], second["tasks"]) == (["tiny"], ["other"])
    assert [stage["lr"] for stage in (first, second)] == [0.02, 0.01]
    assert second["tokens"] == 512 * (12 + 9) and second["steps"] == 9
    assert second["flops"]["model"] == pytest.approx(first["flops"]["model"] / 12 * 21)
    assert second["start_metrics"] == first["metrics"]
    scores = record["R"]
    assert (scores["tasks"], scores["stages"]) == (["tiny", "other"], ["one", "two"])
    (a, b), (c, d) = scores["matrix"]
    assert a < c and d < b, "the second stage learns its task and forgets the first"
    assert a < scores["baseline"][0] and [c, d] == [second["metrics"][f"val/{t}/loss"] for t in ("tiny", "other")]
    watched = {row["step"] for row in second["curve"] if "watch/tiny/loss" in row}
    assert watched >= {0, 1, 2, 4, 8, 9}
    assert {row["step"] for row in second["curve"] if "watch/other/loss" in row} == {1, 2, 4, 8}, (
        "every task, not to forget"
    )
    assert second["evaluation_seconds"] > 0
    before, after = weights(folder, "one"), weights(folder, "two")
    far = sum((after[name] - before[name]).double().square().sum() for name in before).sqrt()
    size = sum(before[name].double().square().sum() for name in before).sqrt()
    assert second["metrics"]["drift/weights"] == pytest.approx(float(far / size), rel=1e-6)
    assert second["metrics"]["drift/tiny/untrained"] == pytest.approx(scores["baseline"][0], rel=1e-5)
    assert second["metrics"]["drift/tiny/kl"] > 0 and not [key for key in first["metrics"] if key.startswith("drift")]
    out = capsys.readouterr().out
    assert "tiny" in out and "other" in out
    (row,) = frame([read_run(folder)]).to_dict("records")
    assert row["loss"] == d and row["trunk"] == folder.name, "one point: the end of the chain, of its own task"


@pytest.mark.slow
def test_the_first_stage_of_a_chain_equals_a_run_of_its_config(launch, once, chain):
    """So forgetting is measured against the model of an ordinary run."""
    alone = launch("budget.steps=12", *OFTEN, root="alone")
    folder = once(*chain)
    for name, value in weights(alone, "main").items():
        assert torch.equal(weights(folder, "one")[name], value)


@pytest.mark.slow
def test_a_run_from_the_checkpoint_of_a_stage_equals_the_next_stage(launch, once, chain, other):
    folder = once(*chain)
    start = ["init=checkpoint", f"init.path={folder}/one", f"data.path={other}", "budget.steps=9", "optimizer.lr=0.01"]
    alone = launch(*start, *OFTEN, root="alone")
    for name, value in weights(folder, "two").items():
        assert torch.equal(weights(alone, "main")[name], value)
    single, chained = summary(alone)["R"], summary(folder)["R"]
    assert single["matrix"][0] == chained["matrix"][1] and single["baseline"] == chained["matrix"][0]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", [*(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2)), 4])
def test_an_interrupted_chain_resumes_to_the_same_results(launch, once, chain, interrupted, checkpoints):
    whole = summary(once(*chain))
    with interrupted(checkpoints):
        launch(*chain, code=130)
    again = launch(*chain)
    assert summary(again)["R"] == whole["R"]
    kept = ("metrics", "start_metrics", "curve", "tokens", "flops")
    for first, second in zip(summary(again)["stages"], whole["stages"], strict=True):
        assert [first[k] for k in kept] == [second[k] for k in kept]


@pytest.mark.slow
def test_model_and_tokenizer_are_inherited_with_the_weights(launch, other, tmp_path):
    base = launch("model.width=32", "data.tokenizer=bpe", "data.vocab_size=300", *OFTEN, root="base")
    assert (base / "tokenizer/tokenizer.json").is_file()
    tuned = launch("init=checkpoint", f"init.path={base}", f"data.path={other}", *OFTEN, root="tuned")
    config = read_run(tuned).summary
    assert summary(base)["stages"][0]["params"]["total"] == config["stages"][0]["params"]["total"]
    assert config["R"]["tasks"] == ["tiny", "other"]
    assert config["R"]["baseline"][0] == pytest.approx(summary(base)["stages"][0]["metrics"]["val/tiny/loss"])


REFUSED = {
    "no run": (["init=checkpoint", "init.path=/nowhere"], "init.path=/nowhere"),
    "no stage": (["init=checkpoint", "init.path={base}/mian"], "'main'"),
    "another width": (["init=checkpoint", "init.path={base}", "model.width=32"], "{base}/stages/main/checkpoints"),
    "another tokenizer": (["init=checkpoint", "init.path={base}", "data.tokenizer=bpe"], "data.tokenizer"),
    "nothing to retain": (["retention=ewc"], "retention=['ewc']"),
    "one stage": (["stages=chain", "stages.chain={one:{}}"], "stages.chain=['one']"),
    "no such key": (["stages=chain", "stages.chain={one:{},two:{mdel:{}}}"], "stages.chain.two.mdel"),
    "its own model": (["stages=chain", "stages.chain={one:{},two:{model:{depth:3}}}"], "stages.chain.two.model"),
    "a method that cannot be": (
        ["stages=chain", "stages.chain={one:{},two:{}}", "retention=ewc", "retention.ewc.samples=0"],
        "samples=0",
    ),
    "an adapter that cannot be": (
        ["stages=chain", "stages.chain={one:{},two:{}}", "adapter=lora", "adapter.rank=0"],
        "adapter.rank=0",
    ),
    "a wrong value": (
        ["stages=chain", "stages.chain={one:{},two:{optimizer:{lr:x}}}"],
        "stages.chain.two: optimizer.lr",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_wrong_stages_and_starts_are_refused_before_training(launch, tmp_path, case, capsys):
    base = launch("trainer.max_steps=2", root="base")
    overrides, value = REFUSED[case]
    overrides = [text.replace("{base}", str(base)) for text in overrides]
    assert main([*TINY, f"root={tmp_path / 'runs'}", *overrides]) == 2
    assert value.replace("{base}", str(base)) in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/*/stages"))


def test_the_config_of_a_stage_is_that_of_the_run_with_its_own_keys():
    overrides = ["root=r", "stages=docs_then_code", "stages.chain.code.data.max_bytes=1M"]
    config, _ = resolve_config(Composer("train").compose(overrides))
    docs, code = stage_configs(config).values()
    assert docs["data"] == {**config["data"], "domain": "docs"}
    assert code["data"] == {**config["data"], "domain": "code", "max_bytes": "1M"}
    assert code["budget"] == {**dict.fromkeys(config["budget"]), "tokens": "1M"}
    assert docs["model"] == code["model"] == config["model"] and code["stages"] is None


@pytest.mark.slow
def test_a_budget_of_the_run_is_the_total_of_a_chain_in_its_own_proportion(launch):
    stages = ["stages=chain", "stages.chain={one:{budget:{tokens:4M}},two:{budget:{tokens:1M}}}"]
    folder = launch(*stages, "budget.tokens=5120", "eval.tokens=512", "callbacks.samples=null")
    one, two = summary(folder)["stages"]
    assert (one["steps"], two["steps"]) == (8, 2), "of 512 tokens each"


@pytest.mark.slow
def test_retention_applies_to_later_stages_and_resumes_bit_identically(launch, once, chain, interrupted):
    plain = once(*chain)
    methods = ["retention=[replay,ewc,l2sp,lwf,agem]", "retention.ewc.samples=4", "retention.replay.fraction=0.25"]
    whole = launch(*chain, *methods, root="whole")
    with interrupted(5):  # in the middle of the second stage
        launch(*chain, *methods, code=130)
    again = launch(*chain, *methods)
    for name, value in weights(whole, "one").items():
        assert torch.equal(weights(plain, "one")[name], value)
        assert torch.equal(weights(again, "two")[name], weights(whole, "two")[name])
    forgotten = [summary(folder)["R"]["matrix"][1][0] for folder in (plain, whole)]
    assert forgotten[1] < forgotten[0]


@pytest.mark.slow
def test_wise_scores_models_between_start_and_end_of_a_stage(launch, chain):
    first, second = summary(launch(*chain, "retention=wise", "retention.wise.alphas=[0,0.5,1]"))["stages"]
    for task in ("tiny", "other"):
        assert second["metrics"][f"wise/0/{task}/loss"] == first["metrics"][f"val/{task}/loss"]
        assert second["metrics"][f"wise/1/{task}/loss"] == second["metrics"][f"val/{task}/loss"]
    assert second["metrics"]["wise/0.5/tiny/loss"] < second["metrics"]["val/tiny/loss"]


@pytest.mark.slow
def test_retention_memory_of_a_stage_with_an_adapter_is_about_its_own_parameters(launch, other):
    """Low-rank factors of two stages have the same names, but they are different parameters."""
    steps = "budget:{steps:4},optimizer:{lr:0.01}"
    stages = f"{{one:{{{steps}}},two:{{data:{{path:{other}}},{steps}}},three:{{{steps}}}}}"
    methods = ["retention=[ewc,wise]", "retention.ewc.samples=4", "retention.wise.alphas=[0,0.5,1]", "adapter=lora"]
    folder = launch("stages=chain", f"stages.chain={stages}", *methods, *OFTEN, "callbacks.ema=null")
    first, second, third = summary(folder)["stages"]
    assert any("watch/tiny/loss" in row for row in second["curve"]), "what comes again later is an earlier task as well"
    assert set(third["start_metrics"]) == {key for key in second["metrics"] if key.startswith("val/")}
    for task in ("tiny", "other"):
        before, after = (stage["metrics"][f"val/{task}/loss"] for stage in (first, second))
        assert second["metrics"][f"wise/0/{task}/loss"] == pytest.approx(before, rel=1e-6)
        assert second["metrics"][f"wise/1/{task}/loss"] == pytest.approx(after, rel=1e-5)
    start, half, end = (
        load_file(folder / f"stages/two/wise-{alpha}/step-00000000/model.safetensors") for alpha in ("0", "0.5", "1")
    )
    assert start.keys() == weights(folder, "one").keys(), "a plain model"
    for name, value in half.items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2)
    state = torch.load(max(folder.glob("stages/three/checkpoints/step-*")) / "state.pt", weights_only=True)
    fisher = state["retention"]["ewc"]["_extra_state"]["fisher"]
    mean = sum(value.sum() for value in fisher.values()) / sum(value.numel() for value in fisher.values())
    assert float(mean) == pytest.approx(1, rel=1e-4), "of this stage's parameters alone"


@pytest.mark.slow
def test_a_damaged_start_is_refused_in_one_line(launch, tmp_path, capsys):
    base = launch("trainer.max_steps=2", root="base")
    for file in base.glob("stages/main/checkpoints/*/model.safetensors"):
        file.write_bytes(b"cut")
    assert main([*TINY, f"root={tmp_path / 'runs'}", "init=checkpoint", f"init.path={base}"]) == 2
    error = capsys.readouterr().err
    assert f"kleiber: {base}" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_task_that_is_trained_again_is_scored_with_its_new_settings(launch):
    """Its rows have the context of the new run, not that of the start point."""
    base = launch("budget.steps=2", *OFTEN, root="base")
    start = ["init=checkpoint", f"init.path={base}", "model.context=128", "budget.steps=1", "optimizer.lr=1e-12"]
    again = launch(*start, *OFTEN, root="again")
    before, now = (summary(folder)["stages"][0]["metrics"]["val/tiny/loss"] for folder in (base, again))
    assert before != pytest.approx(now, abs=1e-4) and summary(again)["R"]["tasks"] == ["tiny"]


@pytest.mark.slow
def test_another_text_of_the_same_name_is_another_task(launch, tmp_path, other, capsys):
    """Scores are stored by name, so the text that is forgotten must not be mistaken for the text that is learned."""
    (tmp_path / "tiny.txt").write_text(other.read_text())
    base = launch("budget.steps=2", *OFTEN, root="base")
    start = ["init=checkpoint", f"init.path={base}", f"data.path={tmp_path / 'tiny.txt'}", "budget.steps=1"]
    record = summary(launch(*start, *OFTEN, root="again"))
    assert record["R"]["tasks"] == ["tiny-before", "tiny"]
    assert record["R"]["baseline"][0] == pytest.approx(summary(base)["stages"][0]["metrics"]["val/tiny/loss"])
    capsys.readouterr()
    stages = f"stages.chain={{one:{{}},two:{{data:{{path:{tmp_path / 'tiny.txt'}}}}}}}"
    launch("stages=chain", stages, "budget.steps=1", root="chain", code=2)
    assert "stages.chain.two" in (error := capsys.readouterr().err) and "'tiny'" in error


@pytest.mark.slow
def test_noise_of_an_upcycled_start_is_the_same_at_every_load(launch):
    base = launch("trainer.max_steps=1", "model.width=32", *OFTEN, root="base")
    experts = ["model=moe", "model.width=32", "model.mlp.granularity=1", "init=upcycle", f"init.path={base}"]
    hidden = load_file(max(base.glob("stages/main/checkpoints/step-*")) / "model.safetensors")
    size = hidden["blocks.0.mlp.gate_up.weight"].shape[0] // 2
    options = [*experts, f"model.mlp.hidden={size}", "init.noise=0.5", "trainer.max_steps=1", "optimizer.lr=1e-12"]
    stage = summary(launch(*options, *OFTEN, root="upcycled"))["stages"][0]
    assert stage["metrics"]["drift/weights"] < 1e-6


@pytest.mark.slow
@pytest.mark.long
def test_a_chain_on_two_ranks_equals_a_chain_in_one_process(launch, chain):
    methods = ["retention=[replay,ewc,l2sp,lwf,agem]", "retention.ewc.samples=4", "retention.replay.fraction=0.25"]
    exact = [*chain, *methods, "trainer=ddp", "trainer.precision=64"]
    alone = launch(*exact, "trainer.devices=1", root="alone")
    pair = launch(*exact, "trainer.devices=2", root="pair")
    for name, value in weights(alone, "two").items():
        torch.testing.assert_close(weights(pair, "two")[name], value, rtol=0, atol=1e-9)
    for row, other_row in zip(summary(alone)["R"]["matrix"], summary(pair)["R"]["matrix"], strict=True):
        assert other_row == pytest.approx(row, abs=1e-9)


@pytest.mark.parametrize(
    ("setting", "planned", "state", "rows"),
    [
        ("auto", 8, None, 8),
        ("auto", 8, {"micro_batch": 4}, 4),
        (2, 2, {"micro_batch": 4}, 2),
        (8, 8, {"micro_batch": 4}, 4),
    ],
)
def test_a_resumed_stage_keeps_a_reduced_micro_batch_and_takes_a_smaller_setting(setting, planned, state, rows):
    assert resumed_micro_batch(setting, planned, state) == rows
