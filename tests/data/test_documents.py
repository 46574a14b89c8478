"""Documents of files, tables and built-in text, up to a number of bytes."""

import pytest

from kleiber.data.documents import open_documents


def read(path, **options) -> list[str]:
    with open_documents(str(path), **options) as documents:
        return list(documents.texts)


def test_documents_of_a_table_and_of_a_file(tmp_path, cache_dir):
    table, text = tmp_path / "t.jsonl", tmp_path / "t.txt"
    table.write_text('{"text": "one", "body": "eins"}\n{"text": "two", "body": "zwei"}\n')
    text.write_text("all of it")
    assert read(table) == ["one", "two"] and read(table, column="body") == ["eins", "zwei"]
    assert read(table, max_bytes=4) == ["one", "t"]
    assert read(text) == ["all of it"]
    with pytest.raises(ValueError, match="absent"):
        read(table, column="absent")


def test_a_long_file_of_text_is_one_document(tmp_path, cache_dir):
    path, text = tmp_path / "long.txt", "of words and words " * 200_000
    path.write_text(text)
    assert read(path) == [text]
    assert read(path, max_bytes=2_500_000) == [text[:2_500_000]]


def test_built_in_documents_need_no_data(cache_dir):
    assert len(read("builtin/occupations", max_bytes=2000)) > 10
    with pytest.raises(ValueError, match="builtin/x must be builtin/docs, builtin/code"):
        read("builtin/x")
