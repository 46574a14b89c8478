"""Which split a file belongs to: by a card, by the names of shards, or by any name where that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.data.layout import has_card, named_splits, shard_splits, split_of_name


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("my_training-set.csv", "train"),
        ("val.txt", "validation"),
        ("part-1.dev.jsonl", "validation"),
        ("eval.jsonl", "validation"),
        ("Test_2.md", "test"),
        ("test/train-1.txt", "test"),
        ("data/train/test_utils.py", "train"),
        ("tests/a.py", None),
        ("chapter1.txt", None),
        ("trainer.py", None),
    ],
)
def test_a_name_has_the_split_of_its_outermost_part_that_names_one(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_files_of_no_split_are_training_files() -> None:
    names = ["part1.jsonl", "part2.jsonl", "eval.jsonl"]
    assert named_splits(names) == {"part1.jsonl": "train", "part2.jsonl": "train", "eval.jsonl": "validation"}


def test_shards_name_splits_where_a_split_is_among_them() -> None:
    names = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002-4f2a.parquet",
        "test-00000-of-00001.jsonl.gz",
    ]
    assert shard_splits([*names, "README.md"]) == dict(zip(names, ("train", "train", "test"), strict=True))
    assert shard_splits(["train_sft-00000-of-00001.parquet"]) == {"train_sft-00000-of-00001.parquet": "train_sft"}
    assert shard_splits(["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"]) is None
    assert shard_splits(["train.jsonl", "validation.jsonl"]) is None


@pytest.mark.parametrize(
    ("text", "is_card"),
    [
        ("---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n---\nwords", True),
        ("---\nlicense: mit\n---\n", False),
        ("# A project\n\n---\nconfigs: x\n---\n", False),
        ("---\nconfigs: [\n---\n", False),
        ("---\nconfigs: []\n---\n", False),
        ("---\n", False),
        ("", False),
    ],
)
def test_a_card_has_configs_in_its_metadata(text: str, is_card: bool, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert has_card(tmp_path) == is_card
    assert not has_card(tmp_path / "nothing")
