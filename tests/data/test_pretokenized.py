"""Ids of other tools' files are read where they are, in every format, and wrong ones are named."""

from __future__ import annotations

import itertools
import json
import re
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kleiber.data.batches import stream
from kleiber.data.corpus import TextCorpus
from kleiber.data.pretokenized import MEGATRON, SUFFIXES, Tokens

IDS = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint16)


def numpy_array(path: Path, ids: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), ids.astype(np.int32))


def olmo(path: Path, ids: np.ndarray) -> None:
    ids.tofile(path.with_suffix(".npy"))


def nanotron(path: Path, ids: np.ndarray) -> None:
    ids.tofile(path.with_suffix(".ds"))
    Path(f"{path}.ds.index").write_bytes(np.array([len(ids)], np.uint64).tobytes())
    Path(f"{path}.ds.metadata").write_text(f"name|2\n{len(ids)}\n")


def megatron(path: Path, ids: np.ndarray) -> None:
    ids.astype(np.int32).tofile(path.with_suffix(".bin"))
    lengths = struct.pack("<QQiq", 1, 2, len(ids), 0) + np.array([0, 1], np.int64).tobytes()
    path.with_suffix(".idx").write_bytes(struct.pack("<9sQB", MEGATRON, 1, 4) + lengths)


def litdata(path: Path, ids: np.ndarray) -> None:
    """Two chunks of items of different lengths, in the layout of litdata's writer, as a folder."""
    path.mkdir(exist_ok=True)
    index_path = path / "index.json"
    chunks = json.loads(index_path.read_text())["chunks"] if index_path.exists() else []
    for part in np.array_split(ids.astype(np.int32), 2):
        ends = np.unique([0, len(part) // 3, len(part)])
        name = f"chunk-0-{len(chunks)}.bin"
        offsets = (4 * (len(ends) + 1) + 4 * ends).astype(np.uint32)
        raw = np.uint32(len(ends) - 1).tobytes() + offsets.tobytes() + part.tobytes()
        (path / name).write_bytes(raw)
        chunks.append({"chunk_bytes": len(raw), "chunk_size": len(ends) - 1, "dim": len(part), "filename": name})
    config = {"compression": None, "data_format": ["no_header_tensor:16"], "encryption": None}
    index_path.write_text(json.dumps({"chunks": chunks, "config": config}))


def ids_of(corpus: TextCorpus) -> tuple[np.ndarray, np.ndarray]:
    (held_out,) = corpus.validation.values()
    return np.asarray(corpus.train.file.ids), np.asarray(held_out.file.ids)  # type: ignore[attr-defined]


@pytest.mark.parametrize("write", [numpy_array, olmo, nanotron, megatron])
def test_one_file_and_many_have_the_same_samples(
    write: Callable[[Path, np.ndarray], None], tmp_path: Path, cache: Path
) -> None:
    write(tmp_path / "one", IDS)
    (tmp_path / "many").mkdir()
    for number, part in enumerate(np.split(IDS, [1, 7000, 7003])):
        write(tmp_path / "many" / f"part-{number}", part)
    path = str(next(path for path in tmp_path.glob("one*") if path.suffix in SUFFIXES))
    one = Tokens(path, "bytes").prepare(32)
    many = Tokens(str(tmp_path / "many"), "bytes").prepare(32)
    train, held_out = ids_of(one)
    assert (train == IDS[:19_800]).all() and (held_out == IDS[19_800:]).all()
    assert one.num_bytes == one.num_tokens == 19_800 and many.num_bytes == 19_800
    assert all((a == b).all() for a, b in zip(ids_of(one), ids_of(many), strict=True))
    for a, b in itertools.islice(zip(stream(one.train, 3, 0, 16), stream(many.train, 3, 0, 16), strict=True), 50):
        assert (a.tokens == b.tokens).all()
    assert one.hash == Tokens(path, "bytes").prepare(8).hash != many.hash


def test_held_out_ids_come_from_the_end_or_from_a_path(tmp_path: Path, cache: Path) -> None:
    olmo(tmp_path / "train", IDS)
    olmo(tmp_path / "held", IDS[:999])
    path = str(tmp_path / "train.npy")
    assert len(ids_of(Tokens(path, "bytes", held_out=0.25).prepare(8))[1]) == 5000
    corpus = Tokens(path, "bytes", validation=str(tmp_path / "held.npy")).prepare(8)
    assert [len(ids) for ids in ids_of(corpus)] == [20_000, 999]
    assert len(ids_of(Tokens(path, "bytes", dtype="uint8").prepare(8))[0]) == 39_600
    assert corpus.hash != Tokens(path, "bytes").prepare(8).hash
    few = Tokens(path, "bytes", max_bytes=150).prepare(8)
    assert [len(ids) for ids in ids_of(few)] == [150, 150] and few.num_bytes == 150


def test_held_out_files_are_not_trained_on(tmp_path: Path, cache: Path) -> None:
    for number in range(3):
        olmo(tmp_path / f"part-{number}", IDS[: 1000 * (number + 1)] // 3 * 3 + number)
    for path in (str(tmp_path), f"{tmp_path}/*.npy"):
        corpus = Tokens(path, "bytes", validation=f"{tmp_path}/part-1.npy").prepare(8)
        assert [set((ids % 3).tolist()) for ids in ids_of(corpus)] == [{0, 2}, {1}]
    with pytest.raises(ValueError, match=f"data.path={tmp_path} must .* not those of data.validation={tmp_path}"):
        Tokens(str(tmp_path), "bytes", validation=f"{tmp_path}").prepare(8)


def test_other_files_are_listed_and_copies_of_training_files_are_a_warning(tmp_path: Path, cache: Path) -> None:
    home, held_out = tmp_path / "ids", tmp_path / "held"
    for folder in (home, held_out):
        folder.mkdir()
    olmo(home / "a", IDS)
    olmo(home / "b", IDS[:999])
    olmo(held_out / "c", IDS[:999])
    olmo(held_out / "d", IDS[:500])
    (home / "notes.txt").write_text("no ids")
    (home / "link.npy").symlink_to(held_out / "d.npy")
    reading = Tokens(str(home), "bytes", validation=str(held_out)).prepare(8).reading
    assert reading.files[0].startswith("ids: 2 files, 41,998 bytes; left out: 2 files, 6 bytes")
    assert "1 no training ids (notes.txt), 1 link (link.npy)" in reading.files[0]
    assert len(reading.warnings) == 1 and "c.npy" in reading.warnings[0] and "d.npy" not in reading.warnings[0]


def test_many_files_are_opened_where_the_system_allows_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        olmo(tmp_path / f"part-{number:02d}", IDS[200 * number :][:200])
    with open(tmp_path / "free", "wb") as file:
        few = file.fileno() + 30
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        assert (ids_of(Tokens(str(tmp_path), "bytes").prepare(8))[0] == IDS[:19_800]).all()
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
        with pytest.raises(ValueError, match=f"a process may have open, {few:,}: .*ulimit -n"):
            Tokens(str(tmp_path), "bytes").prepare(8)
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "bpe"}, "data.tokenizer=bpe"),
        ({"dtype": "uint32"}, "token id [0-9]{5,}, and data.tokenizer=bytes has ids from 0 to 271"),
        ({"path": "{home}/odd.npy"}, "999 bytes, which are no ids of 2 bytes: set data.dtype"),
        ({"path": "{home}/floats.npy"}, "contains float64"),
        ({"path": "{home}/fortran.npy"}, "fortran.npy must be an array in C order"),
        ({"path": "{home}/[et]*.npy"}, "empty.npy is empty: remove it"),
        ({"path": "{home}/text.txt"}, r"must be or contain files that end in \.npy"),
        ({"path": "{home}/none*.npy"}, "none"),
        ({"path": "{home}/index.bin"}, "index of Megatron"),
    ],
)
def test_what_are_no_ids_is_named(options: dict[str, str], message: str, tmp_path: Path, cache: Path) -> None:
    olmo(tmp_path / "train", IDS)
    (tmp_path / "odd.npy").write_bytes(bytes(999))
    np.save(tmp_path / "floats.npy", np.ones(3))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(IDS.reshape(100, 200)))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "index.bin").write_bytes(bytes(10))
    (tmp_path / "index.idx").write_bytes(bytes(100))
    chosen = {"path": "{home}/train.npy", "tokenizer": "bytes", **options}
    chosen["path"] = chosen["path"].format(home=tmp_path)
    with pytest.raises(ValueError, match=message):
        Tokens(**chosen).prepare(8)  # type: ignore[arg-type]


