"""One file, many shards, compressed files and Parquet are the same data."""

from __future__ import annotations

from pathlib import Path

from kleiber.data.corpus import TextCorpus
from kleiber.data.text import Text


def split_texts(corpus: TextCorpus) -> list[list[int]]:
    (name,) = corpus.validation
    files = [corpus.train.file, corpus.validation[name].file, corpus.test[name].file]  # type: ignore[attr-defined]
    return [file.ids.tolist() for file in files]


def test_one_file_many_shards_and_parquet_have_the_same_tokens(
    row_files: dict[str, Path], tmp_path: Path, cache: Path
) -> None:
    corpora = [Text(str(path), tokenizer="bytes").prepare(16) for path in row_files.values()]
    home = tmp_path / "shards"
    home.mkdir()
    lines = row_files[".jsonl"].read_text().split("\n\n")
    for number in range(20):
        (home / f"part-{number:03d}.jsonl").write_text("\n".join(lines[15 * number : 15 * number + 15]))
    corpora += [Text(str(home)).prepare(16), Text(f"{home}/part-*.jsonl").prepare(16)]
    assert len({corpus.hash for corpus in corpora}) == 1
    assert corpora[-1].name == "shards" and len(split_texts(corpora[0])[1]) > 100
