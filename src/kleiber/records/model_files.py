"""Checks the files of models before a library opens them: those of a checkpoint, and those of a Hugging Face folder.

The libraries read a pipe forever and a file of any size, and their errors do not name the file.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from kleiber.records.files import MAX_VALUES, load_json, read_json
from kleiber.records.regular_files import DamagedFile, open_to_read, path_inside

MAX_TEXT_BYTES = 2**26  # of a tokenizer, a vocabulary or a template
MAX_HEADER_BYTES = 2**25  # of a safetensors file
TEXTS = (".json", ".txt", ".model", ".jinja")  # endings of the files that libraries read whole
INDEX = ".safetensors.index.json"  # ending of a file that names the file of each weight


def check_model_folder(folder: Path) -> None:
    """Raises DamagedFile for the first file of a Hugging Face folder that cannot be one of a model.

    Such a file is no regular file or too long; has a header of safetensors that is none; or names weights elsewhere.
    """
    for path in sorted(folder.iterdir()):
        if path.name.endswith(INDEX):
            for name in set(map(str, dict(read_json(path, MAX_TEXT_BYTES).get("weight_map") or {}).values())):
                open_to_read(path_inside(folder, name)).close()
        elif path.suffix in TEXTS:
            with open_to_read(path) as file:
                size = os.fstat(file.fileno()).st_size
            if size > MAX_TEXT_BYTES:
                raise DamagedFile(path, f"it has {size:,} bytes, more than {MAX_TEXT_BYTES:,}")
        elif path.suffix == ".safetensors":
            check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Raises DamagedFile unless a file begins with a header of safetensors, whose tensors lie in the file."""
    with open_to_read(path) as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise DamagedFile(path, f"it has a header of {length:,} bytes, and {size:,} bytes")
        text = file.read(length)
    try:
        header = load_json(text.decode("utf-8"), MAX_VALUES)
        if not isinstance(header, dict):
            raise ValueError("it is no object")
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                if not (type(begin) is type(end) is int and 0 <= begin <= end <= size - 8 - length):
                    raise ValueError(f"{name} is not in the file")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFile(path, f"its header is not that of safetensors ({error})") from None
