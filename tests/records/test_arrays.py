"""Arrays come back as they were written, and a file that is none is named and takes no memory."""

import os
import zipfile

import numpy as np
import pytest

from kleiber.records.arrays import check_stored, map_array, read_array, read_arrays, write_array
from kleiber.records.regular_files import DamagedFile


@pytest.mark.parametrize("values", [np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros(0), np.array(3.5)])
def test_an_array_is_read_as_it_was_written(tmp_path, values):
    write_array(tmp_path / "a.npy", values)
    for read in (read_array, map_array):
        again = read(tmp_path / "a.npy")
        assert again.dtype == values.dtype and np.array_equal(again, values)
    assert np.array_equal(np.load(tmp_path / "a.npy"), values), "numpy's own format"


def header(text: str) -> bytes:
    content = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


ODD = {
    "empty": b"", "text": b"my thesis", "cut": header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"),
    "huge": header("{'descr': '<f8', 'fortran_order': False, 'shape': (2000000000000,), }") + bytes(8),
    "overflow": header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }") + bytes(8),
    "negative": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }") + bytes(8),
    "code": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + bytes(8),
    "no dictionary": header("[1, 2"), "other keys": header("{'shape': ()}"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("read", [read_array, map_array, read_arrays])
def test_a_file_that_is_no_array_is_named(tmp_path, name, read):
    path = tmp_path / "weights.npy"
    path.write_bytes(ODD[name])
    with pytest.raises(DamagedFile, match=r"weights\.npy"):
        read(path)


def test_a_short_zip_file_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, a=np.arange(3))
    assert list(read_arrays(path)) == ["a"] and check_stored(path) is None
    np.savez_compressed(path, a=np.zeros(1_000_000))
    with pytest.raises(DamagedFile, match="compressed"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as file:
        for name in "abc":  # three entries that are the same bytes
            file.writestr(zipfile.ZipInfo(name), b"x" * 5000)
        for info in file.filelist[1:]:
            info.header_offset = file.filelist[0].header_offset
        file.filelist[1].file_size = file.filelist[2].file_size = 10**9
    with pytest.raises(DamagedFile, match="bytes"):
        check_stored(path)
    os.truncate(path, 3 * 2**30)
    with pytest.raises(DamagedFile):
        check_stored(path)
