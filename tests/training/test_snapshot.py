"""Copies of a state stay as they were, with tied tensors as one; a writer runs in order and passes errors on."""

import threading
from types import SimpleNamespace

import pytest
import torch
from processes import PATIENCE, wait_for
from torch import nn

from kleiber.training import checkpoint, snapshot
from kleiber.training.snapshot import Snapshot, Writer, copy_tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("empty_too", torch.zeros(0))


def test_the_file_of_a_copy_is_that_of_the_model_and_stays_when_the_model_changes(tmp_path):
    model = Tied()
    copied = Snapshot(copy_tensors(model.state_dict()))
    direct = checkpoint.save(tmp_path / "model", 1, model, {}, "hash")
    with torch.no_grad():
        model.first.weight.zero_()
    later = checkpoint.save(tmp_path / "copy", 1, copied, {}, "hash")  # type: ignore[arg-type]
    assert direct.meta["sha256"]["model.safetensors"] == later.meta["sha256"]["model.safetensors"]
    assert copied.state_dict()["first.weight"] is copied.state_dict()["second.weight"]


def test_every_tensor_of_a_nested_state_is_copied_once():
    shared = torch.ones(3)
    state = {"a": {"x": shared, "n": 3}, "b": [shared, (shared * 2, "text")], "part": shared[:2]}
    copied = copy_tensors(state)
    shared.zero_()
    assert copied["a"]["x"] is copied["b"][0] and copied["a"]["x"].tolist() == [1, 1, 1]
    assert copied["a"]["n"] == 3 and copied["b"][1][1] == "text" and copied["b"][1][0].tolist() == [2, 2, 2]
    assert copied["part"].tolist() == [1, 1]


class OnGPU(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


def test_tensors_of_a_gpu_are_copied_to_pinned_memory_and_waited_for_once(monkeypatch):
    calls: list[str] = []

    def empty_like(tensor, *, device, pin_memory):
        calls.append(f"empty on {device}, pinned {pin_memory}")
        return torch.empty(tensor.shape)

    stream = SimpleNamespace(synchronize=lambda: calls.append("wait"))
    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    tensors = {name: torch.full((2,), value).as_subclass(OnGPU) for name, value in (("a", 1.0), ("b", 2.0))}
    copied = copy_tensors(tensors)
    assert calls == ["empty on cpu, pinned True"] * 2 + ["wait"]
    assert [copied[name].tolist() for name in "ab"] == [[1, 1], [2, 2]]


class Gathered:
    """Like the shards of two ranks, whose equal parts are gathered for a tensor with fewer rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def full_tensor(self) -> torch.Tensor:
        return torch.ones(2 * -(-self.rows // 2), 4)[: self.rows]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_gathered_tensor_is_copied_without_the_rows_that_pad_it(monkeypatch, rows):
    monkeypatch.setattr(snapshot, "is_sharded", lambda value: isinstance(value, Gathered))
    copied = copy_tensors({"head": Gathered(rows)})["head"]
    assert copied.shape == (rows, 4) and copied.untyped_storage().nbytes() == copied.nbytes


def test_a_writer_runs_one_function_after_another_beside_the_caller():
    writer, order, release = Writer(), [], threading.Event()

    def first():
        release.wait(PATIENCE)
        order.append(1)

    writer.start(first)
    assert order == []  # the caller goes on
    release.set()
    writer.start(lambda: order.append(2))
    assert order[0] == 1
    writer.wait()
    assert order == [1, 2]


def test_an_error_of_a_writer_is_raised_once_at_the_next_look():
    writer = Writer()
    writer.start(lambda: (_ for _ in ()).throw(OSError("no space")))  # type: ignore[arg-type]
    wait_for(lambda: writer.job is not None and writer.job.done())
    with pytest.raises(OSError, match="no space"):
        writer.check()
    writer.check()
    writer.wait()
