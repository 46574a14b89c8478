"""The reference of the configuration: every group, its choices with their headers, and every key of each choice."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from kleiber.config.check import BatchSize, EvalSettings
from kleiber.config.compose import config_files
from kleiber.config.stages import Budget
from kleiber.records.files import read_yaml
from pages import commands, offered
from pages.headers import read_header
from pages.signatures import arguments, descriptions, entries_of, literal, range_of, type_name
from pages.tables import cell, folded, table

GROUPS = (
    "model", "data", "objective", "optimizer", "schedule", "trainer", "callbacks", "logger", "init", "adapter",
    "retention", "privacy", "evals", "stages", "launcher", "design", "study", "experiment",
)  # fmt: skip
COMMENT = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):[^#]*(?:#\s*(?P<comment>.*))?$")
VARIANT = re.compile(r"Variant of \w+ \(([\w/]+)=([\w/]+)\)")
PACKAGE_LINE = re.compile(r"^# @package (\S+)", re.MULTILINE)
COLUMNS = ["key", "type", "range", "default", "meaning"]
TOP_LEVEL = {
    "name": ("text", "the folder below `root`; a study has its own name"),
    "root": ("text", "the folder of all runs; the environment variable `KLEIBER_ROOT` sets another default"),
    "seed": ("int", "seed of weights, data order, dropout and samples"),
    "resume": (
        "`auto`, `never` or PATH",
        "continue the run of this config, start it anew, or continue the run of a folder",
    ),
    "dry_run": ("true, false or FILE.json", "print the plan and its cost without training; a file gets both as JSON"),
}


@cache
def pages(repository: Path) -> dict[str, str]:
    """Returns the Markdown of the reference pages by their path in the site."""
    conf = repository / "conf"
    made = {"reference/keys.md": top_level_page(conf), "reference/commands.md": commands.page()}
    return {**made, "reference/offered.md": offered.page()} | {
        f"reference/{group}.md": group_page(group) for group in GROUPS
    }


def navigation() -> list[dict[str, str]]:
    """Returns the entries of the navigation below the reference."""
    groups = [{group: f"reference/{group}.md"} for group in GROUPS]
    return [{"Keys of every run": "reference/keys.md"}, *groups, {"What extensions import": "reference/offered.md"}]


def top_level_page(conf: Path) -> str:
    """Returns the page of the keys that belong to no group."""
    values = node_of(conf / "train.yaml")
    rows = [[f"`{key}`", kind, "", code(values[key]), meaning] for key, (kind, meaning) in TOP_LEVEL.items()]
    for prefix, plain in {"batch": BatchSize, "budget": Budget, "eval": EvalSettings}.items():
        meanings = entries_of(plain.__doc__ or "")
        annotations = get_type_hints(plain, include_extras=True)
        for field in fields(plain):
            kind = annotations[field.name]
            row = [f"`{prefix}.{field.name}`", type_name(kind), range_of(kind), code(field.default)]
            rows.append([*row, cell(meanings.get(field.name, ""))])
    return (
        "# Keys of every run\n\nThese keys belong to no group. A *quantity* is a number or a text such as `20M`, "
        "`1.5B` or `2e7`. At most one key of `budget` is set; a key on the command line replaces those of files.\n\n"
        + table(COLUMNS, rows)
    )


def code(value: object) -> str:
    return f"`{literal(value)}`"


def group_page(group: str) -> str:
    """Returns the page of a group: every choice with its header and its keys."""
    files = {place: path for place, path in config_files().items() if place.split("/")[0] == group}
    parts = [f"# {group}"]
    for name in sorted({place.rpartition("/")[0] for place in files}):
        choices = [files[place] for place in sorted(files) if place.rpartition("/")[0] == name]
        choices = [path for path in choices if not path.name.startswith("_")]
        if name != group:
            parts.append(f"## {name} {{#{name.replace('/', '-')}}}")
        parts.append(index(name, choices, group))
        parts += [choice_section(path, name != group) for path in choices]
    return "\n\n".join(parts) + "\n"


def place_of(path: Path) -> Path:
    """Returns the place of a config file within its folder conf/."""
    return Path(*path.parts[len(path.parts) - path.parts[::-1].index("conf") :])


def index(name: str, choices: list[Path], group: str) -> str:
    """Returns the table of the choices of a group."""
    own = "/" not in name or group != "model"  # data/glue holds choices of data; model/mlp is a group
    rows = []
    for path in choices:
        override = f"{name}={path.stem}" if own and "/" not in name else override_of(name, path.stem)
        rows.append([f"[`{override}`](#{anchor(name, path.stem)})", cell(read_header(path).summary)])
    return table(["override", "what it is"], rows)


def override_of(folder: str, choice: str) -> str:
    """Returns what a user types for a choice of a nested folder: model/mlp=moe, but data=glue/sst2."""
    group, _, rest = folder.partition("/")
    if not rest:
        return f"{group}={choice}"
    return f"{folder}={choice}" if group == "model" else f"{group}={rest}/{choice}"


def anchor(folder: str, choice: str) -> str:
    return "-".join([*folder.split("/")[1:], choice])


def choice_section(path: Path, nested: bool) -> str:
    """Returns the section of a choice: header, labels, keys."""
    folder = str(place_of(path).parent)
    header = read_header(path)
    level = "###" if nested else "##"
    parts = [f"{level} `{override_of(folder, path.stem)}` {{#{anchor(folder, path.stem)}}}", header.summary, header.use]
    parts += [f"**{label}**: {text}" for label, text in header.labels.items() if label not in ("Command", "Labels")]
    if command := header.labels.get("Command"):
        parts.append(f"```text\n{command}\n```")
    if base := base_of(path):
        parts.append(f"Its other keys are those of [`{base[0]}`]({base[1]}).")
    if rows := key_rows(path, only_own=bool(base)):
        parts.append(table(COLUMNS, rows))
    if path.parent.name in ("study", "experiment"):
        parts.append(folded("What it sets", f"```yaml\n{body(path)}\n```"))
    return "\n\n".join(part for part in parts if part)


def body(path: Path) -> str:
    """Returns a config file without the comment at its top."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[first:])


