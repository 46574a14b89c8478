"""How a folder names its splits: by a dataset card, by the hub's names of shards, or by any names of files and folders.

A card is a README.md whose metadata have `configs`, and shards are files such as train-00000-of-00001.parquet. Other
names decide only where `data.splits=files` asks for it, because a text may be called train-travel.txt or test/a.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import yaml

from kleiber.records.regular_files import open_to_read

SPLIT_OF = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "evaluation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5,}(-[0-9a-f]+)?(\.[^/]*)?")
CARD, CARD_BYTES = "README.md", 1 << 20  # of a card, whose metadata are at its beginning


def has_card(folder: Path) -> bool:
    """Whether a folder has a README.md whose metadata name the files of the data set."""
    card = folder / CARD
    if not card.is_file():
        return False
    with open_to_read(card) as file:
        lines = file.read(CARD_BYTES).decode(errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return False
    try:
        metadata = yaml.load("\n".join(lines[1 : lines.index("---", 1)]), yaml.CSafeLoader)
    except yaml.YAMLError:
        return False
    return isinstance(metadata, dict) and bool(metadata.get("configs"))


def shard_splits(names: Iterable[str]) -> dict[str, str] | None:
    """Returns the split of each file that is named as a shard of the hub; None where none of a known split is.

    names  of the files of a folder, relative to it
    """
    matches = {name: SHARD.fullmatch(PurePosixPath(name).name) for name in names}
    splits = {name: match["split"] for name, match in matches.items() if match is not None}
    return splits if any(split_of_name(split) for split in splits.values()) else None


def split_of_name(name: str) -> str | None:
    """Returns the split that the path of a file names, by its outermost folder or else by the file; None for none.

    name  relative to the folder of the data set, such as data/test/part-1.jsonl
    """
    for part in PurePosixPath(name.lower()).parts:
        for name_part in re.split(r"[^a-z]+", part):
            if name_part in SPLIT_OF:
                return SPLIT_OF[name_part]
    return None


def named_splits(names: Iterable[str]) -> dict[str, str]:
    """Returns the split of each file by its name; a file whose path names no split is a training file."""
    return {name: split_of_name(name) or "train" for name in names}
