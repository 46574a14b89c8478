"""Pages whose numbers come from records: a template with references next to each page, and the page that it makes.

    python docs/fill.py

writes `discussion.md` from `discussion.template.md` and so on, for all templates of the repository. A reference names
the record, the place in it, and how the number is written:

    {{adapters/findings: claims[measure=F,of.arm=rank 16].lo | abs | 3}}

The record is a JSON file without its ending: of a study (`adapters/laws`), of the page's study (`findings`), or a path
(`benchmarks/results/coverage`). A place is a key, in backticks where it has a dot, a number of a list, or, in brackets,
`KEY=VALUE,...` for the one entry of a list with these values. Of a text, `| number N` takes its Nth number. Between
place and format stand operations (`OPERATIONS`); the format is the number of decimals, with an `e` for 1.3e-4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

from kleiber.config.words import NO_KEY, words

REPOSITORY = Path(__file__).parents[2]
SUFFIX = ".template.md"
# Of the front matter of a template: where its numbers come from that are in no record, which no reader of a page needs.
UNRECORDED, EMPTY_FRONT = re.compile(r"^elsewhere:\n(?: .*\n)+", re.MULTILINE), "---\n---\n"
REFERENCE = re.compile(r"\{\{([^{}]+)\}\}")
SETTING = re.compile(
    r"torchrun [^,;|]+?trainer=ddp|kleiber push RUN OWNER/NAME|-m\b"
    r"|[a-z_]+(?:[./][a-z_]+)*=(?:\[[^]]*\]|[^\s,;]+)(?: [a-z_.]+=[^\s,;]+)*"
)
NTH = re.compile(r"number (\d+)")
NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?")
STEP = re.compile(r"\[([^\]]*)\]|`([^`]*)`|([^.`\[\]]+)")
OPERATIONS: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "negative": lambda value: -value,
    "percent": lambda value: 100 * value,
    "per thousand": lambda value: value / 1e3,
    "per million": lambda value: value / 1e6,
    "milliseconds": lambda seconds: 1e3 * seconds,
    "minutes": lambda seconds: seconds / 60,
    "hours": lambda seconds: seconds / 3600,
}


def templates(repository: Path = REPOSITORY) -> list[Path]:
    """Returns the templates of the repository."""
    folders = (repository / "multirun", repository / "docs", repository / "src/kleiber_topics")
    return [*repository.glob(f"*{SUFFIX}"), *sorted(path for folder in folders for path in folder.rglob(f"*{SUFFIX}"))]


def page_of(template: Path) -> Path:
    """Returns the page that a template makes."""
    return template.with_name(template.name.removesuffix(SUFFIX) + ".md")


def fill(template: Path) -> str:
    """Returns the text of a page. Raises ValueError, which names template and reference, for one that leads nowhere."""
    try:
        text = UNRECORDED.sub("", template.read_text(encoding="utf-8")).removeprefix(EMPTY_FRONT)
        return filled(text.lstrip("\n"), template.parent)
    except ValueError as error:
        raise ValueError(f"{template}: {error}") from error


def filled(text: str, folder: Path) -> str:
    """Returns a text with its references replaced; tables of `{{claims GROUP}}` and `{{words PROGRAM}}` too."""

    def replacement(reference: re.Match[str]) -> str:
        if reference[1].startswith("claims "):
            from pages.claims import claims_table

            return claims_table(reference[1].removeprefix("claims "))
        if reference[1].startswith("words "):
            return words_table(reference[1].removeprefix("words "))
        try:
            return written(reference[1], folder)
        except (KeyError, IndexError, ValueError, TypeError, OSError) as error:
            raise ValueError(f"{reference[0]} leads nowhere: {error!r}") from error

    return REFERENCE.sub(replacement, text)


def written(reference: str, folder: Path) -> str:
    """Returns the number of a reference in a page of `folder` as it is written there."""
    address, *operations, decimals = (part.strip() for part in reference.split(" | "))
    found = lookup(address, folder)
    if operations and (chosen := NTH.fullmatch(operations[0])):
        found = float(NUMBER.findall(str(found))[int(chosen[1]) - 1])
        operations = operations[1:]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise KeyError(f"{address} is no number")
    value = float(found)
    for name in operations:
        value = OPERATIONS[name](value)
    if decimals.endswith("e"):
        mantissa, exponent = f"{value:.{decimals[:-1]}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return rounded(value, int(decimals))


def rounded(value: float, decimals: int) -> str:
    """Returns a number with so many decimals, of which halves are rounded away from 0, as people do."""
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))


def lookup(address: str, folder: Path) -> object:
    """Returns what is at an address, `RECORD: PLACE`, for a page of `folder`."""
    record, _, place = address.partition(": ")
    return find(read(record_file(record, folder)), place)


def words_table(program: str) -> str:
    """Returns the table of what another program calls keys of kleiber."""
    rows = [(word, ours) for word, (of, ours) in words().items() if of == program]
    lines = [f"| `{word}` | {coded(ours.removeprefix(NO_KEY))} |" for word, ours in rows]
    return "\n".join([f"| {program} | kleiber |", "| --- | --- |", *lines])


def coded(text: str) -> str:
    """Returns a text in which settings such as `budget.epochs=3` are code."""
    return SETTING.sub(lambda setting: f"`{setting[0]}`", text)


def record_file(name: str, folder: Path) -> Path:
    """Returns the file of a record: of the folder of a page, of a recorded study, or of the repository."""
    study = REPOSITORY / "multirun" / name if name.startswith("golden/") else REPOSITORY / "multirun/results" / name
    choices = [path.with_name(path.name + ".json") for path in (folder / name, study, REPOSITORY / name)]
    return next((path for path in choices if path.is_file()), choices[0])


@cache
def read(path: Path) -> object:
    """Returns a record."""
    return json.loads(path.read_text(encoding="utf-8"))


def find(record: object, place: str) -> object:
    """Returns what is at a place of a record. Raises KeyError where there is nothing, or more than one entry."""
    node = record
    for match in STEP.finditer(place):
        conditions, key = match[1], match[2] or match[3]
        if conditions is not None:
            wanted = [condition.partition("=") for condition in conditions.split(",")]
            entries = [entry for entry in node if all(text_at(entry, k) == v for k, _, v in wanted)]  # type: ignore[union-attr]
            if len(entries) != 1:
                raise KeyError(f"{len(entries)} entries have {conditions}")
            (node,) = entries
        else:
            node = node[int(key)] if isinstance(node, list) else node[key]  # type: ignore[index]
    return node


def text_at(entry: object, keys: str) -> str | None:
    """Returns the value of nested keys of an entry as text, such as `of.arm`; None where it has none."""
    for key in keys.split("."):
        if not isinstance(entry, dict) or key not in entry:
            return None
        entry = entry[key]
    return plain(entry)


def plain(value: object) -> str:
    """Returns a value as conditions of a place name it."""
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def references(text: str) -> Iterator[str]:
    """Yields the references of a template."""
    yield from (match[1] for match in REFERENCE.finditer(text))
