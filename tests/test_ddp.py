"""Two ranks are one run: one folder, one console, and in fp64 the losses of one process."""

import json
from pathlib import Path

import pytest

OPTIONS = [
    "trainer=ddp", "trainer.precision=64", "model.depth=1", "model.context=64", "data.max_bytes=20000",
    "budget.steps=20", "eval.tokens=1024", "callbacks.log.every=1", "batch.micro=3",
]  # fmt: skip


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in found if len(row) > 3]


@pytest.mark.process
@pytest.mark.parametrize("model", ["gpt", "moe"])
def test_two_ranks_give_the_numbers_of_one_process(launch, process, tmp_path, model):
    alone = launch(f"model={model}", *OPTIONS, "trainer.devices=1", root="alone")
    pair = process(f"model={model}", *OPTIONS, "trainer.devices=2", root="pair")
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
