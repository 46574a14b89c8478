"""A run whose data come from the hub, and whose model goes there and back: the commands of a user, over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, fake_hub
from processes import PATIENCE
from small_run import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.process]
LINES = "".join(json.dumps({"text": f"Document {n} tells of {n * n} and of nothing else."}) + "\n" for n in range(400))
SMALL = ("trainer=smoke", "logger=csv", "budget.steps=4", "model.width=16")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


def kleiber(hub: FakeHub, folder: Path, *words: str, cache: str = "cache") -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, with empty caches at first, for which the server is the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KLEIBER_", "PYTEST_"))}
    environment = kept | {
        "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home"),
        "KLEIBER_CACHE": str(folder / cache), "PYTHONPATH": str(REPOSITORY / "src"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "kleiber", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def run_of(folder: Path, name: str) -> Path:
    """The folder of the one run of a sweep."""
    (run,) = (folder / "multirun" / name).glob("*/summary.json")
    return run.parent


def losses(run: Path) -> list[float]:
    """The training losses of a run."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.long
def test_a_model_goes_to_the_hub_and_back_bit_for_bit(hub, tmp_path):
    hub.add("datasets/jane/tales", {"data.jsonl": LINES})
    words = ("data.path=jane/tales", "data.tokenizer=bpe", "data.vocab_size=300", "data=text")
    done = kleiber(hub, tmp_path, "train", "name=first", *SMALL, *words)
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path, "first")
    done = kleiber(hub, tmp_path, "push", str(run), "jane/tiny")
    assert done.returncode == 0, done.stderr
    done = kleiber(hub, tmp_path, "export", str(run), "exported")
    assert done.returncode == 0, done.stderr
    weights = (tmp_path / "exported" / "model.safetensors").read_bytes()
    assert hub.files["jane/tiny", "main", "model.safetensors"] == weights
    starts = {"back": "jane/tiny", "local": "exported"}
    for name, start in starts.items():
        small = [word for word in SMALL if not word.startswith("model.")]
        done = kleiber(
            hub, tmp_path, "train", f"name={name}", *small, "init=hf", f"init.path={start}", *words[:1], "data=text"
        )
        assert done.returncode == 0, done.stderr
    back, local = (losses(run_of(tmp_path, name)) for name in starts)
    assert back == local and back[0] < losses(run)[0]


@pytest.mark.long
def test_the_first_command_works_from_empty_caches_and_afterwards_without_the_hub(hub, tmp_path, shared):
    texts = shared / "data/wikitext"
    files = {str(path.relative_to(texts)): path.read_bytes() for path in texts.rglob("*") if path.is_file()}
    hub.add("datasets/Salesforce/wikitext", files)
    hub.stored = True
    words = ("train", "model=moe", "data=wikitext", *SMALL)
    done = kleiber(hub, tmp_path, *words, "name=first")
    assert done.returncode == 0 and hub.downloads(), done.stderr
    hub.gone = True
    done = kleiber(hub, tmp_path, *words, "name=second", cache="other")
    assert done.returncode == 0, done.stderr
    assert losses(run_of(tmp_path, "first")) == losses(run_of(tmp_path, "second"))
    assert "not reachable" in done.stderr + done.stdout
