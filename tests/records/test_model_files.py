"""A file of a Hugging Face folder or of a checkpoint that no library should open is named before one does."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from kleiber.records.model_files import MAX_HEADER_BYTES, MAX_TEXT_BYTES, check_model_folder, check_safetensors
from kleiber.records.regular_files import DamagedFile


def headed(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


ODD = {
    "empty": b"", "short": b"\x00" * 7, "too long": headed(b"{}", 2**62), "longer than the file": headed(b"{}", 3),
    "no JSON": headed(b"{]"), "a list": headed(b"[]"), "deep": headed(b'{"a":' * 9999), "bytes": headed(b"\xff\xff"),
    "outside": headed(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
    "negative": headed(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', data=bytes(4)),
    "no offsets": headed(b'{"a": {"dtype": "F32", "shape": [1]}}'), "a number": headed(b'{"a": 3}'),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_header_of_safetensors_is_named(tmp_path, name):
    (tmp_path / "model.safetensors").write_bytes(ODD[name])
    for check in (lambda: check_safetensors(tmp_path / "model.safetensors"), lambda: check_model_folder(tmp_path)):
        with pytest.raises(DamagedFile, match=r"model\.safetensors"):
            check()


def test_weights_of_any_size_pass_and_headers_of_any_size_do_not(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(0)}, path, {"format": "pt"})
    check_safetensors(path)
    os.truncate(path, 3 * 2**30)
    check_safetensors(path)
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    os.truncate(path, 3 * 2**30)
    with pytest.raises(DamagedFile, match="header"):
        check_safetensors(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt", "spiece.model", "chat_template.jinja"])
def test_a_text_of_a_model_folder_has_a_largest_size_and_is_a_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    os.truncate(path, MAX_TEXT_BYTES)
    check_model_folder(tmp_path)
    os.truncate(path, 3 * 2**30)
    with pytest.raises(DamagedFile, match=rf"{name}.*3,221,225,472"):
        check_model_folder(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFile, match=rf"{name}.*pipe"):
        check_model_folder(tmp_path)


@pytest.mark.parametrize("target", ["/dev/zero", "../weights.safetensors", "pipe.safetensors"])
def test_an_index_names_files_of_its_folder(tmp_path, target):
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
    with pytest.raises(DamagedFile):
        check_model_folder(folder)
