"""A policy is trained bit for bit the same after an interruption, in micro-batches and on ranks; bad rewards end it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shared_ranks import fork_ranks
from tables import folder as table_folder

from kleiber.launch import ranks
from kleiber.launch.main import main
from kleiber.launch.process import main as run_process
from kleiber.objectives.policy_loss import PolicyLoss

verifiers = pytest.importorskip("kleiber_topics.rewards.verifiers")

RUN = [
    "trainer=smoke", "data=verifiable/sorting", "data.problems=40", "data.held_out=8", "data.lengths=[2]",
    "objective=grpo", "objective.group=4", "objective.reward={length: 1}", "model.width=32", "model.num_heads=2",
    "model.depth=1", "model.context=32", "batch.tokens=512", "trainer.threads=1", "logger=csv",
    "callbacks.samples=null", "callbacks.log.every=1", "callbacks.checkpoints.every=1", "budget.steps=6",
    "optimizer.lr=0.01", "eval.every_steps=0",
]  # fmt: skip
EXACT = ["trainer.precision=64"]


@pytest.fixture
def train(tmp_path: Path, cache_dir: Path) -> Callable[..., Path]:
    """Trains a policy in this process and returns its folder, or the root if it is refused."""

    def run(*overrides: str, root: str = "runs", code: int = 0) -> Path:
        before = set((tmp_path / root).glob("*/*"))
        chosen = {override.partition("=")[0]: override for override in (*RUN, *overrides)}
        if "data=builtin" in overrides:
            chosen = {key: override for key, override in chosen.items() if not key.startswith("data.")}
        assert main([*chosen.values(), f"root={tmp_path / root}"]) == code
        made = set((tmp_path / root).glob("*/*"))
        return next(iter(made - before or made), tmp_path / root)

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max(folder.glob("stages/main/checkpoints/*/model.safetensors")))


def rows(folder: Path) -> list[dict[str, float]]:
    """The logged rows of steps, without speeds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if "train/reward" in row]


def assert_equal(folder: Path, other: Path) -> None:
    expected = weights(folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(other).items())


def test_a_step_reports_rewards_divergence_and_lengths_and_changes_the_weights(train):
    logged = rows(train("objective.kl=0.1", "objective.epochs=2"))
    names = {"reward", "kl", "entropy", "length", "cut", "degenerate", "clipped", "loss", "grad_norm"}
    assert len(logged) == 6 and names <= {name.removeprefix("train/") for name in logged[0]}
    assert [row["train/reward"] for row in logged[::2]] == [row["train/reward"] for row in logged[1::2]], "two steps"
    assert logged[0]["train/kl"] == pytest.approx(0, abs=1e-5) and logged[-1]["train/kl"] > 1e-4
    assert all(row["train/grad_norm"] > 0 and 0 <= row["train/cut"] <= 1 for row in logged)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 4])
def test_an_interrupted_run_is_the_same_within_the_epochs_of_a_batch_and_between_batches(train, interrupted, step):
    options = ["objective.epochs=3", "objective.kl=0.1", "objective.kl_estimator=k1"]
    whole = train(*options, root="whole")
    with interrupted(step):
        train(*options, code=130)
    again = train(*options)
    assert_equal(whole, again)
    assert rows(whole) == [{**row} for row in {row["step"]: row for row in rows(again)}.values()]


@pytest.mark.slow
def test_micro_batches_and_two_ranks_give_the_numbers_of_one_process(train, monkeypatch, tmp_path):
    options = [*EXACT, "objective.epochs=2", "objective.kl=0.1", "objective.loss=dr_grpo"]
    alone = rows(train(*options, root="alone"))
    small = rows(train(*options, "batch.micro=1", root="small"))
    monkeypatch.setattr(
        ranks, "run_fresh", lambda folder, devices: fork_ranks(devices, lambda _: run_process([str(folder)]))
    )
    pair = rows(train(*options, "trainer=ddp", "trainer.devices=2", "trainer.max_steps=20", root="pair"))
    for other in (small, pair):
        assert len(other) == len(alone) == 6
        for row, expected in zip(other, alone, strict=True):
            assert row == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plain", "changed"),
    [
        ([], "objective.group=8"),
        ([], "objective.tokens=2"),
        ([], "objective.loss=dr_grpo"),
        ([], "objective.loss=reinforce"),
        ([], "objective.reward={sorting: 1, length: 2}"),
        ([], "objective.epochs=2"),
        ([], "objective.kl=0.5"),
        (["objective.kl=0.5"], "objective.kl_estimator=k1"),
        (["objective.epochs=2"], "objective.clip=0.0001"),
    ],
)
def test_every_setting_has_an_effect(train, plain, changed):
    settings = [key for key in plain if not changed.startswith(key.partition("=")[0] + "=")]
    without, with_it = train(*plain, root="plain"), train(*settings, changed, root="changed")
    expected = weights(without)
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in weights(with_it).items())


