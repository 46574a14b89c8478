"""Stages in a chain, and start points: what is handed over, what is scored, what is counted, what is refused."""

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

SCHEMA = json.loads((Path(kleiber.__file__).parent / "records" / "summary.schema.json").read_text())
OFTEN = ["callbacks.log.every=1", "callbacks.checkpoints.every=4", "callbacks.samples=null"]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Text that is unlike the first one's."""
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


def test_a_chain_hands_its_weights_on_and_scores_every_task_after_every_stage(launch, chain, capsys):
    folder = launch(*chain)
    record = summary(folder)
    one, two = record["stages"]
    assert (one["parent"], two["parent"]) == (None, "one")
    assert (one["tasks"], two["tasks"]) == (["tiny"], ["other"])
    assert [stage["lr"] for stage in (one, two)] == [0.02, 0.01]
    assert two["tokens"] == 512 * (12 + 9) and two["steps"] == 9
    assert two["flops"]["model"] == pytest.approx(one["flops"]["model"] / 12 * 21)
    assert two["start_metrics"] == one["metrics"]
    scores = record["R"]
    assert (scores["tasks"], scores["stages"]) == (["tiny", "other"], ["one", "two"])
    (a, b), (c, d) = scores["matrix"]
    assert a < c and d < b, "the second stage learns its task and forgets the first"
    assert a < scores["baseline"][0] and [c, d] == [two["metrics"][f"val/{t}/loss"] for t in ("tiny", "other")]
    watched = {row["step"] for row in two["curve"] if "watch/tiny/loss" in row}
    assert watched >= {0, 1, 2, 4, 8, 9}
    assert {row["step"] for row in two["curve"] if "watch/other/loss" in row} == {1, 2, 4, 8}, (
        "every task, not to forget"
    )
    assert two["evaluation_seconds"] > 0
    before, after = weights(folder, "one"), weights(folder, "two")
    far = sum((after[name] - before[name]).double().square().sum() for name in before).sqrt()
    size = sum(before[name].double().square().sum() for name in before).sqrt()
    assert two["metrics"]["drift/weights"] == pytest.approx(float(far / size), rel=1e-6)
    assert two["metrics"]["drift/tiny/untrained"] == pytest.approx(scores["baseline"][0], rel=1e-5)
    assert two["metrics"]["drift/tiny/kl"] > 0 and not [key for key in one["metrics"] if key.startswith("drift")]
    assert "after each stage (loss)" in capsys.readouterr().out
    (row,) = frame([read_run(folder)]).to_dict("records")
    assert row["loss"] == d and row["trunk"] == folder.name, "one point: the end of the chain, of its own task"


def test_the_first_stage_of_a_chain_is_the_run_of_that_config(launch, once, chain):
    """So F is measured against the very model that an ordinary run gives."""
    alone = launch("budget.steps=12", *OFTEN, root="alone")
    folder = once(*chain)
    for name, value in weights(alone, "main").items():
        assert torch.equal(weights(folder, "one")[name], value)


def test_a_chain_and_a_run_from_its_checkpoint_are_the_same(launch, once, chain, other):
    folder = once(*chain)
    start = ["init=checkpoint", f"init.path={folder}/one", f"data.path={other}", "budget.steps=9", "optimizer.lr=0.01"]
    alone = launch(*start, *OFTEN, root="alone")
    for name, value in weights(folder, "two").items():
        assert torch.equal(weights(alone, "main")[name], value)
    told, chained = summary(alone)["R"], summary(folder)["R"]
    assert told["matrix"][0] == chained["matrix"][1] and told["baseline"] == chained["matrix"][0]


@pytest.mark.parametrize("checkpoints", [pytest.param(1, marks=pytest.mark.slow), 2, 4])
def test_a_chain_that_is_stopped_anywhere_ends_the_same(launch, once, chain, interrupted, checkpoints):
    whole = summary(once(*chain))
    with interrupted(checkpoints):
        launch(*chain, code=130)
    again = launch(*chain)
    assert summary(again)["R"] == whole["R"]
    kept = ("metrics", "start_metrics", "curve", "tokens", "flops")
    for first, second in zip(summary(again)["stages"], whole["stages"], strict=True):
        assert [first[k] for k in kept] == [second[k] for k in kept]