def test_an_id_that_no_sample_of_the_check_has_is_named_when_it_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kleiber.data.pretokenized.COUNTED", 640)
    ids = IDS.copy()
    ids[200] = 5000
    olmo(tmp_path / "train", ids)
    corpus = Tokens(str(tmp_path / "train.npy"), "bytes").prepare(32)
    with pytest.raises(ValueError, match=re.escape("train has the token id 5000")):
        corpus.train.gather(np.arange(10))


@pytest.mark.slow
def test_two_hundred_gigabytes_are_opened_without_being_read(tmp_path: Path, cache: Path) -> None:
    """Sparse files: what is on disk does not count, only what is read at the start."""
    for number in range(50):
        with open(tmp_path / f"part-{number:02d}.npy", "wb") as file:
            file.truncate(4_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    corpus = Tokens(str(tmp_path), "bytes").prepare(1024)
    batch = next(stream(corpus.train, seed=1, start_step=123_456, batch_samples=16))
    assert corpus.num_tokens == 99_000_000_000 and batch.tokens.shape == (16, 1025)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes, most of them of the files


def test_litdata_folders_are_read_in_the_order_of_their_index(tmp_path: Path, cache: Path) -> None:
    for part in np.split(IDS, [7000, 7003, 14_000]):  # eight chunks, of items of different lengths
        litdata(tmp_path / "chunks", part)
    olmo(tmp_path / "plain", IDS)
    chunked, plain = Tokens(str(tmp_path / "chunks"), "bytes").prepare(32), Tokens(f"{tmp_path}/plain.npy", "bytes")
    assert all((a == b).all() for a, b in zip(ids_of(chunked), ids_of(plain.prepare(32)), strict=True))
    (tmp_path / "plain.npy").rename(tmp_path / "plain")
    for path in (str(tmp_path), f"{tmp_path}/chunks/*.bin"):
        assert Tokens(path, "bytes").prepare(32).hash == chunked.hash
    few = Tokens(f"{tmp_path}/chunks", "bytes", validation=f"{tmp_path}/chunks/chunk-0-[67].bin").prepare(32)
    assert [ids.tolist() for ids in ids_of(few)] == [IDS[:14_000].tolist(), IDS[14_000:].tolist()]
    index = tmp_path / "chunks" / "index.json"
    written = index.read_text()
    for change, message in [
        (("tensor:16", "tensor:1"), "must describe rows of token ids"),
        (("no_header_tensor", "jpeg"), "must describe rows of token ids"),
        (('"compression": null', '"compression": "zstd"'), "has compression, which cannot be mapped"),
        (("chunk-0-3.bin", "chunk-0-33.bin"), "chunk-0-33.bin is missing"),
        (("tensor:16", "tensor:18"), "bytes, and index.json says"),
    ]:
        index.write_text(written.replace(*change))
        with pytest.raises(ValueError, match=message):
            Tokens(str(tmp_path / "chunks"), "bytes").prepare(32)
