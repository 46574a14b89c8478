"""Reads and writes arrays of numpy in files, of which a damaged one or a stranger's is named and fills no memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from kleiber.records.files import replaced
from kleiber.records.regular_files import DamagedFile, create, open_to_read

REFERENCE = "reference"  # name of the .npz and .json file of a stage with what its start model computed
NUMPY_ERRORS = (  # of files that are no arrays
    ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, TokenError, BadZipFile,
)  # fmt: skip


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes an array as .npy, whole or not at all."""
    with replaced(path) as part, create(part) as file:
        np.save(file, values)


def map_array(path: Path) -> np.memmap:
    """Maps the array in a .npy file. Raises DamagedFile for a header that is not one, or not that of so many bytes."""
    open_to_read(path).close()
    with named_errors(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """Returns the array in a .npy file; raises as `map_array`."""
    return np.array(map_array(path))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays in a .npz file by name. Raises DamagedFile for anything that np.savez does not write."""
    with open_to_read(path) as file:
        check_stored(path)
        with named_errors(path), np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raises DamagedFile, which names the file, for the errors with which numpy meets another content."""
    try:
        yield
    except NUMPY_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFile(path, f"it does not contain arrays of numpy ({reason})") from None


def check_stored(path: Path) -> None:
    """Raises DamagedFile for a zip file whose entries are compressed, since a short one could fill the memory.

    Neither numpy nor PyTorch compresses what it saves.
    """
    try:
        with open_to_read(path) as file, zipfile.ZipFile(file) as entries:
            size = file.seek(0, 2)
            infos = entries.infolist()
    except (BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise error if isinstance(error, DamagedFile) else DamagedFile(path, f"it is no zip file ({error})") from None
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise DamagedFile(path, "its content is compressed, which kleiber does not do")
    total = sum(info.file_size for info in infos)
    if total > size:
        raise DamagedFile(path, f"it has {size:,} bytes, and its entries say that they have {total:,}")