def test_the_model_and_the_tokenizer_come_with_the_weights(launch, other, tmp_path):
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


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_stages_and_starts_are_refused_before_training(launch, tmp_path, case, capsys):
    base = launch("trainer.max_steps=2", root="base")
    overrides, value = REFUSED[case]
    overrides = [text.replace("{base}", str(base)) for text in overrides]
    assert main([*TINY, f"root={tmp_path / 'runs'}", *overrides]) == 2
    assert value.replace("{base}", str(base)) in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/*/stages"))


def test_a_stage_is_the_run_with_its_own_nodes_in_place():
    overrides = ["root=r", "stages=docs_then_code", "budget.steps=5", "stages.chain.code.data.max_bytes=1M"]
    config, _ = resolve_config(Composer("train").compose(overrides))
    docs, code = stage_configs(config).values()
    assert docs["data"] == {**config["data"], "domain": "docs"}
    assert code["data"] == {**config["data"], "domain": "code", "max_bytes": "1M"}
    assert code["budget"] == {"tokens": "1M", "flops": None, "ratio": None, "steps": None}
    assert docs["model"] == code["model"] == config["model"] and code["stages"] is None


def test_retention_works_on_later_stages_alone_and_resumes_to_the_bit(launch, once, chain, interrupted):
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


def test_the_line_between_start_and_end_is_scored_beside_the_end(launch, chain):
    one, two = summary(launch(*chain, "retention=wise", "retention.wise.alphas=[0,0.5,1]"))["stages"]
    for task in ("tiny", "other"):
        assert two["metrics"][f"wise/0/{task}/loss"] == one["metrics"][f"val/{task}/loss"]
        assert two["metrics"][f"wise/1/{task}/loss"] == two["metrics"][f"val/{task}/loss"]
    assert two["metrics"]["wise/0.5/tiny/loss"] < two["metrics"]["val/tiny/loss"]


def test_an_adapted_stage_remembers_its_own_parameters_and_ends_on_a_line_of_weights(launch, other):
    """Low-rank factors of two stages have the same names and nothing else in common."""
    steps = "budget:{steps:4},optimizer:{lr:0.01}"
    stages = f"{{one:{{{steps}}},two:{{data:{{path:{other}}},{steps}}},three:{{{steps}}}}}"
    methods = ["retention=[ewc,wise]", "retention.ewc.samples=4", "retention.wise.alphas=[0,0.5,1]", "adapter=lora"]
    folder = launch("stages=chain", f"stages.chain={stages}", *methods, *OFTEN, "callbacks.ema=null")
    one, two, three = summary(folder)["stages"]
    assert any("watch/tiny/loss" in row for row in two["curve"]), "what comes again later is an earlier task as well"
    assert set(three["start_metrics"]) == {key for key in two["metrics"] if key.startswith("val/")}
    for task in ("tiny", "other"):
        assert two["metrics"][f"wise/0/{task}/loss"] == pytest.approx(one["metrics"][f"val/{task}/loss"], rel=1e-6)
        assert two["metrics"][f"wise/1/{task}/loss"] == pytest.approx(two["metrics"][f"val/{task}/loss"], rel=1e-5)
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


def test_a_damaged_start_is_refused_in_one_line(launch, tmp_path, capsys):
    base = launch("trainer.max_steps=2", root="base")
    for file in base.glob("stages/main/checkpoints/*/model.safetensors"):
        file.write_bytes(b"cut")
    assert main([*TINY, f"root={tmp_path / 'runs'}", "init=checkpoint", f"init.path={base}"]) == 2
    error = capsys.readouterr().err
    assert f"kleiber: {base}" in error and "Traceback" not in error


def test_a_task_that_comes_again_is_scored_as_it_is_now(launch):
    """And not in rows as long as those of the start point."""
    base = launch("budget.steps=2", *OFTEN, root="base")
    start = ["init=checkpoint", f"init.path={base}", "model.context=128", "budget.steps=1", "optimizer.lr=1e-12"]
    again = launch(*start, *OFTEN, root="again")
    before, now = (summary(folder)["stages"][0]["metrics"]["val/tiny/loss"] for folder in (base, again))
    assert before != pytest.approx(now, abs=1e-4) and summary(again)["R"]["tasks"] == ["tiny"]


def test_another_text_of_the_same_name_is_another_task(launch, tmp_path, other, capsys):
    """Scores are kept by name: the text that is forgotten must not pass for the one that is learned."""
    (tmp_path / "tiny.txt").write_text(other.read_text())
    base = launch("budget.steps=2", *OFTEN, root="base")
    start = ["init=checkpoint", f"init.path={base}", f"data.path={tmp_path / 'tiny.txt'}", "budget.steps=1"]
    told = summary(launch(*start, *OFTEN, root="again"))
    assert told["R"]["tasks"] == ["tiny-before", "tiny"]
    assert told["R"]["baseline"][0] == pytest.approx(summary(base)["stages"][0]["metrics"]["val/tiny/loss"])
    capsys.readouterr()
    stages = f"stages.chain={{one:{{}},two:{{data:{{path:{tmp_path / 'tiny.txt'}}}}}}}"
    launch("stages=chain", stages, "budget.steps=1", root="chain", code=2)
    assert "stages.chain.two: its text 'tiny'" in capsys.readouterr().err


def test_noise_of_an_upcycled_start_is_the_same_however_often_it_is_drawn(launch):
    base = launch("trainer.max_steps=1", "model.width=32", *OFTEN, root="base")
    experts = ["model=moe", "model.width=32", "model.mlp.granularity=1", "init=upcycle", f"init.path={base}"]
    hidden = load_file(max(base.glob("stages/main/checkpoints/step-*")) / "model.safetensors")
    size = hidden["blocks.0.mlp.gate_up.weight"].shape[0] // 2
    made = [*experts, f"model.mlp.hidden={size}", "init.noise=0.5", "trainer.max_steps=1", "optimizer.lr=1e-12"]
    found = summary(launch(*made, *OFTEN, root="made"))["stages"][0]
    assert found["metrics"]["drift/weights"] < 1e-6


@pytest.mark.slow
def test_two_ranks_train_a_chain_as_one_process_does(launch, chain):
    methods = ["retention=[replay,ewc,l2sp,lwf,agem]", "retention.ewc.samples=4", "retention.replay.fraction=0.25"]
    exact = [*chain, *methods, "trainer=ddp", "trainer.precision=64"]
    alone = launch(*exact, "trainer.devices=1", root="alone")
    pair = launch(*exact, "trainer.devices=2", root="pair")
    for name, value in weights(alone, "two").items():
        torch.testing.assert_close(weights(pair, "two")[name], value, rtol=0, atol=1e-9)
    for one, two in zip(summary(alone)["R"]["matrix"], summary(pair)["R"]["matrix"], strict=True):
        assert two == pytest.approx(one, abs=1e-9)