def base_of(path: Path) -> tuple[str, str] | None:
    """Returns the choice whose keys a variant shares, as an override and as a link to its section."""
    header = read_header(path)
    if match := VARIANT.search(f"{header.summary} {header.use}"):
        group, choice = match.groups()
        page = "" if group.split("/")[0] == place_of(path).parts[0] else f"{group.split('/')[0]}.md"
        return f"{group}={choice}", f"{page}#{anchor(group, choice)}"
    for entry in node_of(path).get("defaults", []):
        if isinstance(entry, str) and not entry.startswith("_") and (path.parent / f"{entry}.yaml").is_file():
            folder = str(place_of(path).parent)
            return override_of(folder, entry), f"#{anchor(folder, entry)}"
    return None


def key_rows(path: Path, only_own: bool) -> list[list[str]]:
    """Returns a row for every key of a choice: those of its file, and the other arguments of the classes it names.

    only_own  leave out what the file does not contain, because another choice has the same keys
    """
    group, *rest = place_of(path).parts[:-1]
    prefix = ".".join([group, *rest]) if group == "model" else group
    if package := PACKAGE_LINE.search(path.read_text(encoding="utf-8")):
        prefix = package.group(1)
    node = values_of(path)
    if prefix == "_global_":
        node, prefix = {"study": node["study"]} if isinstance(node.get("study"), dict) else {}, ""
    rows = rows_of(node, prefix, comments_of(path), ())
    if only_own and prefix:
        own = node_of(path)
        rows = [row for row in rows if row[0].strip("`").removeprefix(f"{prefix}.").split(".")[0] in own]
    return rows


@cache
def node_of(path: Path) -> dict[str, Any]:
    """Returns what a config file contains, which may be nothing."""
    node = read_yaml(path)
    return node if isinstance(node, dict) else {}


@cache
def values_of(path: Path) -> dict[str, object]:
    """Returns the values of a choice, with those of the choices of the same folder that it inherits from."""
    node = node_of(path)
    inherited: dict[str, object] = {}
    for entry in node.get("defaults", []):
        beside = path.parent / f"{entry}.yaml"
        if isinstance(entry, str) and beside.is_file() and not entry.startswith("_"):
            inherited |= values_of(beside)
    return {**inherited, **{key: value for key, value in node.items() if key != "defaults"}}


@cache
def comments_of(path: Path) -> dict[tuple[str, ...], str]:
    """Returns the comment behind each key of a file and of the choices that it inherits from, by the key's path."""
    comments: dict[tuple[str, ...], str] = {}
    for entry in node_of(path).get("defaults", []):
        if isinstance(entry, str) and (path.parent / f"{entry}.yaml").is_file():
            comments |= comments_of(path.parent / f"{entry}.yaml")
    stack: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := COMMENT.match(line):
            indent = len(match["indent"])
            stack = [entry for entry in stack if entry[0] < indent] + [(indent, match["key"])]
            if match["comment"]:
                comments[tuple(key for _, key in stack)] = match["comment"]
    return comments


def rows_of(
    node: dict[str, object], prefix: str, comments: dict[tuple[str, ...], str], place: tuple[str, ...]
) -> list[list[str]]:
    """Returns the rows of a node of the config and of the nodes below it."""
    target = str(node.get("_target_", ""))
    known = arguments(target) if target else {}
    meanings = descriptions(target) if target else {}
    rows = []
    for key in [*known, *(key for key in node if key not in known and not key.startswith("_"))]:
        value, here = node.get(key), (*place, key)
        name = f"{prefix}.{key}".lstrip(".")
        if key not in node and known[key][2] == "required":
            continue  # another object supplies it
        if isinstance(value, dict) and (target == "" or "_target_" in value):
            rows += rows_of(value, name, comments, here)
            continue
        kind, allowed, default = known.get(key, ("", "", ""))
        if key in node:
            default = "required" if value == "???" else literal(value)
        meaning = comments.get(here) or meanings.get(key, "")
        rows.append([f"`{name}`", kind, cell(allowed), f"`{default}`" if default else "", cell(meaning)])
    return rows
