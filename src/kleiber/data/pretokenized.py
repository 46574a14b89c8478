"""Text that another tool has tokenized, mapped from its files: nothing is copied.

A file is one of these:

numpy     an array of ids in numpy's own format
raw ids   without a header, as OLMo (.npy), nanotron (.ds) and many others write them
Megatron  raw ids in FILE.bin, whose type is in FILE.idx
litdata   a chunk, .bin, of a folder whose index.json describes it, as TokensLoader reads it

Documents follow one another as they do in the files, with the separators that the tool wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import xxhash
from annotated_types import Gt, Lt
from jaxtyping import Int, Integer

from kleiber.config.stages import Quantity
from kleiber.data.cache import cache_root, digest
from kleiber.data.corpus import TextCorpus, choose_tokenizer, parse_bytes
from kleiber.data.folders import LeftOut, list_names
from kleiber.data.listing import Listing, describe_files
from kleiber.data.location import Location, locate
from kleiber.data.sources import Reading
from kleiber.data.token_files import (
    AT_ONCE,
    Shards,
    TokenFile,
    TokenIds,
    TrainWindows,
    ValidationWindows,
    count_bytes,
    id_dtype,
    join_files,
    map_file,
)
from kleiber.records.arrays import map_array
from kleiber.records.files import many_open_files, read_json
from kleiber.records.regular_files import open_to_read
from kleiber.types.access import DataPath
from kleiber.types.batch import Batch
from kleiber.types.tokenizer import Tokenizer

SUFFIXES = (".npy", ".bin", ".ds")
NUMPY, MEGATRON = b"\x93NUMPY", b"MMIDIDX\x00\x00"
MEGATRON_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
LITDATA = "index.json"
TORCH_TYPES = {11: "uint8", 13: "int16", 14: "int16", 15: "int32", 16: "int32", 17: "int64", 18: "int64", 20: "uint16"}
NUMPY_TYPES = {1: "int16", 2: "int32", 3: "int64", 4: "uint8", 5: "uint16", 6: "uint32", 7: "uint64"}
LITDATA_TYPES = {"no_header_tensor": TORCH_TYPES, "no_header_numpy": NUMPY_TYPES}  # by litdata's numbers
COUNTED = 1 << 24  # ids whose bytes are counted; those of a longer text are estimated from as many
PIECES = 64  # places of a file that its checksum and the estimate read
Dtype = Literal["auto", "uint8", "uint16", "uint32", "int32", "int64"]


@dataclass(frozen=True)
class Tokens:
    """Token ids at `path`: a file, a folder or a pattern, whose files follow one another in the order of their names.

    The chunks in a folder of litdata follow one another in the order of its index.

    tokenizer   of the ids: bytes, or a name on the hub, or a folder
    dtype       of ids without a header; auto: 16 bits if the vocabulary has at most 65,536 ids, else 32
    validation  the same for held-out ids, whose files are left out of `path`; null: the last `held_out` of the ids
    held_out    share of the ids at the end that are held out where `validation` is null
    max_bytes   at most the ids of that much text of each split; null: all
    """

    path: DataPath
    tokenizer: str
    dtype: Dtype = "auto"
    validation: DataPath | None = None
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.01
    max_bytes: Quantity | None = None

    def prepare(self, context: int, cache: Path | None = None) -> TextCorpus:
        """Maps the files. Raises ValueError for files of another kind, and for ids that the tokenizer lacks."""
        if self.tokenizer == "bpe":
            raise ValueError(
                "data.tokenizer=bpe must name the tokenizer that made the ids of data.path: bpe is trained on text"
            )
        tokenizer, location = choose_tokenizer(self.tokenizer, None, [], cache_root(cache)), locate(self.path)
        others = {} if self.validation is None else self._open("validation", locate(self.validation), tokenizer, set())
        files = self._open("path", location, tokenizer, {file.resolve() for file in others})
        train, parts = join_files([*files.values()]), [*files.values(), *others.values()]
        if others:
            split = train, join_files([*others.values()])
        else:
            split = cut_ids(train, round(len(train) * (1 - self.held_out)))
        sums = [[len(part), part.dtype.name, sampled_checksum(part)] for part in parts]
        limit = parse_bytes(self.max_bytes)
        limited = split if limit is None else [limit_ids(ids, limit, tokenizer) for ids in split]
        ours, held_out = (self._file(ids, tokenizer) for ids in limited)
        name = Path(self.path).stem if location.is_file else location.stem
        windows = CheckedWindows(ours, context, name, tokenizer)
        return TextCorpus(
            name=name,
            config="",
            hash=digest([tokenizer.data_hash, sums, self.validation is None and self.held_out, limit]),
            tokenizer=tokenizer,
            train=windows,
            validation={name: ValidationWindows(held_out, context, tokenizer)},
            num_tokens=len(ours.ids),
            num_bytes=ours.num_bytes,
            reading=self._reading(name, location, {*files}, dict(zip([*files, *others], sums, strict=True))),
        )

    def _reading(self, name: str, location: Location, train: set[Path], sums: dict[Path, list[int | str]]) -> Reading:
        """Returns what was read, with a warning of files of validation ids that are copies of training files."""
        listed = [file for file in location.files if Path(file.path) in train]
        names = {file.name for file in listed}
        left_out = [LeftOut(f.name, "no training ids", f.size) for f in location.files if f.name not in names]
        listing = Listing({"train": listed}, left_out=tuple(left_out))
        trained = [total for path, total in sums.items() if path in train]
        copies = [str(path) for path, total in sums.items() if path not in train and total in trained]
        warning = f"{name}: data.validation={self.validation} has copies of training files: {list_names(copies)}"
        line = f"{name}: {describe_files(location, listing.to_json(), unit='')}"
        return Reading((line,), warnings=(warning,) if copies else ())

    def _open(
        self, key: str, location: Location, tokenizer: Tokenizer, held_out: set[Path]
    ) -> dict[Path, Integer[np.ndarray, "_"]]:
        """Returns the ids of each file that is not held out, in order."""
        dtype = id_dtype(tokenizer.vocab_size) if self.dtype == "auto" else np.dtype(self.dtype)
        places = [Path(file.path) for file in location.files]
        paths = [place for place in places if place.suffix in SUFFIXES and place.resolve() not in held_out]
        with many_open_files():
            files = map_files(paths, dtype)
        if not files:
            others = f" and are not those of data.validation={self.validation}" if held_out else ""
            raise ValueError(
                f"data.{key}={location.name} must be or contain files that end in {', '.join(SUFFIXES)}{others}"
            )
        for file, ids in files.items():
            for piece in spread(ids, COUNTED // len(files)):
                check_ids(piece, tokenizer, str(file))
        return files

    def _file(self, ids: TokenIds, tokenizer: Tokenizer) -> TokenFile:
        counted = size = 0
        for piece in spread(ids, COUNTED):
            size += count_bytes(piece, tokenizer, 0, len(piece))
            counted += len(piece)
        num_bytes = round(size * len(ids) / max(1, counted))
        return TokenFile(ids, num_bytes, num_bytes, "")


def cut_ids(ids: TokenIds, place: int) -> tuple[TokenIds, TokenIds]:
    """Returns the ids before a place, and those from it on."""
    if isinstance(ids, Shards):
        return ids.part(0, place), ids.part(place, len(ids))
    return ids[:place], ids[place:]


def limit_ids(ids: TokenIds, limit: int, tokenizer: Tokenizer) -> TokenIds:
    """Returns the first ids that stand for at most `limit` bytes of text."""
    place, left = 0, limit
    while place < len(ids):
        total = np.cumsum(tokenizer.token_bytes[ids[place : place + AT_ONCE]])
        if total[-1] > left:
            return cut_ids(ids, place + int(np.searchsorted(total, left, "right")))[0]
        place, left = place + len(total), left - int(total[-1])
    return ids


class CheckedWindows(TrainWindows):
    """Windows whose ids are compared with the vocabulary when they are read."""

    def __init__(self, file: TokenFile, context: int, name: str, tokenizer: Tokenizer) -> None:
        super().__init__(file, context, name)
        self._name, self._tokenizer = name, tokenizer

    def gather(self, index: Int[np.ndarray, "batch"], epoch: int = 0) -> Batch:
        """Returns the windows of these numbers in an epoch. Raises ValueError for an id outside of the vocabulary."""
        batch = super().gather(index, epoch)
        check_ids(batch.tokens.numpy(), self._tokenizer, self._name)
        return batch


def check_ids(ids: Integer[np.ndarray, "*shape"], tokenizer: Tokenizer, name: str) -> None:
    """Raises ValueError for an id that the tokenizer lacks."""
    if ids.size and (int(ids.max()) >= tokenizer.vocab_size or int(ids.min()) < 0):
        wrong = int(ids.max()) if int(ids.max()) >= tokenizer.vocab_size else int(ids.min())
        raise ValueError(
            f"{name} has the token id {wrong}, and data.tokenizer={tokenizer.name} has ids from 0 to "
            f"{tokenizer.vocab_size - 1}: set data.tokenizer to the tokenizer of the ids, or data.dtype to their type"
        )


def map_files(paths: Sequence[Path], dtype: np.dtype) -> dict[Path, Integer[np.ndarray, "_"]]:
    """Maps the ids in each of some files, in order; the chunks of a folder of litdata in that of its index.

    dtype  of ids without a header

    Raises ValueError for a file of another kind.
    """
    files: dict[Path, Integer[np.ndarray, "_"]] = {}
    chosen, indexed = set(paths), set[Path]()
    for path in paths:
        folder = path.parent
        if path.suffix != ".bin" or not (folder / LITDATA).is_file():
            files[path] = map_ids(path, dtype)
        elif folder not in indexed:
            indexed.add(folder)
            files |= {chunk: ids for chunk, ids in litdata_chunks(folder).items() if chunk in chosen}
    return files


def map_ids(path: Path, dtype: np.dtype) -> Integer[np.ndarray, "_"]:
    """Maps the ids in a file. `dtype` is that of ids without a header. Raises ValueError for a file of another kind."""
    with open_to_read(path) as file:
        first = file.read(len(NUMPY))
    if first == NUMPY:
        array = map_array(path)
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{path} must be an array of token ids, and contains {array.dtype}")
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{path} must be an array in C order, not in Fortran order: save it with np.ascontiguousarray"
            )
        return map_file(path, array.dtype, array.offset)
    index, size = path.with_suffix(".idx"), path.stat().st_size
    if path.suffix == ".bin" and index.is_file():
        dtype = megatron_type(index)
    if size == 0:
        raise ValueError(f"{path} is empty: remove it, or copy it again")
    if size % dtype.itemsize:
        raise ValueError(f"{path} has {size:,} bytes, which are no ids of {dtype.itemsize} bytes: set data.dtype")
    return map_file(path, dtype)


def megatron_type(index: Path) -> np.dtype:
    """Returns the type of the ids that a Megatron index describes. Raises ValueError for another file."""
    header = struct.Struct("<9sQB")
    with open_to_read(index) as file:
        raw = file.read(header.size)
    magic, version, code = header.unpack(raw) if len(raw) == header.size else (b"", 0, 0)
    if magic != MEGATRON or version != 1 or code not in MEGATRON_TYPES:
        raise ValueError(f"{index} must be an index of Megatron, version 1, whose ids are whole numbers")
    return np.dtype(MEGATRON_TYPES[code])


def litdata_chunks(folder: Path) -> dict[Path, Integer[np.ndarray, "_"]]:
    """Maps the ids of each chunk of a litdata folder, in order. Raises ValueError for what TokensLoader does not read.

    A chunk has the number of its items, the offset of each and that of its end, all in 32 bits, and then the ids of all
    items.
    """
    index = read_json(folder / LITDATA)
    try:
        config, chunks = index["config"], index["chunks"]
        (data_format,) = config["data_format"]
        kind, number = data_format.split(":")
        dtype = np.dtype(LITDATA_TYPES[kind][int(number)])
        sizes = {folder / chunk["filename"]: (int(chunk["chunk_size"]), int(chunk["dim"])) for chunk in chunks}
        altered = [key for key in ("compression", "encryption") if config.get(key)]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder / LITDATA} must describe rows of token ids that litdata wrote for its TokensLoader"
        ) from None
    if altered:
        raise ValueError(f"{folder / LITDATA} has {altered[0]}, which cannot be mapped: write the chunks without it")
    parts: dict[Path, Integer[np.ndarray, "_"]] = {}
    for path, (items, count) in sizes.items():
        if not path.is_file():
            raise ValueError(f"{path} is missing, which {folder / LITDATA} names: copy or download it again")
        header, size = 4 * (items + 2), path.stat().st_size
        if size != header + count * dtype.itemsize:
            raise ValueError(f"{path} has {size:,} bytes, and {LITDATA} says {header + count * dtype.itemsize:,}")
        parts[path] = map_file(path, dtype, header)
    return parts


def spread(ids: TokenIds, count: int) -> Sequence[Integer[np.ndarray, "_"]]:
    """Returns about `count` ids in pieces at equal distances, or all of them."""
    if len(ids) <= count:
        return [ids[:]]
    length = max(1, count // PIECES)
    starts = np.linspace(0, len(ids) - length, PIECES).astype(np.int64)
    return [ids[start : start + length] for start in starts.tolist()]


def sampled_checksum(ids: Integer[np.ndarray, "_"]) -> str:
    """Returns a checksum of at most 64 pieces of a file."""
    checksum = xxhash.xxh3_64()
    for piece in spread(ids, PIECES << 12):
        checksum.update(piece.tobytes())
    return checksum.hexdigest()
