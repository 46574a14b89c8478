"""Checkpoints: what is saved and loaded, and how damaged, partial and foreign ones are refused."""

import hashlib
import io
import json
import os
import struct
import traceback
import zipfile

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from kleiber.config.errors import ConfigError
from kleiber.training import checkpoint


def tied() -> nn.Module:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    net[1].weight = net[0].weight
    return net


def write(folder, step=1, net=None):
    return checkpoint.save(folder, step, net or tied(), {"optimizer": {}, "callbacks": {}}, "hash")


def test_weights_come_back_and_stay_tied(tmp_path):
    net, other = tied(), tied()
    write(tmp_path, net=net).load_model(other)
    assert torch.equal(net[0].weight, other[0].weight)
    assert other[0].weight is other[1].weight


def test_weights_that_are_a_part_of_a_larger_tensor_are_saved_alone(tmp_path):
    """Within `full_parameters`, weights are views of what the ranks gathered, which is padded to equal parts."""
    net, other = tied(), tied()
    net[0].weight.data = torch.randn(6, 4)[:5]
    path = write(tmp_path, net=net).path
    checkpoint.read(path).load_model(other)
    assert torch.equal(net[0].weight, other[0].weight) and other[0].weight is other[1].weight
    assert (path / "model.safetensors").stat().st_size < 5 * 4 * 4 + 200


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "gone"])
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(tmp_path, name, damage):
    write(tmp_path, 1)
    victim = write(tmp_path, 2).path / name
    content = bytearray(victim.read_bytes())
    if damage == "gone":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flip": content}[damage])
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1
    assert "step-00000002" in complaints[0]
    if (name, damage) != ("meta.json", "flip"):  # a flipped digest accuses the file that it is of
        assert name in complaints[0]


GOOD = {"sha256": {"model.safetensors": "", "state.pt": ""}, "step": 2}
ODD = {
    "empty": "{}", "list": "[]", "text": '"step"', "nul": "\0\0\0", "utf8": "\udcff", "deep": "[" * 10**5,
    "no hashes": json.dumps({**GOOD, "sha256": {}}), "one hash": json.dumps({**GOOD, "sha256": {"state.pt": ""}}),
    "hashes of a list": json.dumps({**GOOD, "sha256": ["state.pt"]}), "no step": json.dumps({"sha256": {}}),
    "step is text": json.dumps({**GOOD, "step": "2"}), "step is true": json.dumps({**GOOD, "step": True}),
    "names": json.dumps({**GOOD, "names": 3}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_meta_json_is_named_and_its_checkpoint_passed_over(tmp_path, odd):
    write(tmp_path, 1)
    meta = write(tmp_path, 2).path / "meta.json"
    meta.write_bytes(ODD[odd].encode("utf-8", "surrogateescape"))
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1
    assert len(complaints) == 1 and str(meta) in complaints[0]


def test_flipped_weights_are_not_trained_on_without_their_hash(tmp_path):
    write(tmp_path, 1)
    path = write(tmp_path, 2).path
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 64
    (path / "model.safetensors").write_bytes(weights)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "sha256": {}}))
    assert checkpoint.latest_of(tmp_path).step == 1


def test_a_kill_during_the_write_leaves_the_one_before_and_a_stray_that_is_cleaned(tmp_path, monkeypatch):
    write(tmp_path, 1)

    class Killed(BaseException):
        pass

    def die(part, final):
        raise Killed

    monkeypatch.setattr(checkpoint, "_commit", die)
    with pytest.raises(Killed):
        write(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2  # the stray part is there: nothing ran after the kill
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1 and complaints == []
    checkpoint.tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_full_disk_raises_an_error_and_leaves_no_bad_file(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"no space left.*step-00000002"):
        write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("place", ["torch.save", "kleiber.training.checkpoint.save_model"])
def test_a_library_that_finds_the_disk_full_without_saying_so_is_reported_as_that(tmp_path, monkeypatch, place):
    """FAULTS 73."""
    kind = RuntimeError if place == "torch.save" else SafetensorError
    write(tmp_path, 1)

    def fails(*_):
        raise kind("[enforce fail at inline_container.cc:664] unexpected pos 704 vs 598")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, fails)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"no space left on device.*step-00000002.*step-00000001") as error:
        write(tmp_path, 2)
    assert error.value.errno == 28 and "inline_container" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("place", ["file", "loop"])
def test_a_file_or_link_with_the_name_of_a_checkpoint_is_set_aside(tmp_path, place, capsys):
    """FAULTS 69."""
    path = tmp_path / "step-00000002"
    if place == "file":
        path.write_text("text")
    else:
        path.symlink_to(path)
    assert write(tmp_path, 2).path == path and checkpoint.latest_of(tmp_path).step == 2
    assert os.path.lexists(tmp_path / "step-00000002.1") and str(path) in capsys.readouterr().err


