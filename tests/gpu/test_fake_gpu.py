"""Steps on a fake CUDA device (see `fake/harness.py`): every choice works there, and the host waits where it must."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import REPOSITORY
from torch.utils.cpp_extension import include_paths

pytestmark = [pytest.mark.fakegpu, pytest.mark.slow, pytest.mark.long]
FAKE = Path(__file__).with_name("fake")

NUMBERS = "training/step.py:read_numbers"
SELECTED = "the number of selected rows, which sets the size of what follows"
WAITS = {  # how often the host may wait in a step, and for what
    NUMBERS: (1, "targets, loss and norm of the gradient, which decide whether the step is made"),
    "nn/loss.py:cross_entropy": (1, SELECTED),
    "nn/loss.py:kl_divergence": (1, SELECTED),
    "objectives/mlm.py:__call__": (1, SELECTED),
    "objectives/dpo.py:row_log_probs": (2, SELECTED + "; of KTO, of both models"),
    "bias/equalized.py:draw": (1, "the numbers of the samples, of which one of each pair is drawn"),
}
RETENTION = 2  # the number of targets, and the norm after a method has changed the gradients
COMPILED = ("model/gpt", "model/moe", "model/attention/delta")
PLAIN = ("model/gpt", "model/moe", "model/attention/delta", "model/hf", "optimizer/muon", "recomputed", "micro mixture")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the harness found of each combination, by name."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++, with which a CUDA device is built that computes nothing")
    folder = tmp_path_factory.mktemp("fake")
    library, file, torch_folder = folder / "libdevice.so", folder / "rows.jsonl", Path(torch.__file__).parent
    included = [f"-I{path}" for path in include_paths()]
    build = [compiler, "-shared", "-fPIC", "-w", "-std=c++17", FAKE / "device.cpp", "-o", library, *included]
    subprocess.run([*build, f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "KLEIBER_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, FAKE / "harness.py", library, file], check=True, env=variables, cwd=folder)
    return {row["choice"]: row for row in map(json.loads, file.read_text().splitlines())}


def test_every_combination_makes_its_steps_on_the_device(rows):
    assert len(rows) >= 66
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}


def test_the_host_waits_once_in_a_step_of_pre_training(rows):
    assert {name: rows[name]["waits"] for name in PLAIN} == {name: {NUMBERS: 1} for name in PLAIN}


def test_the_host_waits_only_for_what_it_needs(rows):
    extra = {}
    for name, row in rows.items():
        allowed = {place: number for place, (number, _) in WAITS.items()}
        if name.startswith("retention/"):
            allowed[NUMBERS] = RETENTION
        if name == "fp32 mixture":  # GPUs have a grouped product of bf16 alone
            allowed["nn/dispatch.py:looped_mm"] = 2
        if waits := {place: number for place, number in row["waits"].items() if number > allowed.get(place, 0)}:
            extra[name] = waits
    assert extra == {}


def test_a_compiled_model_is_one_graph_for_each_shape_and_its_blocks_share_one(rows):
    graphs = {name: row["graphs"] for name, row in rows.items() if "graphs" in row}
    # All rows, one row, and both again: a shape is compiled once, and nothing breaks its graph.
    part = {"numbers": [1, 2, 2, 2], "breaks": {}}
    assert graphs == {name: {"model": part, "blocks": part} for name in COMPILED}


def test_long_rows_with_a_mask_skip_its_blocks(rows):
    skipping = {name for name, row in rows.items() if row["sparse"]}
    assert skipping == {"long packed rows", "long prefix"}, "a window is computed in chunks, short rows with a mask"


def test_only_the_batch_is_copied_to_the_device(rows):
    copied = {name: set(row["copies"]) - {"types/batch.py:<lambda>"} for name, row in rows.items()}
    assert {name: places for name, places in copied.items() if places} == {}


def test_no_batch_is_copied_from_memory_that_is_not_pinned(rows):
    assert {name: row["pageable"] for name, row in rows.items() if row["pageable"]} == {}


def test_evaluation_and_generation_do_not_wait_for_each_batch_or_token(rows):
    assert rows["model/gpt"]["evaluation"] == {} == rows["model/moe"]["evaluation"]
    # Twice for each call, for the padding and the windows of the prompts: 4 tokens are added in each.
    assert rows["model/gpt"]["generation"] == {"models/generation.py:_decode": 4}
