"""Runs with DP-SGD: a resumed one equals an unbroken one, its epsilon is told everywhere, and it forgets canaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_run import TINY

from kleiber.launch.main import main
from kleiber.optimizers.privacy import PrivateSteps
from kleiber.training import checkpoint

pytestmark = pytest.mark.slow
PRIVATE = [*TINY, "privacy=dp_sgd", "privacy.noise_multiplier=0.8", "budget.steps=8"]


def run(root: Path, *overrides: str) -> Path:
    assert main([*PRIVATE, *overrides, f"root={root}"]) == 0
    (folder,) = root.glob("runs/*")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint.steps(folder / "stages/main/checkpoints")[0] / "model.safetensors")


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    saved = ["callbacks.checkpoints.every=4"]
    broken = tmp_path / "broken"
    assert main([*PRIVATE, *saved, "trainer.max_steps=5", f"root={broken}"]) == 0
    (folder,) = broken.glob("runs/*")
    record = json.loads((folder / "summary.json").read_text())["stages"][0]
    assert record["privacy"]["steps"] == record["steps"] == 5
    assert main([*PRIVATE, *saved, f"root={broken}", f"resume={folder}"]) == 0
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(folder).values(), strict=True))
    assert json.loads((folder / "summary.json").read_text())["stages"][0]["privacy"]["steps"] == 8


def test_epsilon_is_told_in_the_summary_the_banner_and_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path)
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    privacy = stage["privacy"]
    steps = PrivateSteps(0.8, privacy["clip"], privacy["delta"], privacy["sample_rate"], privacy["samples"])
    assert privacy["epsilon"] == stage["metrics"]["privacy/epsilon"] == steps.epsilon(8)
    assert steps.describe(8) in capsys.readouterr().err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [row["train/epsilon"] for row in rows if "train/epsilon" in row]
    assert told[-1] == pytest.approx(steps.epsilon(8), rel=1e-6)


def test_a_small_epsilon_brings_the_exposure_of_canaries_to_chance(tmp_path: Path) -> None:
    overrides = [
        "data=canaries", "data.max_bytes=150K", "data.repetitions=[0,100]", "data.count=6", "data.digits=3",
        "model.width=32", "model.context=128", "batch.tokens=4096", "budget.tokens=170K", "evals=[memorization]",
        "evals.memorization.samples=16", "optimizer.lr=0.02", "trainer.threads=1", "logger=csv", "eval.tokens=2048",
        "callbacks.samples=null", f"root={tmp_path}",
    ]  # fmt: skip
    exposures = {}
    for name, settings in {"private": ["privacy=dp_sgd", "privacy.epsilon=1"], "plain": ["batch.tokens=512"]}.items():
        assert main([*overrides, *settings, f"name={name}"]) == 0
        (path,) = tmp_path.glob(f"{name}/*/evals/memorization.json")
        exposures[name] = json.loads(path.read_text())["scores"]["canaries"]["exposure/100"]["value"]
    assert exposures["private"] < 3 < 8 < exposures["plain"]