@pytest.mark.slow
def test_rewards_rise_and_flops_count_the_answers(train, tmp_path):
    logged = rows(train("budget.steps=40", "trainer.max_steps=40", "callbacks.checkpoints.every=0", root="long"))
    rewards = [row["train/reward"] for row in logged]
    assert sum(rewards[-5:]) > 1.1 * sum(rewards[:5])
    (folder,) = (tmp_path / "long").glob("*/*")
    flops = json.loads((folder / "summary.json").read_text())["stages"][0]["flops"]
    assert flops["executed"] > 1.6 * flops["model"], "two forward passes more for three times a forward pass"


def scores_of(value: object) -> Callable[..., object]:
    def reward(prompts, answers, rows):
        if isinstance(value, Exception):
            raise value
        return [value] * (len(answers) - (value == 1.0))

    return reward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (ZeroDivisionError("no words"), "ZeroDivisionError: no words"), (float("nan"), "is nan"),
        (1.0, "returned 15 scores for 16 answers"),
    ],
)  # fmt: skip
def test_a_reward_that_fails_ends_the_run_with_a_checkpoint_and_the_prompt(train, monkeypatch, capsys, value, told):
    calls, plain = [], verifiers.length

    def third(prompts, answers, rows):
        calls.append(1)
        return (plain if len(calls) < 3 else scores_of(value))(prompts, answers, rows)

    monkeypatch.setattr(verifiers, "length", third)
    folder = train("callbacks.checkpoints.every=0", code=1)
    err = capsys.readouterr().err
    assert told in err and "objective.reward=length, prompt '" in err and "Traceback" not in err
    assert [path.name for path in folder.glob("stages/main/checkpoints/*")] == ["step-00000002"]
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    monkeypatch.setattr(verifiers, "length", plain)
    assert_equal(train("callbacks.checkpoints.every=0"), train("callbacks.checkpoints.every=0", root="whole"))


REFUSED = {
    "group": (["objective.group=1"], ["objective.group=1", ">= 2"]),
    "packed": (["data.pack=true"], ["objective=grpo", "data.pack=false"]),
    "text": (["data=builtin", "objective.reward=length"], ["objective=grpo", "data=verifiable/arithmetic"]),
    "unknown": (["objective.reward=applause"], ["objective.reward=applause", "arithmetic"]),
    "path": (["objective.reward=model"], ["objective.reward_path"]),
    "no model": (["objective.reward_path=nowhere"], ["objective.reward_path", "objective.reward"]),
    "room": (["objective.tokens=32"], ["objective.tokens=32", "model.context=32"]),
    "batch": (["batch.tokens=480"], ["batch.tokens=480", "512"]),
    "replayed": (["retention=replay"], ["retention=replay", "objective=grpo"]),
    "sharded": (["trainer=fsdp", "trainer.devices=1"], ["trainer=fsdp", "objective=grpo"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_training(train, capsys, case):
    overrides, texts = REFUSED[case]
    train(*overrides, code=2)
    err = capsys.readouterr().err
    assert all(text in err for text in texts), err


@pytest.mark.slow
def test_a_reward_model_scores_answers_and_one_with_another_tokenizer_is_refused(train, tmp_path, capsys):
    pairs = [{"prompt": f"{i}=", "chosen": "9" * (i % 4 + 2), "rejected": "1" * (i % 3 + 1)} for i in range(30)]
    data = table_folder(tmp_path / "pairs", train=pairs, validation=pairs[:8])
    model = [*RUN[8:11], "model.context=64", "batch.tokens=512", "trainer=smoke", "trainer.threads=1", "logger=csv"]
    base = ["data=preference", f"data.path={data}", "objective=reward", "budget.steps=10", "callbacks.samples=null"]
    for name, tokenizer in (("scorer", "bytes"), ("other", "bpe")):
        settings = [f"data.tokenizer={tokenizer}", f"root={tmp_path / name}"]
        assert main([*base, *model, *settings, *(["data.vocab_size=272"] if tokenizer == "bpe" else [])]) == 0
    (scorer,), (other,) = ((tmp_path / name).glob("*/*") for name in ("scorer", "other"))
    chosen = "objective.reward={model: 1, length: 0.1}"
    logged = rows(train(chosen, f"objective.reward_path={scorer}", "budget.steps=3"))
    assert len(logged) == 3 and len({row["train/reward"] for row in logged}) == 3
    summary = next((tmp_path / "runs").glob("*/*/summary.json"))
    assert "reward_path" in json.loads(summary.read_text())["inputs"]
    capsys.readouterr()
    train(chosen, f"objective.reward_path={other}", code=2)
    assert "data.tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_the_divergence_of_a_resumed_run_is_that_from_its_start(train, interrupted):
    """The weights of the start are in the folder; the checkpoint has others."""
    whole = rows(train("objective.kl=0.5", root="whole"))
    with interrupted(3):
        train("objective.kl=0.5", code=130)
    folder = train("objective.kl=0.5")
    assert rows(folder)[-1]["train/kl"] == whole[-1]["train/kl"] > 0
    settings = yaml.safe_load((folder / "config.yaml").read_text())["objective"]
    assert PolicyLoss(settings["loss"], 0.2, 0.5, "k3", 4).kl == settings["kl"]
