"""Trainings on a GPU against those on the CPU; without a GPU only the scripts are tested, on the CPU."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
from small_run import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests/gpu"))

import agreement
import resume

from kleiber.config.model_size import gpu_ids

SMALL = ["--device", "cpu", "--scale", "small"]


@pytest.fixture
def device(tmp_path, cache_dir) -> agreement.Device:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: PyTorch finds none")
    return agreement.Device("cuda", tmp_path)


@pytest.mark.gpu
def test_dense_model_and_mixture_have_the_losses_of_the_cpu(device):
    assert [row for row in agreement.dense_and_mixture(device) if row["status"] != "ok"] == []


@pytest.mark.gpu
@pytest.mark.parametrize("choice", agreement.COMPARED)
def test_every_choice_has_the_losses_of_the_cpu(device, choice):
    accepted = ("ok", "differs") if choice in agreement.RANDOM else ("ok",)
    assert [row for row in agreement.every_choice(device, [choice]) if row["status"] not in accepted] == []


@pytest.mark.gpu
def test_a_killed_training_continues_bit_identically(device):
    assert [row for row in resume.kill_and_continue(device, modes=(True,)) if row["status"] != "ok"] == []


@pytest.mark.gpu
def test_a_stage_after_another_one_is_compared_with_its_start(device, launch, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(2000)))
    second = f"two:{{data:{{path:{other}}},budget:{{steps:4}}}}"
    chain = ["stages=chain", f"stages.chain={{one:{{budget:{{steps:4}}}},{second}}}", "retention=wise"]
    folder = launch(*chain, "trainer.accelerator=gpu", "callbacks.samples=null")
    _, stage = json.loads((folder / "summary.json").read_text())["stages"]
    assert stage["metrics"]["drift/weights"] > 0 and stage["metrics"]["drift/tiny/kl"] > 0
    assert [name for name in stage["metrics"] if name.startswith("wise")] != []


def test_tests_of_other_things_see_no_gpu(request):
    if request.config.option.markexpr == "gpu":
        pytest.skip("these are the tests of GPUs")
    assert gpu_ids() == []


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", REPOSITORY / "benchmarks/gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_records_agreement_and_errors_on_a_cpu(script, tmp_path, cache_dir):
    out = tmp_path / "out.json"
    chosen = ["--only", "choices", "--choices", "optimizer/lion", "optimizer/none"]
    assert script.main([str(out), *SMALL, *chosen]) == 1
    record = json.loads(out.read_text())
    assert record["machine"]["missing_modules"] == []
    lion, none = record["rows"][:2], record["rows"][2:]
    assert [(row["choice"], row["precision"], row["status"]) for row in lion] == [
        ("optimizer/lion", "fp32", "ok"), ("optimizer/lion", "bf16", "ok"),
    ]  # fmt: skip
    assert lion[0]["gap"] == 0.0 < lion[1]["gap"] < 2e-2
    assert {row["status"] for row in none} == {"failed"} and "optimizer=none" in none[0]["error"]


def test_a_part_ends_with_its_budget_and_keeps_its_rows(script, tmp_path):
    results = script.Results(tmp_path / "out.json", {})

    def rows():
        yield {"status": "ok"}
        while True:
            pass

    script.run_part("dense", rows, 0.05, results)
    script.run_part("small", lambda: iter([{"status": "ok"}]), 5, results)
    record = json.loads((tmp_path / "out.json").read_text())
    assert [(row["part"], row["status"]) for row in record["rows"]] == [
        ("dense", "ok"), ("dense", "stopped"), ("small", "ok"),
    ]  # fmt: skip


def test_time_with_kernels_is_the_union_of_their_intervals(script):
    import gpu_callback

    assert gpu_callback.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert gpu_callback.covered([]) == 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize("part", ["resume", "dense", "mixture", "profile", "small"])
def test_every_part_runs_on_a_cpu(script, tmp_path, cache_dir, part):
    out = tmp_path / "out.json"
    assert script.main([str(out), *SMALL, "--only", part, "--budget", f"{part}=600"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows and all(row["status"] == "ok" for row in rows)
