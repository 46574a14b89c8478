"""Runs with DP-SGD: a resumed one equals an unbroken one, its epsilon is told everywhere, and it forgets canaries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import tables
import torch
from safetensors.torch import load_file
from topic_choices import skip_without_topics

from kleiber.launch.main import main
from kleiber.optimizers.privacy import PrivateSteps
from kleiber.types import Json

pytestmark = pytest.mark.slow
PRIVATE = ["privacy=dp_sgd", "privacy.noise_multiplier=0.8", "budget.steps=8", "callbacks.checkpoints.every=4"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / stage_of(folder)["checkpoint"] / "model.safetensors")


def stage_of(folder: Path) -> Json:
    return json.loads((folder / "summary.json").read_text())["stages"][0]


def test_a_resumed_run_equals_an_unbroken_one(
    launch: Callable[..., Path], interrupted: Callable[[int], AbstractContextManager]
) -> None:
    whole = launch(*PRIVATE, root="whole")
    with interrupted(1):
        launch(*PRIVATE, root="broken", code=130)
    broken = launch(*PRIVATE, root="broken")
    assert len(weights(whole)) > 3
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(broken).values(), strict=True))
    assert stage_of(broken)["privacy"] == stage_of(whole)["privacy"]
    other = launch(*PRIVATE, "seed=1", root="other")
    assert not torch.equal(weights(other)["embedding.weight"], weights(whole)["embedding.weight"])


def test_a_step_that_draws_no_sample_is_made_and_has_no_loss(launch: Callable[..., Path]) -> None:
    """A step of one expected row draws none in 37 % of the cases."""
    folder = launch(*PRIVATE, "batch.tokens=64", "callbacks.log.every=1")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 8 and 0 < sum(map(math.isnan, losses)) < 8 and 0.0 not in losses
    assert all(row["train/grad_norm"] > 0 for row in rows if "train/loss" in row), "the noise"
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


def test_epsilon_is_told_in_the_summary_the_banner_and_the_log(
    launch: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = launch(*PRIVATE)
    privacy, metrics = stage_of(folder)["privacy"], stage_of(folder)["metrics"]
    steps = PrivateSteps(0.8, privacy["clip"], privacy["delta"], privacy["sample_rate"], privacy["samples"])
    assert privacy["epsilon"] == metrics["privacy/epsilon"] == steps.epsilon(8) and privacy["steps"] == 8
    assert steps.describe(8) in capsys.readouterr().err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [row["train/epsilon"] for row in rows if "train/epsilon" in row]
    assert logged[-1] == pytest.approx(steps.epsilon(8), rel=1e-6)
    stopped = launch(*PRIVATE, "trainer.max_steps=5", root="stopped")
    assert stage_of(stopped)["privacy"]["epsilon"] == steps.epsilon(5)


def test_pairs_of_answers_are_private_samples(launch: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "good" * (i % 3 + 1), "rejected": "bad"} for i in range(20)]
    data = ["data=preference", f"data.path={tables.folder(tmp_path / 'pairs', train=rows, validation=rows[:4])}"]
    folder = launch(*PRIVATE, "objective=dpo", *data, "privacy.delta=0.01")
    privacy, metrics = stage_of(folder)["privacy"], stage_of(folder)["metrics"]
    assert privacy["samples"] == 20 and math.isfinite(metrics["privacy/epsilon"])
    assert math.isfinite(metrics["val/pairs/loss"])


@pytest.mark.long
def test_a_small_epsilon_brings_the_exposure_of_canaries_to_chance(tmp_path: Path) -> None:
    skip_without_topics("data=canaries")
    overrides = [
        "data=canaries", "data.max_bytes=100K", "data.repetitions=[0,100]", "data.count=6", "data.digits=3",
        "model.width=32", "model.context=128", "batch.tokens=4096", "budget.tokens=250K", "evals=[memorization]",
        "evals.memorization.samples=16", "optimizer.lr=0.02", "trainer.threads=1", "logger=csv", "eval.tokens=2048",
        "callbacks.samples=null", f"root={tmp_path}",
    ]  # fmt: skip
    exposures = {}
    for name, settings in {"private": ["privacy=dp_sgd", "privacy.epsilon=1"], "plain": ["batch.tokens=512"]}.items():
        assert main([*overrides, *settings, f"name={name}"]) == 0
        (path,) = tmp_path.glob(f"{name}/*/evals/memorization.json")
        exposures[name] = json.loads(path.read_text())["scores"]["canaries"]["exposure/100"]["value"]
    assert exposures["private"] < 3 < 8 < exposures["plain"]
