"""A step that runs out of memory is repeated with half the rows, with the result of those micro-batches."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from kleiber.training.step import accumulate
from kleiber.types.model import out_of_memory

OPTIONS = ["budget.steps=6", "callbacks.checkpoints.every=2"]
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ...")
ERRORS = [pytest.param(torch.OutOfMemoryError("CUDA out of memory"), marks=pytest.mark.slow), CPU]
ERRORS += [pytest.param(MemoryError(), marks=pytest.mark.slow)]


@pytest.fixture
def memory(monkeypatch):
    """Room for some rows: more of them fail in the second micro-batch, when gradients of the first are there."""

    def of(rows: int, error: Exception) -> list[int]:
        tried = []

        def limited(model, objective, batches, *rest):
            tried.append(len(batches[0]))
            if len(batches[0]) > rows:
                accumulate(model, objective, batches[:1], *rest)
                raise error
            return accumulate(model, objective, batches, *rest)

        monkeypatch.setattr("kleiber.training.lit.accumulate", limited)
        return tried

    return of


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(max(folder.glob("stages/main/checkpoints/*/model.safetensors")))


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_out_of_memory_halves_the_micro_batch_and_gives_the_result_of_the_small_one(launch, memory, capsys, error):
    small = launch(*OPTIONS, "batch.micro=2", root="small")
    tried = memory(3, error)
    folder = launch(*OPTIONS, root="large")
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2]
    assert re.findall(r"continuing with (\d)", capsys.readouterr().err) == ["4", "2"]
    expected = weights(small)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_rows_that_it_had(launch, memory, interrupted):
    tried = memory(3, MemoryError())
    with interrupted(2):  # the first one, of step 2, is whole
        launch(*OPTIONS, code=130)
    before = len(tried)
    launch(*OPTIONS)
    assert tried[:2] == [8, 4] and set(tried[2:]) == {2} and len(tried) == before + 4, "steps 3 to 6 again, with 2 rows"


def test_a_step_without_targets_is_skipped_and_counts(launch):
    """Of 64 tokens, none is masked in a third of the steps."""
    masked = ["model=bert", "objective=mlm", "objective.mask_share=0.02", "batch.tokens=64", "callbacks.log.every=1"]
    folder = launch(*masked, "budget.steps=6", "eval.tokens=512")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 6 and 0 < sum(map(math.isnan, losses)) < 6
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


@pytest.mark.parametrize(
    ("options", "steps"),
    [([], 2), (["callbacks.stability=null"], 2), (["callbacks.stability.nonfinite=skip"], 6)],
    ids=["halt", "without stability", "skip"],
)
def test_a_loss_that_is_not_finite_ends_the_run_unless_its_step_is_skipped(launch, monkeypatch, options, steps):
    """Its gradient is finite, as that of a sum with a constant that overflows."""
    calls = []

    def overflowing(*arguments):
        sums = accumulate(*arguments)
        calls.append(sums.values["ce"])
        if len(calls) == 3:
            sums.values["ce"] = sums.values["ce"] * math.inf
        return sums

    monkeypatch.setattr("kleiber.training.lit.accumulate", overflowing)
    folder = launch(*OPTIONS, *options, code=0 if steps == 6 else 1)
    record = json.loads((folder / "summary.json").read_text())
    assert len(calls) == max(3, steps)
    assert max(folder.glob("stages/main/checkpoints/step-*")).name == f"step-0000000{steps}"
    assert (record["status"] == "diverged") == (steps == 2)
    assert steps == 6 or re.search("step 3: .*loss.* inf", record["error"])


def test_a_row_that_does_not_fit_and_any_other_error_end_the_run(launch, memory):
    memory(0, MemoryError())
    folder = launch(*OPTIONS, code=1)
    assert "MemoryError" in json.loads((folder / "summary.json").read_text())["error"]
    assert not out_of_memory(RuntimeError("shapes differ"))
