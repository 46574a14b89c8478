"""Conversations of several tables together, for instruction tuning on more than one set of instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from kleiber.config import Quantity
from kleiber.data import (
    TEMPLATE,
    Conversations,
    HeldOutRows,
    Instruct,
    InstructCorpus,
    PackedConversations,
    Table,
    TokenRows,
    cache_root,
    choose_tokenizer,
    digest,
    join_readings,
    read_conversations,
)
from kleiber.types import DataPath, HeldOut, Samples, Tokenizer, VocabSize

SETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "alpaca": {"path": "tatsu-lab/alpaca"},
        "dolly": {"path": "mosaicml/dolly_hhrlhf"},
        "self_instruct": {"path": "self_instruct"},
    }
)
PART_KEYS = ("path", "config", "prompt", "response", "splits")


@dataclass(frozen=True)
class InstructSets:
    """Conversations of several tables, which are shuffled together; each table is a data set of its own in validation.

    parts       tables by name, each with path and, where needed, config, prompt and response of `Instruct`; null:
                Alpaca, Dolly (with HH-RLHF), and the seed tasks of Self-Instruct
    pack        true: as many samples to a row as fit; false: one sample to a row, with padding
    tokenizer   of all tables; bpe is trained on all of them
    max_bytes   at most that much text of each split of each table
    """

    conversational: ClassVar[bool] = True  # its texts stand in the chat template, which an export then has too

    parts: Mapping[str, Mapping[str, DataPath | None]] | None = None
    pack: bool = True
    tokenizer: str = "bytes"
    vocab_size: VocabSize | None = None
    separator: str | list[str] | None = None
    max_bytes: Quantity | None = None

    def tables(self) -> dict[str, Table]:
        """Finds the tables. Raises ValueError for no parts, a part with other keys, and a path without a table."""
        parts = SETS if self.parts is None else self.parts
        if not parts:
            raise ValueError("data.parts={} must have at least one table, such as {alpaca:{path:tatsu-lab/alpaca}}")
        for name, part in parts.items():
            if "path" not in part or not set(part) <= set(PART_KEYS):
                raise ValueError(
                    f"data.parts.{name}={dict(part)} must have path, and may have {', '.join(PART_KEYS[1:])}"
                )
            if part.get("splits") not in (None, "auto", "files"):
                raise ValueError(f"data.parts.{name}.splits={part['splits']} must be auto or files")
        return {
            name: Instruct(
                str(part["path"]), part.get("config"), name, max_bytes=self.max_bytes, prompt=part.get("prompt"),
                response=part.get("response"), splits="files" if part.get("splits") == "files" else None,
            ).table()
            for name, part in parts.items()
        }  # fmt: skip

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Returns the corpus of encoded conversations; arguments and errors are those of `Instruct.prepare`."""
        tables, root = self.tables(), cache_root(cache)
        tokenizer = choose_tokenizer(self.tokenizer, self.vocab_size, [*tables.values()], root, self.separator)
        encoded = {name: table.load_encoded(tokenizer, root) for name, table in tables.items()}
        splits = {
            name: table.samples(lambda path: read_conversations(path, context, tokenizer))
            for name, table in encoded.items()
        }
        rows = join_conversations([split["train"] for split in splits.values()], tokenizer)
        train: Samples = PackedConversations(rows) if self.pack else rows
        checksums = [table.checksums for table in encoded.values()]
        return InstructCorpus(
            name="instruct_sets",
            config="+".join(tables),
            hash=digest([tokenizer.data_hash, TEMPLATE, self.pack, checksums]),
            tokenizer=tokenizer,
            train=train,
            validation=held_out(splits, "validation"),
            test=held_out(splits, "test"),
            manifest={name: table.manifest for name, table in encoded.items()},
            num_tokens=train.num_tokens,
            num_bytes=train.num_bytes,
            num_answers=rows.num_answers,
            reading=join_readings(table.reading for table in encoded.values()),
        )


def held_out(splits: Mapping[str, Mapping[str, Conversations]], split: str) -> dict[str, HeldOut]:
    """The samples of a held-out split of each table that has one."""
    return {name: HeldOutRows(of_table[split]) for name, of_table in splits.items() if len(of_table.get(split, ()))}


def join_conversations(parts: Sequence[Conversations], tokenizer: Tokenizer) -> Conversations:
    """Returns the conversations of all parts as one set."""

    def join(rows: Sequence[TokenRows]) -> TokenRows:
        lengths = np.concatenate([part.lengths for part in rows])
        return TokenRows(np.concatenate([part.flat for part in rows]), np.concatenate([[0], np.cumsum(lengths)]))

    ids, marks = join([part.ids for part in parts]), join([part.marks for part in parts])
    return Conversations(ids, marks, parts[0].context, tokenizer)