def test_the_files_of_a_checkpoint_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        saved = write(tmp_path, 1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in saved.path.iterdir()} == {0o640}


def test_the_newest_are_kept_and_the_protected_ones(tmp_path):
    first = write(tmp_path, 1).path
    for step in (2, 3, 4):
        write(tmp_path, step)
    checkpoint.tidy(tmp_path, keep=2, protected=[first])
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["1", "3", "4"]


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    saved = checkpoint.save(tmp_path / "c", 1, tied(), {"optimizer": Evil()}, "hash")
    with pytest.raises(ConfigError, match=r"state\.pt") as error:
        saved.load_state()
    assert "weights_only" not in "".join(traceback.format_exception(error.value))
    assert not (tmp_path / "owned").exists()


def rewritten(folder, name, content):
    """A checkpoint one of whose files has another content, and meta.json the hash of it."""
    write(folder, 1)
    path = write(folder, 2).path
    (path / name).write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))
    return path


HEADER = b'{"0.weight":{"dtype":"F32","shape":[5,4],"data_offsets":[0,80]}}'
ODD_WEIGHTS = {
    "empty": b"", "text": b"my thesis", "endless header": b"\xff" * 16, "no JSON": struct.pack("<Q", 3) + b"{]}",
    "outside": struct.pack("<Q", len(HEADER)) + HEADER,
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD_WEIGHTS)
def test_weights_of_the_right_hash_and_another_content_are_named_and_passed_over(tmp_path, odd):
    rewritten(tmp_path, "model.safetensors", ODD_WEIGHTS[odd])
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1 and "step-00000002/model.safetensors" in complaints[0]


def saved_bytes(value, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    if compression != zipfile.ZIP_STORED:
        with zipfile.ZipFile(buffer) as file:
            entries = {name: file.read(name) for name in file.namelist()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as file:
            for name, content in entries.items():
                file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("state", [3, "x", [1, 2], {"optimizer": 3}, {"callbacks": torch.ones(2)}, {3: 4}])
def test_a_state_of_the_right_hash_and_another_content_is_named(tmp_path, state):
    path = rewritten(tmp_path, "state.pt", saved_bytes(state))
    if state == {3: 4}:
        assert checkpoint.read(path).load_state() == state
        return
    with pytest.raises(ConfigError, match=r"step-00000002/state\.pt is damaged"):
        checkpoint.read(path).load_state()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut", saved_bytes({"a": torch.zeros(9999)}, zipfile.ZIP_DEFLATED)]
)
def test_a_state_that_is_compressed_or_no_zip_file_is_named_and_passed_over(tmp_path, content):
    rewritten(tmp_path, "state.pt", content)
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1 and "step-00000002/state.pt" in complaints[0]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
def test_what_is_no_file_in_a_checkpoint_is_named_and_passed_over(tmp_path, name, kind):
    write(tmp_path, 1)
    path = write(tmp_path, 2).path / name
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[kind]()
    newest, complaints = checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 1 and f"step-00000002/{name}" in complaints[0]


@pytest.mark.parametrize("name", ["stages", "stages/main", "stages/main/checkpoints"])
def test_no_checkpoint_is_written_through_a_link(tmp_path, name):
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "run" / name
    elsewhere.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(OSError, match=name):
        write(tmp_path / "run/stages/main/checkpoints")
    assert not any(elsewhere.iterdir())


def test_another_model_is_refused_with_the_folder_named(tmp_path):
    saved = write(tmp_path)
    with pytest.raises(ValueError, match="step-00000001"):
        saved.load_model(nn.Linear(3, 3))


def test_a_part_of_a_model_is_read_by_exactly_its_names_and_nothing_else(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    part = checkpoint.save(tmp_path, 1, net, {}, "hash", names={"1.weight"})
    whole = checkpoint.save(tmp_path, 2, net, {}, "hash")
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = other[0].weight.clone(), other[1].bias.clone()
    checkpoint.read(part.path).load_model(other, {"1.weight"})
    assert torch.equal(other[1].weight, net[1].weight)
    assert torch.equal(other[0].weight, before[0]) and torch.equal(other[1].bias, before[1])
    with pytest.raises(ValueError, match=r"other weights: \['1\.bias'\]"):
        part.load_model(other, {"1.weight", "1.bias"})
    for load in (part.load_model, part.load_weights):
        with pytest.raises(ValueError, match=r"step-00000001 .* 1 weights"):
            load(other)
    with pytest.raises(ValueError, match="step-00000002"):
        whole.load_model(other, {"1.weight"})
    with pytest.raises(ValueError, match=r"step-00000001.*1\.weight"):
        part.load_model(nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4)), {"1.weight"})


def test_what_a_stage_can_change_is_what_trains_and_the_buffers_that_are_saved():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].requires_grad_(False)
    buffers = {f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert checkpoint.trained_names(net) == {"1.weight", "1.bias"} | buffers
