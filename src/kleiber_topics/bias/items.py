"""Items of bias data sets: texts of which one expresses a stereotype and another one does not.

CrowS-Pairs, StereoSet and WinoBias differ in their columns, and become the same kind of item here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kleiber.data import DataSet
from kleiber.types import Row

CROWS = ("sent_more", "sent_less", "bias_type")
STEREOSET = ("context", "sentences", "bias_type", "target")
WINOBIAS = ("text", "entity", "pronoun")
# The names behind the integers in the columns of CrowS-Pairs on the hub.
CROWS_TYPES = (
    "race-color", "socioeconomic", "gender", "disability", "nationality", "sexual-orientation", "physical-appearance",
    "religion", "age",
)  # fmt: skip
CROWS_DIRECTIONS = ("stereo", "antistereo")
GOLD_LABELS = ("anti-stereotype", "stereotype", "unrelated")  # StereoSet's, behind the integers on the hub
BLANK = "BLANK"
PRO, ANTI = "pro", "anti"
PRONOUN = re.compile(r"\b(he|she|him|her|his|hers|himself|herself)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """Texts to compare.

    stereotype, other  the text that expresses a stereotype, and its counterpart
    unrelated          a text in the same context that makes no sense; None where there is none
    bias_type          group of the item, such as race or gender
    term               target term within which StereoSet averages first; "" where all items count the same
    blank              what stands before and after the word in which the texts differ (StereoSet); None elsewhere
    direction          "stereo" or "antistereo" of CrowS-Pairs; "" where the data does not say it
    cluster            of items that are not independent, such as those of an occupation; "" for an item of its own
    subset             of the items, which has scores and no test; "" for none
    """

    stereotype: str
    other: str
    unrelated: str | None
    bias_type: str
    term: str = ""
    blank: tuple[str, str] | None = None
    direction: str = ""
    cluster: str = ""
    subset: str = ""


def read_items(sets: Sequence[DataSet], limit: int | None) -> dict[str, list[Item]]:
    """The items of each data set, by name; WinoBias pairs the rows of two tables, whose common name it has.

    limit  number of rows of each table to read; None for all of them

    Raises ValueError for rows that cannot be read, naming the data set and the row.
    """
    items: dict[str, list[Item]] = {}
    winobias: dict[str, DataSet] = {}
    for data in sets:
        columns = set(data.columns)
        if set(CROWS) <= columns:
            items[data.name] = [crows_item(row) for row in data.rows(limit)]
        elif set(STEREOSET) <= columns:
            items[data.name] = [
                stereoset_item(row, f"{data.name}, row {at}") for at, row in enumerate(data.rows(limit))
            ]
        else:
            winobias[data.name] = data
    for name, pairs in winobias_pairs(winobias).items():
        paired = [item for kind, (pro, anti) in pairs.items() for item in winobias_items(pro, anti, kind, limit)]
        if not paired:
            raise ValueError(
                f"{name}: no row of the pro-stereotypical table has the sentence of its anti-stereotypical one"
            )
        items[name] = paired
    return items


def crows_item(row: Row) -> Item:
    """The item of a row of CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133): `sent_more` stereotypes more.

    The columns `cluster` and `subset` are not of CrowS-Pairs, and may be absent.
    """
    direction = row.get("stereo_antistereo", "")
    return Item(
        str(row["sent_more"]),
        str(row["sent_less"]),
        None,
        _named(row["bias_type"], CROWS_TYPES),
        direction="" if direction is None else _named(direction, CROWS_DIRECTIONS),
        cluster=str(row.get("cluster") or ""),
        subset=str(row.get("subset") or ""),
    )


def stereoset_item(row: Row, place: str) -> Item:
    """The item of a row of StereoSet's intrasentence task (Nadeem et al. 2021, arXiv:2004.09456).

    `sentences` is a list of {sentence, gold_label}, or the lists of both. Raises ValueError, which names `place`, for a
    row without the three labels, and for a context without a blank.
    """
    sentences = row["sentences"]
    if isinstance(sentences, Mapping):
        pairs = list(zip(sentences["gold_label"], sentences["sentence"], strict=True))
    else:
        pairs = [(entry["gold_label"], entry["sentence"]) for entry in sentences]
    texts = {_named(label, GOLD_LABELS): str(sentence) for label, sentence in pairs}
    if set(texts) != set(GOLD_LABELS):
        raise ValueError(
            f"{place}: sentences must have the gold_labels {', '.join(GOLD_LABELS)}, and have {list(texts)}"
        )
    before, blank, after = str(row["context"]).partition(BLANK)
    if not blank:
        raise ValueError(f"{place}: context={row['context']!r} must contain {BLANK}")
    return Item(
        texts["stereotype"], texts["anti-stereotype"], texts["unrelated"],
        str(row["bias_type"]), str(row["target"]), (before, after),
    )  # fmt: skip


def _named(value: object, names: Sequence[str]) -> str:
    """A label as text: the name of an integer, or the text itself."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)


def winobias_pairs(tables: Mapping[str, DataSet]) -> dict[str, dict[str, tuple[DataSet, DataSet]]]:
    """The pro- and the anti-stereotypical table of each type, by the name of the data set and the type.

    Names of tables end in _pro and _anti, such as wino_bias/type1_pro. Raises ValueError for one without the other.
    """
    pairs: dict[str, dict[str, tuple[DataSet, DataSet]]] = {}
    for name, data in tables.items():
        stem, _, kind = name.rpartition("_")
        partner = f"{stem}_{ANTI if kind == PRO else PRO}"
        if kind not in (PRO, ANTI) or partner not in tables:
            raise ValueError(
                f"--evals bias compares the tables NAME_{PRO} and NAME_{ANTI} of WinoBias, and got {name} without "
                f"{partner if kind in (PRO, ANTI) else 'either ending'}: name the whole data set, such as wino_bias"
            )
        if kind == PRO:
            whole = data.group or stem
            pairs.setdefault(whole, {})[stem.rpartition("/")[2]] = (data, tables[partner])
    return pairs


def winobias_items(pro: DataSet, anti: DataSet, kind: str, limit: int | None) -> list[Item]:
    """The k-th pro-stereotypical row with the k-th anti-stereotypical one (Zhao et al. 2018, arXiv:1804.06876).

    Rows are left out whose sentences differ in anything else than gendered pronouns, such as a corrected typing error.
    """
    return [
        Item(str(first["text"]), str(second["text"]), None, kind)
        for first, second in zip(pro.rows(limit), anti.rows(limit), strict=False)
        if first["text"] != second["text"] and frame(str(first["text"])) == frame(str(second["text"]))
    ]


def frame(text: str) -> str:
    """A sentence with a mark in place of each gendered pronoun."""
    return PRONOUN.sub("_", text)
