"""Two ranks are one run: one folder, one console, and in fp64 the losses of one process."""

import json
from pathlib import Path

import pytest
from wandb_records import read

OPTIONS = [
    "trainer=ddp", "trainer.precision=64", "model.depth=1", "model.context=64", "data.max_bytes=20000",
    "budget.steps=20", "eval.tokens=1024", "callbacks.log.every=1", "batch.micro=3",
]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in found if len(row) > 3]


@pytest.mark.process
@pytest.mark.parametrize("model", [pytest.param("gpt", marks=pytest.mark.slow), "moe"])
def test_two_ranks_give_the_numbers_of_one_process(launch, process, tmp_path, model):
    alone = launch(f"model={model}", *OPTIONS, "trainer.devices=1", root="alone")
    mirror = ["logger=wandb", "logger.wandb.mode=offline"]
    pair = process(f"model={model}", *OPTIONS, "trainer.devices=2", *mirror, root="pair")
    out, err = pair.communicate(timeout=150)
    assert pair.returncode == 0, err
    (folder,) = (tmp_path / "pair").glob("*/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["machine"]["world_size"] == 2
    assert out.count("bits/byte") == 1, "one console"
    assert "arning" not in out + err
    expected, found = rows(alone), rows(folder)
    assert len(expected) == len(found) >= 20
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, abs=1e-9)
    validation = json.loads((alone / "summary.json").read_text())["stages"][0]["metrics"]
    assert summary["stages"][0]["metrics"] == pytest.approx(validation, abs=1e-9)
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    mirrored = read(record)
    assert mirrored["exit_code"] == 0 and mirrored["run"]["id"] == summary["run_id"]
    losses = [row["train/loss"] for row in mirrored["history"] if "train/loss" in row]
    assert losses == pytest.approx([row["train/loss"] for row in expected if "train/loss" in row], abs=1e-9)


@pytest.mark.slow
@pytest.mark.process
def test_a_run_goes_on_with_another_number_of_ranks(launch, process, interrupted, tmp_path):
    """FAULTS 45: the position is the number of optimizer steps, and the order of samples knows no ranks."""
    alone = launch(*OPTIONS, "trainer.devices=1", root="alone")
    with interrupted(4):
        launch(*OPTIONS, "trainer.devices=1", root="pair", code=130)
    pair = process(*OPTIONS, "trainer.devices=2", root="pair")
    _, err = pair.communicate(timeout=150)
    assert pair.returncode == 0 and "resuming at step" in err, err
    (folder,) = (tmp_path / "pair").glob("*/*")
    for one, two in zip(rows(alone), rows(folder), strict=True):
        assert two == pytest.approx(one, abs=1e-9)
