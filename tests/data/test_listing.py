"""Which tables are read together, and which of them have the columns that are asked for."""

from __future__ import annotations

import pytest

from kleiber.data.folders import File
from kleiber.data.listing import Listing, only_tables, require_equal_columns, table_groups, with_columns, with_splits


def listing(texts: tuple[str, ...] = (), **tables: tuple[str, ...]) -> Listing:
    """A listing of one split; tables are given by their names, with _ for the dot, and their columns."""
    columns = {name.replace("_", "."): of_table for name, of_table in tables.items()}
    files = [File(f"/{name}", name, 10, "") for name in (*texts, *columns)]
    return Listing({"train": files}, frozenset(texts), columns=columns)


def names(chosen: Listing) -> list[str]:
    return [file.name for _, file in chosen.all_files()]


def test_tables_of_another_kind_without_the_columns_are_left_out_and_json_is_a_text_then() -> None:
    chosen = with_columns(listing(("a.md",), b_jsonl=("text",), c_csv=("x",), d_json=("name",)), ("text",), "set")
    assert names(chosen) == ["a.md", "b.jsonl", "d.json"] and chosen.texts == {"a.md", "d.json"}
    assert [(entry.name, entry.reason, entry.size) for entry in chosen.left_out] == [("c.csv", "without text", 10)]
    assert [*chosen.columns] == ["b.jsonl"]
    assert names(with_columns(listing(("a.md",), c_csv=("x",)), ("text",), "set")) == ["a.md"]


@pytest.mark.parametrize(
    ("files", "columns", "named"),
    [
        (listing(b_csv=("text",), c_csv=("x", "y")), ("text",), r"c\.csv in data\.path=set .* columns are x, y"),
        (listing(c_csv=("x", "y")), ("text",), "data.text=text: .* set data.text to one of x, y"),
        (listing(("a.md",), c_csv=("x", "y")), ("body",), "data.text=body: .* set data.text to one of x, y"),
        (listing(("a.md",)), ("body",), "data.text=body: .* remove data.text"),
        (listing(c_csv=("x",)), ("x", "y"), "data.text=y: .* set data.text to one of x"),
    ],
)
def test_columns_that_are_missing_are_named(files: Listing, columns: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        with_columns(files, columns, "set")


def test_texts_are_no_tables_unless_there_is_nothing_else() -> None:
    mixed = only_tables(listing(("a.md",), b_csv=("x",)))
    assert names(mixed) == ["b.csv"] and [entry.reason for entry in mixed.left_out] == ["no table"]
    assert names(only_tables(listing(("a.md",)))) == ["a.md"]


def test_tables_of_one_kind_must_have_the_same_columns_but_objects_may_lack_keys() -> None:
    require_equal_columns(listing(a_csv=("x", "y"), b_csv=("y", "x"), c_tsv=("z",), d_jsonl=("x",), e_jsonl=("y",)), "")
    with pytest.raises(ValueError, match=r"set has a\.csv with the columns x, and b\.csv with x, y"):
        require_equal_columns(listing(a_csv=("x",), b_csv=("x", "y")), "set")


def test_groups_have_one_kind_and_those_of_text_only_what_must_be_converted() -> None:
    files = listing(("a.md",), b_jsonl=("x",), c_csv=("x",), d_csv=("x", "y"), e_tsv=("x",), f_parquet=("x",))
    groups = {group.names: group.builder for group in table_groups(files)}
    assert groups == {
        ("a.md",): "text", ("b.jsonl",): "json", ("c.csv", "d.csv"): "csv", ("e.tsv",): "csv", ("f.parquet",): "parquet"
    }  # fmt: skip
    converted = table_groups(files, rows=False)
    assert [group.names for group in converted] == [("c.csv",), ("d.csv",), ("e.tsv",)]
    assert converted[2].options == {"sep": "\t"} and converted[2].files == {"train": ["/e.tsv"]}


def test_splits_that_are_not_used_are_left_out() -> None:
    files = {name: [File(f"/{name}.md", f"{name}.md", 10, "")] for name in ("train", "dev", "extra")}
    noted = with_splits(
        Listing(files, frozenset(["train.md", "dev.md"])).to_json(), {"train": "train", "validation": "dev"}
    )
    assert {name: split["texts"] for name, split in noted["splits"].items()} == {"train": 1, "validation": 1}
    assert noted["left_out"] == [{"name": "extra", "reason": "in an unused split", "size": 10, "files": 1}]
