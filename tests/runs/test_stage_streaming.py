"""A run on streamed text equals that on prepared text in the same order, and goes on bit-identically."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from small_run import REPOSITORY

from kleiber.data.streaming import Place, StreamedText
from kleiber.records.catalog import read_run

OFTEN = ["callbacks.checkpoints.every=4", "callbacks.log.every=1", "callbacks.samples=null", "data.max_bytes=null"]
TOKENS = 64 * 2000


@pytest.fixture
def streamed(tmp_path):
    """Overrides of a run on streamed text, whose buffer has the number of windows of an epoch of prepared text."""
    home = tmp_path / "text"
    home.mkdir()
    text = (REPOSITORY / "src/kleiber/data/streaming.py").read_text()
    documents = [text[start : start + 255] for start in range(0, 4000, 9)][:500]
    left = TOKENS - sum(len(document.encode()) + 1 for document in documents)
    documents += ["x" * 255] * (left // 256) + ["x" * (left % 256)]
    for split, rows in (("train", documents), ("validation", documents[:20])):
        (home / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    streaming = ["data.streaming=true", f"data.shuffle_buffer={TOKENS - 64}"]
    return [f"data.path={home}", "data.splits=files", *OFTEN, *streaming]


def stage(folder):
    return read_run(folder).summary["stages"][0]


def weights(folder):
    return load_file(folder / stage(folder)["checkpoint"] / "model.safetensors")


@pytest.mark.slow
def test_streamed_text_gives_the_losses_of_prepared_text_and_a_killed_run_resumes(
    launch, streamed, interrupted, monkeypatch
):
    prepared = stage(launch(*streamed[:-2], root="prepared"))
    monkeypatch.setattr("kleiber.data.blocks.BLOCK_BYTES", 2000)
    whole = launch(*streamed, root="whole")
    assert stage(whole)["curve"] == prepared["curve"] and stage(whole)["metrics"] == prepared["metrics"]
    assert stage(whole)["data"]["tokens"] is None and stage(whole)["unique_tokens"] == 20 * 512
    small = [*streamed[:-1], "data.shuffle_buffer=2000"]
    unbroken = launch(*small, root="unbroken")
    places, blocks = [], StreamedText.blocks
    monkeypatch.setattr(StreamedText, "blocks", lambda *args: places.append(args[2]) or blocks(*args))
    with interrupted(4):
        launch(*small, code=130)
    again = launch(*small)
    assert places[0] == Place() and places[1].block > 0, "what was read before the checkpoint is not read again"
    assert stage(again)["curve"] == stage(unbroken)["curve"]
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(unbroken).items())


@pytest.mark.slow
@pytest.mark.long
def test_two_ranks_read_the_batches_of_one(launch, streamed, process, tmp_path):
    options = [*streamed[:-1], "data.shuffle_buffer=2000", "trainer=ddp", "trainer.precision=64", "budget.steps=10"]
    alone = launch(*options, "trainer.devices=1", root="alone")
    pair = process(*options, "trainer.devices=2", root="pair")
    _, errors = pair.communicate()
    assert pair.returncode == 0, errors
    (folder,) = (tmp_path / "pair").glob("*/*")
    for row, expected in zip(stage(folder)["curve"], stage(alone)["curve"], strict=True):
        assert row == pytest.approx(expected, abs=1e-9)
    assert stage(folder)["metrics"] == pytest.approx(stage(alone)["metrics"], abs=1e-9)
